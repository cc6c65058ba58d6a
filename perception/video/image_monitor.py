"""Image monitor (M1): detects images that must not be acted on (black, white, blank, blurred, covered, frozen).

It checks a gray image of `ANALYSIS_SIZE` pixels. Clean street, indoor and simulated images stay within the limits with
a margin. A short fault is not flagged; `MIN_FAULT_FRAMES` sets the duration per fault.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.runtime.sources import Frame
from perception.types import Prediction

ANALYSIS_SIZE = 320
"""Longer side of the checked image, in pixels."""
CELL_SIZE = 16
"""Side in pixels of the cells that are checked for detail."""

DARK, BRIGHT = 16, 240
"""99 % of the gray values are below DARK in a black image, and above BRIGHT in a white one."""
MIN_CONTRAST = 4.0
"""Minimum standard deviation of the gray values."""
STEPS_PER_GRAY = 4
"""Resolution of gray value differences: steps per gray value."""
MIN_SHARPNESS = 0.25
"""Minimum ratio of the finest detail to detail four times as coarse. Clean street images are above 0.38, soft indoor
images above 0.27. Images with a Gaussian blur of 1/250 of the width, or a motion blur of 1/30, are below 0.23."""
MIN_DETAIL = 0.6
"""Minimum mean difference to the neighborhood in a cell with content, in gray values."""
COVERED_GRAY, NOISE_DETAIL = 25, 2.0
"""In cells darker than this gray value (as under a finger), smaller detail is treated as sensor noise."""
MIN_COVERED_SHARE = 0.38
"""A larger region without detail (share of the image) means a covered camera. The clearest sky had 0.35."""
MIN_SPANNING_SHARE = 0.25
"""The same for a region from the top to the bottom of the image, which a sky never forms."""
MAX_FROZEN_CHANGE = 0.02
"""A smaller mean change of the gray values means a frozen image. Sensor noise exceeds it even for a still camera."""

MIN_FAULT_FRAMES = {"black": 2, "white": 2, "blank": 2, "blurred": 3, "covered": 5, "frozen": 5}
"""Consecutive frames of a video after which a fault is flagged. A single image is flagged immediately."""


def find_faults(gray: NDArray[np.uint8]) -> list[str]:
    """Return the faults of a single gray image of `ANALYSIS_SIZE` pixels."""
    if quantile(gray, 0.99) < DARK:
        return ["black"]
    if quantile(gray, 0.01) > BRIGHT:
        return ["white"]
    if cv2.meanStdDev(gray)[1][0, 0] < MIN_CONTRAST:
        return ["blank"]
    found = ["covered"] if _is_covered(gray) else []
    return found if sharpness(gray) > MIN_SHARPNESS else [*found, "blurred"]


def sharpness(gray: NDArray[np.uint8]) -> float:
    """Return the ratio of the strongest detail at about one pixel to that at about four; the smaller of x and y."""
    values, found = gray.astype(np.float32), []
    for fine_size, coarse_size in (((7, 1), (25, 1)), ((1, 7), (1, 25))):
        near = cv2.GaussianBlur(values, fine_size, 1)
        far = cv2.GaussianBlur(near, coarse_size, 4)
        differences = cv2.absdiff(values, near), cv2.absdiff(near, far)
        fine, coarse = (
            quantile(cv2.convertScaleAbs(part, alpha=STEPS_PER_GRAY), 0.99) / STEPS_PER_GRAY for part in differences
        )
        found.append(fine / (coarse + 1))
    return min(found)


def quantile(values: NDArray, q: float) -> int:
    """Return the ``q`` quantile of uint8 values."""
    counted = np.cumsum(cv2.calcHist([values], [0], None, [256], [0, 256]))
    return int(np.searchsorted(counted, q * values.size))


def _is_covered(gray: NDArray[np.uint8]) -> bool:
    size = max(1, round(gray.shape[1] / CELL_SIZE)), max(1, round(gray.shape[0] / CELL_SIZE))
    values = gray.astype(np.float32)
    detail = cv2.resize(cv2.absdiff(values, cv2.GaussianBlur(values, (0, 0), 2)), size, interpolation=cv2.INTER_AREA)
    mean = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    blind = (detail < MIN_DETAIL) | ((detail < NOISE_DETAIL) & (mean < COVERED_GRAY))
    share, _ = _largest_region(blind & (mean < BRIGHT))
    spanned, spans = _largest_region(blind)
    return share >= MIN_COVERED_SHARE or (spans and spanned >= MIN_SPANNING_SHARE)


def _largest_region(cells: NDArray) -> tuple[float, bool]:
    """Share of the largest connected region, and whether it reaches from the first to the last row."""
    count, _, found, _ = cv2.connectedComponentsWithStats(cells.astype(np.uint8), connectivity=4)
    if count < 2:
        return 0.0, False
    best = found[1 + int(np.argmax(found[1:, cv2.CC_STAT_AREA]))]
    spans = best[cv2.CC_STAT_TOP] == 0 and best[cv2.CC_STAT_HEIGHT] == cells.shape[0]
    return float(best[cv2.CC_STAT_AREA]) / cells.size, bool(spans)


def to_small_gray(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert uint8 RGB [H, W, 3] to gray and shrink it by area to a longer side of at most `ANALYSIS_SIZE` pixels."""
    scale = ANALYSIS_SIZE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    return np.asarray(cv2.cvtColor(shrunk, cv2.COLOR_RGB2GRAY), np.uint8)


class ImageMonitor:
    """The first post-processor of a pipeline: marks predictions on bad images as not valid, and adds flags."""

    def __init__(self) -> None:
        self._previous: Any = None
        self._last: str | None = None
        self._streaks: dict[str, int] = {}

    def __call__(self, frame: Frame, prediction: Prediction) -> Prediction:
        """Return the prediction, marked not valid if the image has a fault."""
        gray = to_small_gray(frame.image)
        found = find_faults(gray)
        if frame.time is not None:
            found = self._keep_lasting(gray, found)
        if not found:
            return prediction
        flags = tuple(f"image: {name}" for name in found)
        return dataclasses.replace(prediction, flags=(*prediction.flags, *flags), valid=False)

    def _keep_lasting(self, gray: NDArray[np.uint8], faults: list[str]) -> list[str]:
        """Keep the faults that lasted long enough, and add "frozen"."""
        before, self._previous = self._previous, gray
        if before is not None and before.shape == gray.shape and np.mean(cv2.absdiff(gray, before)) < MAX_FROZEN_CHANGE:
            faults = [*faults, "frozen"]
        self._streaks = {name: self._streaks.get(name, 0) + 1 for name in faults}
        return [name for name, count in self._streaks.items() if count >= MIN_FAULT_FRAMES[name]]
