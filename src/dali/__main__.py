"""`python -m dali` is the command `dali`."""

import sys

from dali.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
