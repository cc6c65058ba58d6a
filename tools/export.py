"""`perception export` as a file, for torchrun and debuggers: python tools/export.py ARGUMENTS."""

import sys

from perception.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
