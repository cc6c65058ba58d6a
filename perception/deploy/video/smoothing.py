"""Label maps and depth that do not flicker from frame to frame, and do not lag behind what moves.

Labels are kept along the motion of the picture (optical flow, Kroeger et al. 2016) until another has been seen there
for about the time constant; where the picture is not what the flow says, and after a cut, the past counts for nothing.
Depth is an exponential mean at each pixel, begun anew where it changes by more than `JUMP`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.deploy.sources import Shot
from perception.types import DenseMap, Prediction, TaskSpec

WIDTH = 256
"""Pixels of the longer side at which motion is measured and labels are remembered."""
CUT = 40.0
"""Mean change of the gray values that no motion explains: another scene."""
PAUSE = 1.0
"""Seconds between frames after which the past counts for nothing."""
UNLIKE = 24
"""Difference in gray values to where the flow says a pixel came from, over which it did not."""
JUMP = 0.15
"""Relative change of depth that is none of noise but of another thing."""


class Smoother:
    """A step of a pipeline. seconds: the time constant; 0.2 to 0.5 calm a network down without hiding anything."""

    def __init__(self, specs: Mapping[str, TaskSpec], seconds: float) -> None:
        self._specs, self._seconds = specs, seconds
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._gray: NDArray[np.uint8] | None = None
        self._time = 0.0
        self._labels: dict[str, tuple[NDArray[np.uint8], NDArray[np.float32]]] = {}
        self._depths: dict[str, DenseMap] = {}

    def __call__(self, shot: Shot, prediction: Prediction) -> Prediction:
        if not prediction.valid or shot.time is None:
            self.reset()
            return prediction
        gray = _small_gray(shot.image)
        passed = shot.time - self._time
        weight = 1 - math.exp(-passed / self._seconds)
        motion = self._motion(gray) if passed < PAUSE else None
        if motion is None:
            self.reset()
        self._gray, self._time = gray, shot.time
        annotations = dict(prediction.annotations)
        for name, found in prediction.annotations.items():
            if isinstance(found, DenseMap):
                smooth = self._smooth_labels if self._specs[name].classes else self._smooth_depth
                annotations[name] = smooth(name, found, motion, weight)
        return dataclasses.replace(prediction, annotations=annotations)

    def _motion(self, gray: NDArray[np.uint8]) -> tuple[NDArray, NDArray[np.bool_]] | None:
        """Where each pixel was before [h, w, 2], and whether it was seen there; None after a cut."""
        before = self._gray
        if before is None or before.shape != gray.shape or cv2.norm(gray, before, cv2.NORM_L1) / gray.size > CUT:
            return None
        flow = self._flow.calc(gray, before, np.zeros((*gray.shape, 2), np.float32))
        rows, columns = np.indices(gray.shape, np.float32)
        places = flow + np.dstack([columns, rows])
        expected = _moved(before, places, cv2.INTER_LINEAR)
        inside = (places >= 0).all(2) & (places[..., 0] < gray.shape[1]) & (places[..., 1] < gray.shape[0])
        return places, inside & (cv2.absdiff(gray, expected) <= UNLIKE)

    def _smooth_labels(self, name: str, found: DenseMap, motion: tuple | None, weight: float) -> DenseMap:
        """A label that was held loses weight where another is seen, and gives way once that would outvote it."""
        values = np.asarray(found.values, np.uint8)
        height, width = self._gray.shape  # type: ignore[union-attr]
        seen = np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
        if motion is None or name not in self._labels:
            self._labels[name] = seen, np.full(seen.shape, 0.5, np.float32)
            return found
        places, known = motion
        labels, weights = self._labels[name]
        held = _moved(labels, places, cv2.INTER_NEAREST)
        trust = np.where(known, _moved(weights, places, cv2.INTER_LINEAR), np.float32(0))
        same = held == seen
        trust = np.where(same, trust + weight * (1 - trust), trust * (1 - weight))
        keep = ~same & (trust > 0.9 * (1 - weight) / (2 - weight))
        labels = np.where(keep, held, seen)
        self._labels[name] = labels, np.where(same | keep, trust, 0.5).astype(np.float32)
        if not keep.any():
            return found
        large = values.shape[1], values.shape[0]
        override = cv2.resize(keep.astype(np.uint8), large, interpolation=cv2.INTER_NEAREST)
        smoothed = values.copy()
        cv2.copyTo(cv2.resize(labels, large, interpolation=cv2.INTER_NEAREST), override, smoothed)
        return dataclasses.replace(found, values=smoothed, valid=smoothed < len(self._specs[name].classes))

    def _smooth_depth(self, name: str, found: DenseMap, motion: tuple | None, weight: float) -> DenseMap:
        before = self._depths.get(name)
        if motion is not None and before is not None and before.values.shape == found.values.shape:
            change = found.values - before.values
            calm = (np.abs(change) < JUMP * before.values) & before.valid & found.valid
            values = found.values - np.float32(1 - weight) * np.where(calm, change, np.float32(0))
            found = dataclasses.replace(found, values=values)
        self._depths[name] = found
        return found


def _moved(values: NDArray, places: NDArray, interpolation: int) -> NDArray:
    """[h, w]: of each pixel, what was at its place before."""
    return np.asarray(cv2.remap(values, places[..., 0], places[..., 1], interpolation, borderMode=cv2.BORDER_REPLICATE))


def _small_gray(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = min(1.0, WIDTH / max(image.shape[:2]))
    size = max(16, round(image.shape[1] * scale)), max(16, round(image.shape[0] * scale))
    gray = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return np.asarray(gray, np.uint8)
