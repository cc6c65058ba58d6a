"""Optical flow from each frame to the previous one, with a reliability mask. Uses only numpy and cv2."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_SIZE = 640
"""Maximum longer side in pixels for measuring motion. At this size, objects of two pixels still have a motion."""
SCENE_CUT_CHANGE = 40.0
"""A larger mean change of the gray values means a scene cut."""
MAX_GRAY_DIFFERENCE = 6
"""The flow of a pixel is not reliable if its gray value differs more from that of its origin."""
ROUND_TRIP_PIXELS, ROUND_TRIP_RATIO = 1.0, 0.1
"""Tolerance of the forward-backward check: pixels at half size, plus this share of the motion."""


class Motion(NamedTuple):
    """Position of each pixel in the previous frame, at the size given by `motion_size`.

    Attributes:
        columns: float32 [h, w].
        rows: float32 [h, w].
        reliable: uint8 [h, w], 255 where the motion is reliable, else 0.
    """

    columns: NDArray[np.float32]
    rows: NDArray[np.float32]
    reliable: NDArray[np.uint8]

    def warp(self, values: NDArray, interpolation: int = cv2.INTER_LINEAR) -> NDArray:
        """Warp values of the previous frame, [h, w] or [h, w, 2 to 4], to this frame."""
        return _warp(values, self.columns, self.rows, interpolation)


class MotionEstimator:
    """Estimates the motion between consecutive frames by DIS optical flow (Kroeger et al. 2016)."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._previous: list[NDArray[np.uint8]] = []

    def reset(self) -> None:
        """Forget the previous frame."""
        self._previous = []

    def __call__(self, image: NDArray[np.uint8]) -> Motion | None:
        """Return the motion since the last frame (uint8 RGB [H, W, 3]) at `motion_size`; None after a scene cut."""
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
        """[h, w, 2]: displacement (right, down) of each pixel from ``gray`` to ``other``."""
        return np.asarray(self._flow.calc(gray, other, None), np.float32)  # type: ignore[call-overload]


def _consistency_mask(backward: NDArray[np.float32], forward: NDArray[np.float32]) -> NDArray[np.uint8]:
    """255 where the forward-backward check holds within the image; at the (half) size of ``forward``."""
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
    """Return the (height, width) at which motion is measured, and past maps are stored, for (height, width, ...)."""
    scale = min(1.0, MAX_SIZE / max(shape[:2]))
    return max(16, round(shape[0] * scale)), max(16, round(shape[1] * scale))


def _gray_pyramid(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Gray image at `motion_size` and at half of it."""
    size = motion_size(image.shape)
    shrunk = image if image.shape[:2] == size else cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(shrunk, cv2.COLOR_RGB2GRAY)
    half = max(16, size[1] // 2), max(16, size[0] // 2)
    return [np.asarray(part, np.uint8) for part in (gray, cv2.resize(gray, half, interpolation=cv2.INTER_AREA))]


def _warp(values: NDArray, columns: NDArray, rows: NDArray, interpolation: int = cv2.INTER_LINEAR) -> NDArray:
    return np.asarray(cv2.remap(values, columns, rows, interpolation, borderMode=cv2.BORDER_REPLICATE))
