"""`python -m xaiutils.claims`: see `xaiutils.companion.claims`."""

import sys

from xaiutils.companion.claims import main

if __name__ == "__main__":
    sys.exit(main())
