"""How far a graph of less precision is from the network: its own differences, image by image. numpy, no torch.

No tolerance decides here: the metrics do (`perception.export.precision_gate`). What is no number any more is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from perception.export.parity import ParityError, iou
from perception.types import TaskSpec

MATCH_IOU = 0.5
"""IoU from which a box of one side is that of the other, where both are of one class and over the task's threshold."""


class Deviation:
    """Accumulates over batches. ``largest``: output -> the largest difference seen.

    Of a segmentation mask it is the share of pixels of another class in one image; of a quantity, the difference of the
    logarithms; of boxes and scores, that of boxes that both sides show, and ``<task>.unmatched`` is the share of those
    that one side alone shows.
    """

    def __init__(self, specs: Mapping[str, TaskSpec]) -> None:
        self.specs = specs
        self.largest: dict[str, float] = {}
        self._detection_counts: dict[str, int] = {}
        self._unmatched_counts: dict[str, int] = {}

    def update(self, where: str, expected: Mapping[str, NDArray], actual: Mapping[str, NDArray]) -> None:
        """Compare torch's ``expected`` with the file's. Raises Disagreement where the file alone is not finite."""
        for key, values in actual.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all() and np.isfinite(expected[key]).all():
                raise ParityError(f"{key} of {where} is not finite in less precision, and is in torch. Export fp32.")
            if ".raw." in key:
                self._record_largest(key, np.abs(values.astype(np.float64) - expected[key]))
        for name, spec in self.specs.items():
            keys = [f"{name}.{output}" for output in spec.outputs]
            if spec.annotation_type == "instances":
                for i in range(len(expected[keys[0]])):
                    self._update_boxes(name, spec, *([side[key][i] for key in keys[:3]] for side in (expected, actual)))
                continue
            for key in keys:
                if spec.annotation_type == "dense" and spec.classes:
                    self._record_largest(key, (expected[key] != actual[key]).mean((1, 2)))
                elif spec.annotation_type == "dense":
                    with np.errstate(divide="ignore"):
                        self._record_largest(key, np.abs(np.log(expected[key]) - np.log(actual[key])))
                else:
                    self._record_largest(key, np.abs(expected[key] - actual[key]))

    def compute(self) -> dict[str, float]:
        """The largest differences, and the shares of boxes that only one side shows."""
        shares = {
            f"{name}.unmatched": self._unmatched_counts[name] / max(1, shown)
            for name, shown in self._detection_counts.items()
        }
        return self.largest | shares

    def _update_boxes(self, name: str, spec: TaskSpec, expected: list[NDArray], actual: list[NDArray]) -> None:
        ours, theirs = (tuple(part[side[1] >= spec.score_threshold] for part in side) for side in (expected, actual))
        free, pairs = set(range(len(theirs[0]))), 0
        for box, score, label in zip(*ours, strict=True):
            overlaps = iou(box, theirs[0]) * (theirs[2] == label)
            best = max(free, key=overlaps.__getitem__, default=None)
            if best is not None and overlaps[best] >= MATCH_IOU:
                free.remove(best)
                pairs += 1
                self._record_largest(f"{name}.boxes", np.abs(theirs[0][best] - box))
                self._record_largest(f"{name}.scores", np.abs(theirs[1][best] - score))
        self._detection_counts[name] = self._detection_counts.get(name, 0) + len(ours[0]) + len(theirs[0])
        self._unmatched_counts[name] = self._unmatched_counts.get(name, 0) + len(ours[0]) + len(theirs[0]) - 2 * pairs

    def _record_largest(self, key: str, values: NDArray) -> None:
        self.largest[key] = max(self.largest.get(key, 0.0), float(np.max(values, initial=0.0)))
