"""Images on which no one should act (M1): black, white, blank, blurred, covered or frozen.

Judged on a gray image of `WIDTH` pixels, by bounds that clean street, indoor and simulated images keep with room to
spare. A camera that is bad for a moment is no news; what counts is set per fault in `PATIENCE`.
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
"""Pixels of the longer side of what is judged."""
CELL_SIZE = 16
"""Pixels of the cells in which detail is looked for."""

DARK, BRIGHT = 16, 240
"""Gray values that 99 % of a black image stay under, of a white one stay over."""
MIN_CONTRAST = 4.0
"""Standard deviation of the gray values that an image has at least."""
STEPS_PER_GRAY = 4
"""Of a gray value, in which differences are counted."""
MIN_SHARPNESS = 0.25
"""Finest detail relative to that four times as coarse. Clean images of streets have over 0.38, soft ones of rooms
over 0.27; those blurred by a Gaussian of 1/250 of their width, or along 1/30 of it, under 0.23."""
MIN_DETAIL = 0.6
"""Mean difference to the neighbourhood in a cell that shows something, in gray values."""
COVERED_GRAY, NOISE_DETAIL = 25, 2.0
"""Where it is as dark as under a finger, the noise of the sensor is no detail: gray value, and detail."""
MIN_COVERED_SHARE = 0.38
"""Share of the image that one region without detail may have; the clearest sky had 0.35."""
MIN_SPANNING_SHARE = 0.25
"""The same where it reaches from the top to the bottom, as no sky does."""
MAX_FROZEN_CHANGE = 0.02
"""Mean change of the gray values in which even a camera at rest is over, by the noise of its sensor."""

MIN_FAULT_FRAMES = {"black": 2, "white": 2, "blank": 2, "blurred": 3, "covered": 5, "frozen": 5}
"""Frames in a row after which a fault of a video is flagged. An image on its own is flagged at once."""


def find_faults(gray: NDArray[np.uint8]) -> list[str]:
    """What is wrong with an image of `WIDTH` pixels, apart from time."""
    if quantile(gray, 0.99) < DARK:
        return ["black"]
    if quantile(gray, 0.01) > BRIGHT:
        return ["white"]
    if cv2.meanStdDev(gray)[1][0, 0] < MIN_CONTRAST:
        return ["blank"]
    found = ["covered"] if _is_covered(gray) else []
    return found if sharpness(gray) > MIN_SHARPNESS else [*found, "blurred"]


def sharpness(gray: NDArray[np.uint8]) -> float:
    """The strongest detail of about one pixel relative to that of about four, in the direction where there is less."""
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
    """The value that ``q`` of uint8 values do not exceed."""
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
    """uint8 RGB [H, W, 3] to gray with a longer side of `WIDTH` pixels, each the mean of those it stands for."""
    scale = ANALYSIS_SIZE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    return np.asarray(cv2.cvtColor(shrunk, cv2.COLOR_RGB2GRAY), np.uint8)


class ImageMonitor:
    """The first step of a pipeline: predictions on bad images are marked not valid, and the flags say why."""

    def __init__(self) -> None:
        self._previous: Any = None
        self._last: str | None = None
        self._streaks: dict[str, int] = {}

    def __call__(self, frame: Frame, prediction: Prediction) -> Prediction:
        gray = to_small_gray(frame.image)
        found = find_faults(gray)
        if frame.time is not None:
            found = self._keep_lasting(gray, found)
        if not found:
            return prediction
        flags = tuple(f"image: {name}" for name in found)
        return dataclasses.replace(prediction, flags=(*prediction.flags, *flags), valid=False)

    def _keep_lasting(self, gray: NDArray[np.uint8], faults: list[str]) -> list[str]:
        """Those of the faults that have lasted, and whether nothing moves any more."""
        before, self._previous = self._previous, gray
        if before is not None and before.shape == gray.shape and np.mean(cv2.absdiff(gray, before)) < MAX_FROZEN_CHANGE:
            faults = [*faults, "frozen"]
        self._streaks = {name: self._streaks.get(name, 0) + 1 for name in faults}
        return [name for name, count in self._streaks.items() if count >= MIN_FAULT_FRAMES[name]]
