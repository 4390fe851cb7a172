"""`python -m xaiutils`, the same as the command `xaiutils`: see `xaiutils.companion.cli`."""

import sys

from xaiutils.companion.cli import main

if __name__ == "__main__":
    sys.exit(main())
