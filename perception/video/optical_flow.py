"""Where each pixel of a frame was in the frame before: optical flow, and whether it can be believed. numpy and cv2."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_SIZE = 640
"""Pixels of the longer side at which motion is measured, at most: things of two pixels have a motion of their own."""
SCENE_CUT_CHANGE = 40.0
"""Mean change of the gray values that no motion explains: another scene."""
MAX_GRAY_DIFFERENCE = 6
"""Difference in gray values to where the flow says a pixel came from, over which it did not."""
ROUND_TRIP_PIXELS, ROUND_TRIP_RATIO = 1.0, 0.1
"""There and back a pixel ends where it began, but for so many pixels, at half the size, and this part of its way."""


class Motion(NamedTuple):
    """Where the pixels of a frame, or of what is as large as `motion_size` says, were in the frame before.

    columns, rows: float32 [h, w]; reliable: uint8 [h, w], 255 where the same thing was seen there, else 0
    """

    columns: NDArray[np.float32]
    rows: NDArray[np.float32]
    reliable: NDArray[np.uint8]

    def warp(self, values: NDArray, interpolation: int = cv2.INTER_LINEAR) -> NDArray:
        """[h, w] or [h, w, 2 to 4]: of each pixel, what was at its place before."""
        return _warp(values, self.columns, self.rows, interpolation)


class MotionEstimator:
    """Looks at one frame after the other and tells the motion since the last. Source: Kroeger et al. 2016."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._previous: list[NDArray[np.uint8]] = []

    def reset(self) -> None:
        """The next frame is the first one."""
        self._previous = []

    def __call__(self, image: NDArray[np.uint8]) -> Motion | None:
        """The motion since the last frame, uint8 RGB [H, W, 3], as large as `motion_size`; None after a cut."""
        before, self._previous = self._previous, _gray_pyramid(image)
        if not before or before[0].shape != self._previous[0].shape:
            return None
        (gray, small), (old, small_old) = self._previous, before
        if cv2.norm(gray, old, cv2.NORM_L1) / gray.size > SCENE_CUT_CHANGE:
            return None
        flow = self._compute_flow(gray, old)
        columns, rows = _flow_to_positions(flow)
        like = cv2.compare(cv2.absdiff(gray, _warp(old, columns, rows)), MAX_GRAY_DIFFERENCE, cv2.CMP_LE)  # type: ignore[call-overload]
        agreed = _consistency_mask(flow, self._compute_flow(small_old, small))
        known = cv2.bitwise_and(like, cv2.resize(agreed, gray.shape[::-1], interpolation=cv2.INTER_NEAREST))
        return Motion(columns, rows, np.asarray(known, np.uint8))

    def _compute_flow(self, gray: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[h, w, 2]: how far right and down each pixel of ``gray`` is in the other."""
        return np.asarray(self._flow.calc(gray, other, None), np.float32)  # type: ignore[call-overload]


def _consistency_mask(backward: NDArray[np.float32], forward: NDArray[np.float32]) -> NDArray[np.uint8]:
    """255 where the flow there and back leads to the pixel again, within the image; in the size of ``forward``.

    backward: from a frame to the one before; forward: from that, at half the size
    """
    height, width = forward.shape[:2]
    backward = np.asarray(
        cv2.resize(backward, (width, height), interpolation=cv2.INTER_NEAREST) * np.float32(0.5), np.float32
    )
    columns, rows = _flow_to_positions(backward)
    off, far = (cv2.magnitude(*cv2.split(way)) for way in (_warp(forward, columns, rows) + backward, backward))
    agreed = cv2.compare(off, cv2.addWeighted(far, ROUND_TRIP_RATIO, far, 0, ROUND_TRIP_PIXELS), cv2.CMP_LE)
    inside = (columns >= -0.5) & (rows >= -0.5) & (columns < width - 0.5) & (rows < height - 0.5)
    return np.asarray(cv2.copyTo(agreed, inside.view(np.uint8)), np.uint8)


def _flow_to_positions(flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Column and row of each pixel in the other frame."""
    columns, rows = (cv2.add(way, own) for way, own in zip(cv2.split(flow), _pixel_grid(*flow.shape[:2]), strict=True))
    return np.asarray(columns, np.float32), np.asarray(rows, np.float32)


@lru_cache(4)
def _pixel_grid(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Column and row of each pixel."""
    rows, columns = np.indices((height, width), np.float32)
    return columns, rows


def motion_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) at which motion is measured in images, and the past kept of maps, of (height, width, ...)."""
    scale = min(1.0, MAX_SIZE / max(shape[:2]))
    return max(16, round(shape[0] * scale)), max(16, round(shape[1] * scale))


def _gray_pyramid(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Gray of `motion_size`, and of half of it."""
    size = motion_size(image.shape)
    shrunk = image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(shrunk, cv2.COLOR_RGB2GRAY)
    half = max(16, size[1] // 2), max(16, size[0] // 2)
    return [np.asarray(part, np.uint8) for part in (gray, cv2.resize(gray, half, interpolation=cv2.INTER_AREA))]


def _warp(values: NDArray, columns: NDArray, rows: NDArray, interpolation: int = cv2.INTER_LINEAR) -> NDArray:
    return np.asarray(cv2.remap(values, columns, rows, interpolation, borderMode=cv2.BORDER_REPLICATE))
