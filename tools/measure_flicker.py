"""How steady label maps are from frame to frame, and how often a class stands where it cannot be.

perception predict RUN FILM --tasks segmentation --maps --out OUT
python tools/measure_flicker.py OUT/maps/FILM [CLASS [UPPER]] [--film FILM]

CLASS, an id, is looked for in the UPPER part of each picture (default 0.4): on a road film, road in the sky. With the
film, changes are also counted along its motion: not those that come from the camera's and the things' own way.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.types import IGNORE_INDEX, DataError
from perception.video.optical_flow import Eye, kept_size

NOTICED = 0.005
"""Share of the upper part from which on a class that cannot be there is counted as seen."""


class Flicker(NamedTuple):
    """frames: label maps that were read
    changed: per frame but the first, share of the pixels that are of another class than in the frame before
    flickered: the same, against the place in the frame before that a pixel comes from, of those whose place is known;
        NaN after a cut, and without the film
    largest: per frame but the first, share of the picture that its largest connected change covers
    above: per frame, share of the upper part that is of the class
    """

    frames: int
    changed: NDArray[np.float64]
    flickered: NDArray[np.float64]
    largest: NDArray[np.float64]
    above: NDArray[np.float64]


def measure(folder: Path, label: int | None = None, upper: float = 0.4, film: Path | None = None) -> Flicker:
    """Of the label maps in ``folder``, in the order of their names, which are those of the frames of ``film``.

    Raises DataError where there are fewer than two, where they are of several sizes, or more than the film's frames.
    """
    changed, flickered, largest, above, before = [], [], [], [], None
    frames, eye, pictures = 0, Eye(), _pictures(film) if film else None
    for path in sorted(folder.glob("*.png")):
        labels = _read(path)
        if labels.dtype != np.uint8:  # depth, beside the label maps
            continue
        frames += 1
        picture = next(pictures, None) if pictures else None
        if film and picture is None:
            raise DataError(f"{film} ends before {path}. Expected the film that the maps are of.")
        motion = None if picture is None else eye(_fitting(picture, labels.shape))
        if before is not None:
            if labels.shape != before.shape:
                raise DataError(
                    f"{path} is {labels.shape}, the one before it {before.shape}. Expected maps of one film."
                )
            change = (labels != before) & (labels != IGNORE_INDEX) & (before != IGNORE_INDEX)
            areas = cv2.connectedComponentsWithStats(change.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
            changed.append(change.mean())
            largest.append(areas.max(initial=0) / change.size)
            flickered.append(_flickered(labels, before, motion))
        if label is not None:
            above.append((labels[: round(upper * len(labels))] == label).mean())
        before = labels
    if frames < 2:
        raise DataError(f"{folder} has {frames} label maps (8-bit PNG). Expected two or more: predict FILM --maps.")
    return Flicker(frames, *(np.array(numbers) for numbers in (changed, flickered, largest, above)))


def _flickered(labels: NDArray[np.uint8], before: NDArray[np.uint8], motion) -> float:
    """Share of the pixels of known motion whose class is not that of the place that they come from."""
    if motion is None or not motion.known.any():
        return np.nan
    now, past = (
        cv2.resize(part, motion.known.shape[::-1], interpolation=cv2.INTER_NEAREST) for part in (labels, before)
    )
    past = motion.moved(past, cv2.INTER_NEAREST)
    known = (motion.known > 0) & (now != IGNORE_INDEX) & (past != IGNORE_INDEX)
    return float((now != past)[known].mean()) if known.any() else np.nan


def _pictures(film: Path) -> Iterator[NDArray[np.uint8]]:
    video = cv2.VideoCapture(str(film))
    if not video.isOpened():
        raise DataError(f"{film} cannot be read. Expected the film that the maps are of.")
    while True:
        found, picture = video.read()
        if not found:
            return
        yield np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def _fitting(picture: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """In the size in which motion is measured in a map of ``shape``."""
    return np.asarray(cv2.resize(picture, kept_size(shape)[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _read(path: Path) -> NDArray:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise DataError(f"{path} is no picture, or damaged. Remove it, or predict the film again.")
    return picture


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("label", nargs="?", type=int, metavar="CLASS")
    parser.add_argument("upper", nargs="?", type=float, default=0.4, metavar="UPPER")
    parser.add_argument("--film", type=Path)
    parsed = parser.parse_args(arguments)
    found = measure(parsed.maps, parsed.label, parsed.upper, parsed.film)
    print(
        f"{found.frames} frames: {found.changed.mean():.1%} of the pixels change from one to the next; the largest "
        f"connected change covers {found.largest.mean():.1%} on average, {found.largest.max():.1%} at most"
    )
    if np.isfinite(found.flickered).any():
        print(f"along the motion of the film {np.nanmean(found.flickered):.2%} of the pixels change: they flicker")
    if parsed.label is not None:
        print(
            f"class {parsed.label} covers {found.above.mean():.2%} of the upper {parsed.upper:.0%} on average, "
            f"{found.above.max():.1%} at most; more than {NOTICED:.1%} in {(found.above > NOTICED).sum()} frames"
        )


if __name__ == "__main__":
    main()
