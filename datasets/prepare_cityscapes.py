"""Checks a Cityscapes tree: which packages are there, how many files of each split, what has no partner.

Fetches nothing. Ends with code 1 where a needed package, or one that is there, is incomplete.

python datasets/prepare_cityscapes.py data/cityscapes --need images fine disparity camera
"""

import argparse
from pathlib import Path

DOWNLOADS = "https://www.cityscapes-dataset.com/downloads/ (registration; research and non-commercial use)"
FINE, EXTRA = {"train": 2975, "val": 500, "test": 1525}, {"train_extra": 19998}
PACKAGES = {
    "images": ("leftImg8bit_trainvaltest.zip", "leftImg8bit", ("leftImg8bit.png",), FINE),
    "fine": ("gtFine_trainvaltest.zip", "gtFine", ("gtFine_labelIds.png", "gtFine_instanceIds.png"), FINE),
    "disparity": ("disparity_trainvaltest.zip", "disparity", ("disparity.png",), FINE),
    "camera": ("camera_trainvaltest.zip", "camera", ("camera.json",), FINE),
    "images_extra": ("leftImg8bit_trainextra.zip", "leftImg8bit", ("leftImg8bit.png",), EXTRA),
    "coarse": (
        "gtCoarse.zip", "gtCoarse", ("gtCoarse_labelIds.png", "gtCoarse_instanceIds.png"),
        {"train": 2975, "val": 500, **EXTRA},
    ),
    "disparity_extra": ("disparity_trainextra.zip", "disparity", ("disparity.png",), EXTRA),
    "camera_extra": ("camera_trainextra.zip", "camera", ("camera.json",), EXTRA),
}  # fmt: skip


def list_names(root: Path, folder: str, split: str, ending: str) -> set[str]:
    """<city>/<city>_<sequence>_<frame> of the files there."""
    at = root / folder / split
    return {path.relative_to(at).as_posix().removesuffix(f"_{ending}") for path in at.glob(f"*/*_{ending}")}


def check_package(root: Path, name: str) -> tuple[bool, bool]:
    """Say what there is of a package. Returns whether any of it is there, and whether all of it is."""
    _, folder, endings, counts = PACKAGES[name]
    any_there, whole = False, True
    for split, count in counts.items():
        pictures = list_names(root, "leftImg8bit", split, "leftImg8bit.png")
        for ending in endings:
            found = list_names(root, folder, split, ending)
            any_there, whole = any_there or bool(found), whole and len(found) >= count
            if not found:
                continue
            print(f"{name}: {split}: {len(found)} of {count} *_{ending}")
            for what, odd in (("without an image", found - pictures), ("that images lack", pictures - found)):
                if odd and folder != "leftImg8bit":
                    print(f"  {len(odd)} {what}, the first is {min(odd)}_{ending}")
                    whole = whole and what != "without an image"
    return any_there, any_there and whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--need", nargs="*", choices=PACKAGES, default=["images", "fine"])
    options = parser.parse_args()
    nested = [path for path in options.root.glob("*/leftImg8bit") if path.is_dir()]
    if nested and not (options.root / "leftImg8bit").is_dir():
        print(f"{nested[0]} is one folder too deep: move it to {options.root / 'leftImg8bit'}, and others like it.")
    states = {name: check_package(options.root, name) for name in PACKAGES}
    missing = [name for name, (there, whole) in states.items() if (there or name in options.need) and not whole]
    for name in missing:
        print(f"To fetch: {PACKAGES[name][0]} ({name}) from {DOWNLOADS}, and unpack it in {options.root}.")
    absent = [name for name, (there, _) in states.items() if not there and name not in options.need]
    print(f"Not there, and not needed: {', '.join(absent) or 'nothing'}.")
    raise SystemExit(1 if missing else 0)


if __name__ == "__main__":
    main()
