"""`python -m xaiutils.claims`: see `xaiutils.companion.ledger`."""

import sys

from xaiutils.companion import stopping
from xaiutils.companion.ledger import main

if __name__ == "__main__":
    sys.exit(stopping.exit_code(main))
