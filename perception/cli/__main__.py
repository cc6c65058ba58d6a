"""Entry point of `python -m perception.cli`."""

import sys

from perception.cli import main

if __name__ == "__main__":
    sys.exit(main())
