"""`python -m xaiutils.run`: see `xaiutils.companion.run`."""

import sys

from xaiutils.companion import stopping


def main(argv=None):
    """See `xaiutils.companion.run.main`, whose import takes a second that can be stopped too."""

    def run():
        from xaiutils.companion.run import main

        return main(argv)

    return stopping.exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
