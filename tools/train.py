"""`perception train` as a file, for torchrun and debuggers: python tools/train.py ARGUMENTS."""

import sys

from perception.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
