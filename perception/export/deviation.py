"""How far a graph of less precision is from the network: its own differences, picture by picture. numpy, no torch.

No tolerance decides here: the metrics do (`perception.export.precision_gate`). What is no number any more is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from perception.export.parity import Disagreement, iou
from perception.types import TaskSpec

SAME_BOX = 0.5
"""IoU from which a box of one side is that of the other, where both are of one class and over the task's threshold."""


class Deviation:
    """Accumulates over batches. ``largest``: output -> the largest difference seen.

    Of a label map it is the share of pixels of another class in one picture; of a quantity, the difference of the
    logarithms; of boxes and scores, that of boxes that both sides show, and ``<task>.unmatched`` is the share of those
    that one side alone shows.
    """

    def __init__(self, specs: Mapping[str, TaskSpec]) -> None:
        self.specs = specs
        self.largest: dict[str, float] = {}
        self._shown: dict[str, int] = {}
        self._alone: dict[str, int] = {}

    def add(self, where: str, wanted: Mapping[str, NDArray], found: Mapping[str, NDArray]) -> None:
        """Compare torch's ``wanted`` with the file's. Raises Disagreement where the file alone is not finite."""
        for key, values in found.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all() and np.isfinite(wanted[key]).all():
                raise Disagreement(f"{key} of {where} is not finite in less precision, and is in torch. Export fp32.")
            if ".raw." in key:
                self._note(key, np.abs(values.astype(np.float64) - wanted[key]))
        for name, spec in self.specs.items():
            keys = [f"{name}.{output}" for output in spec.outputs]
            if spec.shape == "instances":
                for i in range(len(wanted[keys[0]])):
                    self._add_boxes(name, spec, *([side[key][i] for key in keys[:3]] for side in (wanted, found)))
                continue
            for key in keys:
                if spec.shape == "dense" and spec.classes:
                    self._note(key, (wanted[key] != found[key]).mean((1, 2)))
                elif spec.shape == "dense":
                    with np.errstate(divide="ignore"):
                        self._note(key, np.abs(np.log(wanted[key]) - np.log(found[key])))
                else:
                    self._note(key, np.abs(wanted[key] - found[key]))

    def finish(self) -> dict[str, float]:
        """The largest differences, and the shares of boxes that only one side shows."""
        shares = {f"{name}.unmatched": self._alone[name] / max(1, shown) for name, shown in self._shown.items()}
        return self.largest | shares

    def _add_boxes(self, name: str, spec: TaskSpec, wanted: list[NDArray], found: list[NDArray]) -> None:
        ours, theirs = (tuple(part[side[1] >= spec.threshold] for part in side) for side in (wanted, found))
        free, pairs = set(range(len(theirs[0]))), 0
        for box, score, label in zip(*ours, strict=True):
            overlaps = iou(box, theirs[0]) * (theirs[2] == label)
            best = max(free, key=overlaps.__getitem__, default=None)
            if best is not None and overlaps[best] >= SAME_BOX:
                free.remove(best)
                pairs += 1
                self._note(f"{name}.boxes", np.abs(theirs[0][best] - box))
                self._note(f"{name}.scores", np.abs(theirs[1][best] - score))
        self._shown[name] = self._shown.get(name, 0) + len(ours[0]) + len(theirs[0])
        self._alone[name] = self._alone.get(name, 0) + len(ours[0]) + len(theirs[0]) - 2 * pairs

    def _note(self, key: str, values: NDArray) -> None:
        self.largest[key] = max(self.largest.get(key, 0.0), float(np.max(values, initial=0.0)))
