"""Checks a BDD100K tree: which packages are there, how many files of each split, what has no partner.

Fetches nothing. Ends with code 1 where a needed package, or one that is there, is incomplete. The JSON of boxes is only
looked for.

python datasets/prepare_bdd100k.py data/bdd100k --need images boxes drivable lane
"""

import argparse
from pathlib import Path

from perception.data.formats.bdd100k import LABEL_PATHS

DOWNLOADS = "https://bdd-data.berkeley.edu/ (registration; education, research and not-for-profit use)"
IMAGE_COUNTS = {
    "100k": {"train": 70000, "val": 10000, "test": 20000},
    "10k": {"train": 7000, "val": 1000, "test": 2000},
}
MAPS = {
    "drivable": ("100k", "Drivable Area"),
    "lane": ("100k", "Lane Marking"),
    "sem_seg": ("10k", "Semantic Segmentation"),
}
PACKAGES = ("images", "images_10k", "boxes", *MAPS)
MAX_UNLABELED_FRACTION = 0.01
"""Fraction of the images that may have no map: the published ones leave some out."""


def list_stems(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*{suffix}")}


def check_images(root: Path, size: str) -> tuple[bool, bool]:
    """Say how many images there are. Returns whether there are any, and all."""
    found = {split: len(list_stems(root / f"images/{size}/{split}", ".jpg")) for split in IMAGE_COUNTS[size]}
    for split, count in IMAGE_COUNTS[size].items():
        print(f"images/{size}/{split}: {found[split]} of {count}")
    return any(found.values()), all(found[split] >= count for split, count in IMAGE_COUNTS[size].items())


def check_boxes(root: Path) -> tuple[bool, bool]:
    """Say which labels of boxes and attributes there are."""
    found = {}
    for split in ("train", "val"):
        names = [name.format(split=split) for name in LABEL_PATHS]
        found[split] = next((name for name in names if (root / name).exists()), None)
        print(f"boxes of {split}: {found[split] or 'none'}")
    return any(found.values()), all(found.values())


def check_maps(root: Path, kind: str) -> tuple[bool, bool]:
    """Say how many segmentation masks there are, and which have no image or are lacking."""
    size, _ = MAPS[kind]
    any_there, whole = False, True
    for split in ("train", "val"):
        found = list_stems(root / f"labels/{kind}/masks/{split}", ".png")
        known = list_stems(root / f"images/{size}/{split}", ".jpg")
        orphans, without = found - known, known - found
        any_there, whole = any_there or bool(found), whole and bool(found)
        print(f"labels/{kind}/masks/{split}: {len(found)}; {len(without)} images of images/{size} without")
        if orphans:
            print(f"  {len(orphans)} without an image, the first is {min(orphans)}.png")
        whole = whole and not orphans and len(without) <= MAX_UNLABELED_FRACTION * len(known)
    return any_there, any_there and whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--need", nargs="*", choices=PACKAGES, default=["images", "boxes"])
    options = parser.parse_args()
    if not (options.root / "images").is_dir() and (options.root / "bdd100k/images").is_dir():
        print(f"The tree is one folder deeper: {options.root / 'bdd100k'}.")
    states = {
        "images": ("100K Images", check_images(options.root, "100k")),
        "images_10k": ("10K Images", check_images(options.root, "10k")),
        "boxes": ("Detection 2020 Labels", check_boxes(options.root)),
        **{kind: (title, check_maps(options.root, kind)) for kind, (_, title) in MAPS.items()},
    }
    missing = [name for name, (_, (there, whole)) in states.items() if (there or name in options.need) and not whole]
    for name in missing:
        print(
            f"To fetch: '{states[name][0]}' ({name}) from {DOWNLOADS}, and unpack it so that it adds to {options.root}."
        )
    raise SystemExit(1 if missing else 0)


if __name__ == "__main__":
    main()
