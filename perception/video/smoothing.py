"""Temporal smoothing of segmentation masks and depth, without lag behind moving objects.

The past state is warped along the optical flow (`optical_flow.py`). Segmentation masks: each class has an exponential
mean per pixel, and the strongest class wins. Depth: an exponential mean, plus the rate of change in each part of the
image (Holt's double smoothing), which avoids a bias for approaching objects.
The past is ignored where the optical flow is not reliable, and after a scene cut.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.runtime.sources import Frame
from perception.types import DenseMap, Prediction, TaskSpec
from perception.video.optical_flow import Motion, MotionEstimator, motion_size

FADE_FRAMES = 6
"""The past fades over this many frames, for any time constant: each warp adds an error that smears thin objects."""
MAX_GAP = 1.0
"""Seconds between two frames after which the past is ignored."""
MAX_DEPTH_CHANGE = 0.15
"""A larger relative change of depth is treated as another object, not as noise."""
RATE_COLUMNS = 16
"""Columns of the grid in which the rate of change of depth is measured. The cells are square."""
MIN_KNOWN_SHARE = 0.2
"""Minimum share of pixels with a known change for a cell to measure its rate."""

ClassPlanes = dict[int, NDArray[np.uint8]]
"""Class -> uint8 [h, w]: 255 where only this class was seen, 0 where it was never seen."""


class DepthState(NamedTuple):
    """The smoothed depth of the last frame.

    Attributes:
        depth: float32 [h, w], metres.
        valid: uint8 [h, w], 0 or 1.
        rate: float32 [rows, columns], ratio of the depth to that of the frame before.
    """

    depth: NDArray[np.float32]
    valid: NDArray[np.uint8]
    rate: NDArray[np.float32]


class Smoother:
    """A post-processor that smooths segmentation masks and depth over time.

    A time constant (``seconds``) of 0.2 to 0.5 reduces flicker without hiding changes. Segmentation masks change only
    if it is longer than the time between two frames. Values above 1 add little (`FADE_FRAMES`).
    """

    def __init__(self, specs: Mapping[str, TaskSpec], seconds: float) -> None:
        self._specs, self._seconds = specs, seconds
        self._motion_estimator = MotionEstimator()
        self.reset()

    def reset(self) -> None:
        """Clear the state."""
        self._motion_estimator.reset()
        self._time = 0.0
        self._labels: dict[str, ClassPlanes] = {}
        self._depths: dict[str, DepthState] = {}

    def __call__(self, frame: Frame, prediction: Prediction) -> Prediction:
        """Return the prediction with smoothed dense maps. Images and invalid predictions reset the state."""
        dense = {name: a for name, a in prediction.annotations.items() if isinstance(a, DenseMap)}
        if not prediction.valid or frame.time is None or not dense:
            self.reset()
            return prediction
        passed = frame.time - self._time
        if not 0 <= passed < MAX_GAP:
            self.reset()
        self._time = frame.time
        weight = math.hypot(passed / (self._seconds + passed), 1 / FADE_FRAMES)
        motion = self._motion_estimator(frame.image)
        annotations = dict(prediction.annotations)
        for name, found in dense.items():
            smooth = self._smooth_labels if self._specs[name].classes else self._smooth_depth
            annotations[name] = smooth(name, found, motion, weight)
        return dataclasses.replace(prediction, annotations=annotations)

    def _smooth_labels(self, name: str, found: DenseMap, motion: Motion | None, weight: float) -> DenseMap:
        """The class with the largest exponential mean at each pixel, along its motion."""
        values = np.asarray(found.values, np.uint8)
        size, past = motion_size(values.shape), self._labels.get(name)
        seen = _split_classes(values)
        if motion is None or past is None or motion.reliable.shape != size:
            self._labels[name] = {k: _resize(plane, size) for k, plane in seen.items()}
            return found
        carried, kept = _warp_planes(past, motion), {}
        nothing, anew = np.zeros(size, np.uint8), cv2.bitwise_not(motion.reliable)
        most, best = np.zeros(values.shape, np.uint8), values.copy()
        for k in {**seen, **carried}:
            before, now = carried.get(k, nothing), seen.get(k)
            small = nothing if now is None else _resize(now, size)
            mean = _blend(before, small, weight)
            if now is not None or cv2.countNonZero(mean):
                kept[k] = np.asarray(cv2.copyTo(small, anew, mean.copy()), np.uint8)
            if values.shape != size:  # the past has the smaller size, the new mask keeps its full resolution
                mean = _blend(_resize(before, values.shape), np.zeros_like(values) if now is None else now, weight)
            best = cv2.copyTo(np.full_like(best, k), cv2.compare(mean, most, cv2.CMP_GT), best)
            most = np.asarray(cv2.max(most, mean), np.uint8)
        self._labels[name] = kept
        best = np.asarray(best, np.uint8)
        return dataclasses.replace(found, values=best, valid=best < len(self._specs[name].classes))

    def _smooth_depth(self, name: str, found: DenseMap, motion: Motion | None, weight: float) -> DenseMap:
        """Blend the predicted past with the new metres; use the new metres alone where the depth jumps."""
        metres, size = np.asarray(found.values, np.float32), motion_size(found.values.shape)
        seen = np.asarray(cv2.resize(metres, size[::-1], interpolation=cv2.INTER_NEAREST), np.float32)
        valid = np.asarray(found.valid, np.bool_).view(np.uint8)
        valid = np.asarray(cv2.resize(valid, size[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
        parts = RATE_COLUMNS, max(1, round(RATE_COLUMNS * size[0] / size[1]))
        past = self._depths.get(name)
        if motion is None or past is None or motion.reliable.shape != size:
            self._depths[name] = DepthState(seen, valid, np.ones(parts[::-1], np.float32))
            return found
        carried = motion.warp(past.depth)
        calm = motion.warp(past.valid, cv2.INTER_NEAREST) & valid & motion.reliable
        change = carried * cv2.resize(past.rate, size[::-1], interpolation=cv2.INTER_LINEAR) - seen
        size_of_change = cv2.absdiff(change, 0)  # type: ignore[call-overload]
        calm &= np.asarray(cv2.compare(size_of_change, seen * np.float32(MAX_DEPTH_CHANGE), cv2.CMP_LT), np.uint8)
        drawn = cv2.copyTo(change, calm) * np.float32(1 - weight)
        share = cv2.resize(calm.astype(np.float32), parts, interpolation=cv2.INTER_AREA)
        grown = cv2.copyTo(
            cv2.divide(seen - carried, seen + carried), calm
        )  # half of the change: its noise has zero mean
        grown = cv2.resize(grown, parts, interpolation=cv2.INTER_AREA)
        rate = np.where(share > MIN_KNOWN_SHARE, 1 + 2 * grown / np.maximum(share, MIN_KNOWN_SHARE), past.rate)
        rate = (past.rate + weight * (rate - past.rate)).astype(np.float32)
        self._depths[name] = DepthState(seen + drawn, valid, rate)
        smoothed = metres + cv2.resize(drawn, metres.shape[::-1], interpolation=cv2.INTER_LINEAR)
        return dataclasses.replace(found, values=np.asarray(smoothed, np.float32))


def _split_classes(values: NDArray[np.uint8]) -> ClassPlanes:
    """Class -> its binary mask, for the classes present."""
    counts = np.asarray(cv2.calcHist([values], [0], None, [256], [0, 256])).ravel()
    return {k: (values == k).view(np.uint8) * np.uint8(255) for k in np.flatnonzero(counts).tolist()}


def _warp_planes(planes: ClassPlanes, motion: Motion) -> ClassPlanes:
    """Warp the planes, 0 where the motion is not reliable. Four planes take as long as one."""
    found, names = {}, list(planes)
    for i in range(0, len(names), 4):
        four = [*names[i : i + 4], *[names[i]] * (i + 4 - len(names))]
        found |= dict(zip(four, cv2.split(motion.warp(cv2.merge([planes[k] for k in four]))), strict=True))
    return {k: np.asarray(cv2.bitwise_and(plane, motion.reliable), np.uint8) for k, plane in found.items()}


def _blend(before: NDArray, now: NDArray, weight: float) -> NDArray[np.uint8]:
    return np.asarray(cv2.addWeighted(before, 1 - weight, now, weight, 0), np.uint8)


def _resize(plane: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Resize with area averaging when shrinking, bilinear when growing."""
    if plane.shape == tuple(size):
        return plane
    way = cv2.INTER_AREA if plane.shape[0] > size[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(plane, size[::-1], interpolation=way), np.uint8)
