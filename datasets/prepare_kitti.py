"""KITTI's archives to the folders that the readers `kitti` and `kitti_depth` take, and a split by drive.

FROM is an archive as distributed, or a folder of them: data_object_{image_2,label_2,calib}.zip, devkit_object.zip,
data_depth_annotated.zip, data_depth_selection.zip, 2011_*_sync.zip, 2011_*_calib.zip. Fetches nothing, overwrites
nothing; an archive that is there already is left alone.

The object benchmark's images are numbered at random: neighbors of one drive are nearly the same image, so a random
split tells nothing. With devkit_object.zip, whole drives go to object/ImageSets/train.txt or val.txt.

python datasets/prepare_kitti.py data/kitti FROM ... --val 0.2
"""

import argparse
import random
import re
from pathlib import Path

from perception.files.archives import extract_archive
from perception.files.text_files import iterate_rows, read_text
from perception.types import DataError

TARGET_FOLDERS = {
    r"data_object_\w+\.zip": "object",
    r"devkit_object\.zip": "object/devkit",
    r"data_depth_annotated\.zip": "depth",
    r"data_depth_selection\.zip": ".",
    r"2011_\d\d_\d\d_(drive_\d{4}_sync|calib)\.zip": "raw",
}
"""Name of an archive -> the folder it is unpacked into. The selection brings its own folder depth_selection."""


def find_archives(paths: list[Path]) -> dict[Path, str]:
    """The archives among some paths and in the folders among them, and the folder for each."""
    files = [file for path in paths for file in (sorted(path.glob("*.zip")) if path.is_dir() else [path])]
    found = {}
    for file in files:
        place = next((place for name, place in TARGET_FOLDERS.items() if re.fullmatch(name, file.name)), None)
        if place is None:
            raise SystemExit(f"{file} is no archive of KITTI by its name. Known: {', '.join(TARGET_FOLDERS)}.")
        found[file] = place
    return found


def read_drives(mapping: Path) -> list[str]:
    """The drive of every image of object/training, by the two files of the development kit."""
    where = mapping / "train_rand.txt"
    lines = [words for _, words in iterate_rows(read_text(mapping / "train_mapping.txt"))]
    numbers = read_text(where).replace(",", " ").split()
    if not lines or any(len(words) != 3 for words in lines):
        raise DataError(f"{mapping}/train_mapping.txt: expected '<date> <drive> <frame>' on every line.")
    if not all(number.isdecimal() and 0 < int(number) <= len(lines) for number in numbers):
        raise DataError(f"{where}: expected line numbers of train_mapping.txt, 1 to {len(lines)}.")
    return [lines[int(number) - 1][1] for number in numbers]


def split_by_drive(drives: list[str], share: float) -> dict[str, list[str]]:
    """Names of images for train and val: whole drives in a fixed random order until ``share`` of them is in val."""
    order = sorted(set(drives))
    random.Random(0).shuffle(order)
    chosen: set[str] = set()
    count = 0
    for drive in order:
        size = drives.count(drive)
        if count + size <= share * len(drives):
            chosen.add(drive)
            count += size
    names = {
        part: [f"{i:06d}" for i, d in enumerate(drives) if (d in chosen) == (part == "val")]
        for part in ("train", "val")
    }
    if not all(names.values()):
        raise SystemExit(f"--val {share} of {len(order)} drives leaves train or val empty. Choose another share.")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("source", type=Path, nargs="*", metavar="FROM")
    parser.add_argument("--val", type=float, help="share of the object benchmark's images for validation")
    options = parser.parse_args()
    try:
        for file, place in find_archives(options.source).items():
            done = options.out / ".unpacked" / file.name
            if done.exists():
                print(f"{file.name}: unpacked before")
                continue
            print(f"{file.name}: {extract_archive(file, options.out / place)} files to {options.out / place}")
            done.parent.mkdir(exist_ok=True)
            done.touch()
        if options.val is not None:
            of = read_drives(options.out / "object/devkit/mapping")
            for part, names in split_by_drive(of, options.val).items():
                path = options.out / f"object/ImageSets/{part}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    raise SystemExit(f"{path} exists already. Remove it to make the split anew.")
                path.write_text("\n".join(names) + "\n")
                count = len({of[int(name)] for name in names})
                print(f"{path}: {len(names)} images of {count} drives")
    except DataError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
