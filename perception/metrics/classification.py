"""Accuracy of picture labels: top-1 and top-5 of one class, or average precision of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.metrics.metric import Records, mean
from perception.types import ImageLabel


class _Label(NamedTuple):
    probabilities: NDArray[np.float64]
    truth: NDArray[np.bool_]
    labelled: NDArray[np.bool_]


class ClassificationMetric(Records[_Label]):
    """Accuracy of one class per picture, or the mean average precision of several.

    * One class: top1, and top5 where there are more than five classes (with fewer it is 1 by definition, so it is not
      given). Of equal probabilities the class named first wins.
    * Several (``multi_label``): map, the mean over classes of the average precision without interpolation (as
      scikit-learn's average_precision_score). A picture counts for the classes that its source labels; a class
      without a positive picture is in no mean.

    classes: names, in the order of the probabilities
    """

    def __init__(self, classes: Sequence[str], multi_label: bool = False) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.multi_label = multi_label
        self.protocol = (
            "Mean average precision without interpolation, over the classes with a positive picture."
            if multi_label
            else "Share of pictures whose true class is the most probable one (top 1), or among the five (top 5)."
        )

    def update(self, id: str, prediction: ImageLabel, target: ImageLabel) -> None:
        """Account for one picture. Raises ValueError naming ``id`` where a probability is NaN or the truth is unfit."""
        self._records[id] = self._label(id, prediction, target)

    def compute(self) -> dict[str, float]:
        """Multi-label: map. Otherwise top1 and, with more than five classes, top5. All 0 to 1."""
        if self.multi_label:
            return {"map": mean(row["ap"] for row in self.table().values())}
        ranks = [_rank(label) for label in self._ordered()]
        result = {"top1": mean(float(rank == 0) for rank in ranks)}
        if len(self.classes) > 5:
            result["top5"] = mean(float(rank < 5) for rank in ranks)
        return result

    def table(self) -> dict[str, dict[str, float]]:
        """Per class: accuracy (the share of its pictures that is found), count; multi-label: ap, count (positives)."""
        labels = self._ordered()
        if not self.multi_label:
            found: list[list[float]] = [[] for _ in self.classes]
            for label in labels:
                found[int(np.argmax(label.truth))].append(float(_rank(label) == 0))
            return {
                name: {"accuracy": mean(hits), "count": float(len(hits))}
                for name, hits in zip(self.classes, found, strict=True)
            }
        rows = {}
        for k, name in enumerate(self.classes):
            known = [label for label in labels if label.labelled[k]]
            truth = np.array([label.truth[k] for label in known], np.bool_)
            scores = np.array([label.probabilities[k] for label in known], np.float64)
            rows[name] = {"ap": average_precision(truth, scores), "count": float(truth.sum())}
        return rows

    def quality(self, prediction: ImageLabel, target: ImageLabel) -> float:
        """The probability of the true class; multi-label: 1 minus the mean error of the labelled probabilities."""
        label = self._label("this picture", prediction, target)
        if not self.multi_label:
            return float(label.probabilities[label.truth][0])
        return 1.0 - mean(np.abs(label.probabilities - label.truth)[label.labelled].tolist())

    def _label(self, id: str, prediction: ImageLabel, target: ImageLabel) -> _Label:
        probabilities, values = np.asarray(prediction.values, np.float64), np.asarray(target.values, np.float64)
        for kind, found in (("predicted", probabilities), ("true", values)):
            if found.shape != (len(self.classes),):
                raise ValueError(f"{id}: {kind} values have shape {found.shape}. Expected ({len(self.classes)},).")
            if not np.isfinite(found).all():
                raise ValueError(f"{id}: {kind} values {found} are not all finite.")
        truth = values > 0.5
        if not self.multi_label and truth.sum() != 1:
            raise ValueError(f"{id}: {truth.sum()} classes are true. Expected one; set multi_label: true for several.")
        labelled = np.ones(len(truth), np.bool_) if target.classes is None else np.asarray(target.classes, np.bool_)
        return _Label(probabilities, truth, labelled)


def average_precision(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """The sum over distinct scores, best first, of precision times the recall gained; NaN without a positive.

    truth, scores: [N]
    """
    positives = int(truth.sum())
    if not positives:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(truth[order])[last]
    precision = hits / (last + 1)
    return float(np.sum(np.diff(hits, prepend=0) / positives * precision))


def _rank(label: _Label) -> int:
    """How many classes come before the true one."""
    true = int(np.argmax(label.truth))
    better = label.probabilities > label.probabilities[true]
    equal = label.probabilities[:true] == label.probabilities[true]
    return int(better.sum() + equal.sum())
