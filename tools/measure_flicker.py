"""How steady segmentation masks are from frame to frame, and how often a class stands where it cannot be.

perception predict RUN VIDEO --tasks segmentation --maps --out OUT
python tools/measure_flicker.py OUT/maps/VIDEO [CLASS [UPPER]] [--video VIDEO]

CLASS, an id, is looked for in the UPPER part of each image (default 0.4): on a road video, road in the sky. With the
video, changes are also counted along its motion: not those that come from the camera's and the things' own way.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.types import IGNORE_INDEX, DataError
from perception.video.optical_flow import MotionEstimator, motion_size

MIN_SHARE = 0.005
"""Share of the upper part from which on a class that cannot be there is counted as seen."""


class Flicker(NamedTuple):
    """frames: segmentation masks that were read
    changed_shares: per frame but the first, share of the pixels that are of another class than in the frame before
    flicker_shares: the same, against the place in the frame before that a pixel comes from, of those whose place is
    known;
        NaN after a cut, and without the video
    largest_changes: per frame but the first, share of the image that its largest connected change covers
    class_shares: per frame, share of the upper part that is of the class
    """

    num_frames: int
    changed_shares: NDArray[np.float64]
    flicker_shares: NDArray[np.float64]
    largest_changes: NDArray[np.float64]
    class_shares: NDArray[np.float64]


def measure_flicker(
    folder: Path, class_id: int | None = None, upper: float = 0.4, video: Path | None = None
) -> Flicker:
    """Of the segmentation masks in ``folder``, in the order of their names, which are those of the frames of ``video``.

    Raises DataError where there are fewer than two, where they are of several sizes, or more than the video's frames.
    """
    changed, flickered, largest, above, before = [], [], [], [], None
    frames, eye, pictures = 0, MotionEstimator(), _read_frames(video) if video else None
    for path in sorted(folder.glob("*.png")):
        labels = _read_map(path)
        if labels.dtype != np.uint8:  # depth, beside the segmentation masks
            continue
        frames += 1
        picture = next(pictures, None) if pictures else None
        if video and picture is None:
            raise DataError(f"{video} ends before {path}. Expected the video that the maps are of.")
        motion = None if picture is None else eye(_resize_for_flow(picture, labels.shape))
        if before is not None:
            if labels.shape != before.shape:
                raise DataError(
                    f"{path} is {labels.shape}, the one before it {before.shape}. Expected maps of one video."
                )
            change = (labels != before) & (labels != IGNORE_INDEX) & (before != IGNORE_INDEX)
            areas = cv2.connectedComponentsWithStats(change.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
            changed.append(change.mean())
            largest.append(areas.max(initial=0) / change.size)
            flickered.append(_flicker_share(labels, before, motion))
        if class_id is not None:
            above.append((labels[: round(upper * len(labels))] == class_id).mean())
        before = labels
    if frames < 2:
        raise DataError(
            f"{folder} has {frames} segmentation masks (8-bit PNG). Expected two or more: predict VIDEO --maps."
        )
    return Flicker(frames, *(np.array(numbers) for numbers in (changed, flickered, largest, above)))


def _flicker_share(labels: NDArray[np.uint8], previous: NDArray[np.uint8], motion) -> float:
    """Share of the pixels of known motion whose class is not that of the place that they come from."""
    if motion is None or not motion.reliable.any():
        return np.nan
    now, past = (
        cv2.resize(part, motion.reliable.shape[::-1], interpolation=cv2.INTER_NEAREST) for part in (labels, previous)
    )
    past = motion.warp(past, cv2.INTER_NEAREST)
    known = (motion.reliable > 0) & (now != IGNORE_INDEX) & (past != IGNORE_INDEX)
    return float((now != past)[known].mean()) if known.any() else np.nan


def _read_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise DataError(f"{path} cannot be read. Expected the video that the maps are of.")
    while True:
        found, picture = video.read()
        if not found:
            return
        yield np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def _resize_for_flow(image: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """In the size in which motion is measured in a map of ``shape``."""
    return np.asarray(cv2.resize(image, motion_size(shape)[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _read_map(path: Path) -> NDArray:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise DataError(f"{path} is no image, or damaged. Remove it, or predict the video again.")
    return picture


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("label", nargs="?", type=int, metavar="CLASS")
    parser.add_argument("upper", nargs="?", type=float, default=0.4, metavar="UPPER")
    parser.add_argument("--video", type=Path)
    parsed = parser.parse_args(arguments)
    found = measure_flicker(parsed.maps, parsed.label, parsed.upper, parsed.video)
    print(
        f"{found.num_frames} frames: {found.changed_shares.mean():.1%} of the "
        "pixels change from one to the next; the largest "
        f"connected change covers {found.largest_changes.mean():.1%} on average, "
        f"{found.largest_changes.max():.1%} at most"
    )
    if np.isfinite(found.flicker_shares).any():
        print(
            f"along the motion of the video {np.nanmean(found.flicker_shares):.2%} of the pixels change: they flicker"
        )
    if parsed.label is not None:
        print(
            f"class {parsed.label} covers {found.class_shares.mean():.2%} of the upper {parsed.upper:.0%} on average, "
            f"{found.class_shares.max():.1%} at most; more than {MIN_SHARE:.1%} in "
            f"{(found.class_shares > MIN_SHARE).sum()} frames"
        )


if __name__ == "__main__":
    main()
