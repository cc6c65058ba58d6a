"""Segmentation masks and depth that do not flicker from frame to frame, and do not lag behind what moves.

The past is carried along the motion of the image (`motion.py`): of segmentation masks, how much each class was seen at
each
pixel, as an exponential mean of which the strongest class is told; of depth, an exponential mean beside the rate at
which it changes in each part of the image (Holt's double smoothing), so that what comes nearer is not told too far.
Where a pixel's way is not sure, and after a cut, the past counts for nothing.
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
"""However long the time constant, the past fades over so many frames, too: with each of them the way of a pixel is less
exact, and thin things would be left behind."""
MAX_GAP = 1.0
"""Seconds between frames after which the past counts for nothing."""
MAX_DEPTH_CHANGE = 0.15
"""Relative change of depth that is none of noise but of another thing."""
RATE_COLUMNS = 16
"""Columns of the image's parts in which the rate of change of depth is measured; as many rows as are square."""
MIN_KNOWN_SHARE = 0.2
"""Share of a part whose change is known, from which on its rate is measured."""

ClassPlanes = dict[int, NDArray[np.uint8]]
"""Class -> uint8 [h, w]: 255 where nothing else was seen, 0 where it was not."""


class DepthState(NamedTuple):
    """metres: float32 [h, w]; valid: uint8 [h, w], 0 or 1; rate: float32 [rows, columns], change from frame to frame"""

    depth: NDArray[np.float32]
    valid: NDArray[np.uint8]
    rate: NDArray[np.float32]


class Smoother:
    """A step of a pipeline.

    seconds: the time constant; 0.2 to 0.5 calm a network down without hiding anything, segmentation masks only where
    it is
        longer than the time from frame to frame, and more than 1 adds little (`FRAMES`)
    """

    def __init__(self, specs: Mapping[str, TaskSpec], seconds: float) -> None:
        self._specs, self._seconds = specs, seconds
        self._motion_estimator = MotionEstimator()
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._motion_estimator.reset()
        self._time = 0.0
        self._labels: dict[str, ClassPlanes] = {}
        self._depths: dict[str, DepthState] = {}

    def __call__(self, frame: Frame, prediction: Prediction) -> Prediction:
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
        """The class that was seen most at each pixel, of late and along its way."""
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
            if values.shape != size:  # the past as it was kept, what is seen in all its detail
                mean = _blend(_resize(before, values.shape), np.zeros_like(values) if now is None else now, weight)
            best = cv2.copyTo(np.full_like(best, k), cv2.compare(mean, most, cv2.CMP_GT), best)
            most = np.asarray(cv2.max(most, mean), np.uint8)
        self._labels[name] = kept
        best = np.asarray(best, np.uint8)
        return dataclasses.replace(found, values=best, valid=best < len(self._specs[name].classes))

    def _smooth_depth(self, name: str, found: DenseMap, motion: Motion | None, weight: float) -> DenseMap:
        """Metres as they were and have changed since, drawn towards those that are seen; where these jump, the seen."""
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
        grown = cv2.copyTo(cv2.divide(seen - carried, seen + carried), calm)  # half of it: noise of either has no mean
        grown = cv2.resize(grown, parts, interpolation=cv2.INTER_AREA)
        rate = np.where(share > MIN_KNOWN_SHARE, 1 + 2 * grown / np.maximum(share, MIN_KNOWN_SHARE), past.rate)
        rate = (past.rate + weight * (rate - past.rate)).astype(np.float32)
        self._depths[name] = DepthState(seen + drawn, valid, rate)
        smoothed = metres + cv2.resize(drawn, metres.shape[::-1], interpolation=cv2.INTER_LINEAR)
        return dataclasses.replace(found, values=np.asarray(smoothed, np.float32))


def _split_classes(values: NDArray[np.uint8]) -> ClassPlanes:
    """Of each class that is there, where it is."""
    counts = np.asarray(cv2.calcHist([values], [0], None, [256], [0, 256])).ravel()
    return {k: (values == k).view(np.uint8) * np.uint8(255) for k in np.flatnonzero(counts).tolist()}


def _warp_planes(planes: ClassPlanes, motion: Motion) -> ClassPlanes:
    """The planes along the motion, 0 where the way is not known. Four take as long as one."""
    found, names = {}, list(planes)
    for i in range(0, len(names), 4):
        four = [*names[i : i + 4], *[names[i]] * (i + 4 - len(names))]
        found |= dict(zip(four, cv2.split(motion.warp(cv2.merge([planes[k] for k in four]))), strict=True))
    return {k: np.asarray(cv2.bitwise_and(plane, motion.reliable), np.uint8) for k, plane in found.items()}


def _blend(before: NDArray, now: NDArray, weight: float) -> NDArray[np.uint8]:
    return np.asarray(cv2.addWeighted(before, 1 - weight, now, weight, 0), np.uint8)


def _resize(plane: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Of another size: the mean of the pixels that it covers, or what lies between them."""
    if plane.shape == tuple(size):
        return plane
    way = cv2.INTER_AREA if plane.shape[0] > size[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(plane, size[::-1], interpolation=way), np.uint8)
