"""How steady label maps are from frame to frame, and how often a class stands where it cannot be.

perception predict RUN FILM --tasks segmentation --maps --out OUT
python tools/measure_flicker.py OUT/maps/FILM [CLASS [UPPER]]

CLASS, an id, is looked for in the UPPER part of each picture (default 0.4): on a road film, road in the sky.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.types import IGNORE_INDEX, DataError

NOTICED = 0.005
"""Share of the upper part from which on a class that cannot be there is counted as seen."""


class Flicker(NamedTuple):
    """frames: label maps that were read
    changed: per frame but the first, share of the pixels that are of another class than in the frame before
    largest: per frame but the first, share of the picture that its largest connected change covers
    above: per frame, share of the upper part that is of the class
    """

    frames: int
    changed: NDArray[np.float64]
    largest: NDArray[np.float64]
    above: NDArray[np.float64]


def measure(folder: Path, label: int | None = None, upper: float = 0.4) -> Flicker:
    """Of the label maps in ``folder``, in the order of their names. Raises DataError where there are fewer than two."""
    changed, largest, above, before = [], [], [], None
    frames = 0
    for path in sorted(folder.glob("*.png")):
        labels = _read(path)
        if labels.dtype != np.uint8:  # depth, beside the label maps
            continue
        frames += 1
        if before is not None:
            if labels.shape != before.shape:
                raise DataError(
                    f"{path} is {labels.shape}, the one before it {before.shape}. Expected maps of one film."
                )
            change = (labels != before) & (labels != IGNORE_INDEX) & (before != IGNORE_INDEX)
            areas = cv2.connectedComponentsWithStats(change.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
            changed.append(change.mean())
            largest.append(areas.max(initial=0) / change.size)
        if label is not None:
            above.append((labels[: round(upper * len(labels))] == label).mean())
        before = labels
    if frames < 2:
        raise DataError(f"{folder} has {frames} label maps (8-bit PNG). Expected two or more: predict FILM --maps.")
    return Flicker(frames, np.array(changed), np.array(largest), np.array(above))


def _read(path: Path) -> NDArray:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise DataError(f"{path} is no picture, or damaged. Remove it, or predict the film again.")
    return picture


def main(folder: str, label: str | None = None, upper: str = "0.4") -> None:
    found = measure(Path(folder), None if label is None else int(label), float(upper))
    print(
        f"{found.frames} frames: {found.changed.mean():.1%} of the pixels change from one to the next; the largest "
        f"connected change covers {found.largest.mean():.1%} on average, {found.largest.max():.1%} at most"
    )
    if label is not None:
        print(
            f"class {label} covers {found.above.mean():.2%} of the upper {float(upper):.0%} on average, "
            f"{found.above.max():.1%} at most; more than {NOTICED:.1%} in {(found.above > NOTICED).sum()} frames"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
