"""`perception predict` as a file, for torchrun and debuggers: python tools/predict.py ARGUMENTS."""

import sys

from perception.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
