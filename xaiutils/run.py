"""`python -m xaiutils.run`: see `xaiutils.companion.run`."""

import sys

from xaiutils.companion.run import main

if __name__ == "__main__":
    sys.exit(main())
