"""`perception evaluate` as a file, for torchrun and debuggers: python tools/evaluate.py ARGUMENTS."""

import sys

from perception.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
