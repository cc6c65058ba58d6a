"""Metrics of image labels: top-1 and top-5 accuracy, or average precision for multi-label, and calibration error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.metrics.metric import PerImageRecords, nanmean
from perception.types import ImageLabel

NUM_BINS = 15
"""Number of probability bins of the expected calibration error."""


class _LabelRecord(NamedTuple):
    probabilities: NDArray[np.float64]
    targets: NDArray[np.bool_]
    labeled: NDArray[np.bool_]


class ClassificationMetric(PerImageRecords[_LabelRecord]):
    """Accuracy of one class per image, or mean average precision of several labels.

    * One class: top1, and top5 if there are more than five classes (with fewer it is 1 by definition and is omitted).
      On equal probabilities the class listed first wins.
    * Several (``multi_label``): map, the mean over classes of the average precision without interpolation (as
      scikit-learn's average_precision_score). An image counts for the classes that its source labels. A class without a
      positive image is excluded from the mean.
    * Both: ece, the expected calibration error (Guo et al. 2017): the mean gap between a predicted probability and the
      observed frequency, over `NUM_BINS` equal bins of the probability (of the best class; multi-label: of every
      labeled class).

    Args:
        classes: names, in the order of the probabilities.
        multi_label: whether an image can have several labels.
    """

    def __init__(self, classes: Sequence[str], multi_label: bool = False) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.multi_label = multi_label
        self.protocol = (
            "Mean average precision without interpolation, over the classes with a positive image."
            if multi_label
            else "Share of images whose true class is the most probable one (top 1), or among the five (top 5)."
        ) + f" Calibration error (ECE) over {NUM_BINS} bins."

    def update(self, image_id: str, prediction: ImageLabel, target: ImageLabel) -> None:
        """Add one image.

        Raises:
            ValueError: a probability is NaN or the target is invalid. The message names ``image_id``.
        """
        self._records[image_id] = self._make_record(image_id, prediction, target)

    def compute(self) -> dict[str, float]:
        """Return map (multi-label), or top1 and with more than five classes top5. Both: ece. All 0 to 1."""
        if self.multi_label:
            result = {"map": nanmean(row["ap"] for row in self.compute_per_class().values())}
        else:
            ranks = [_rank_of_target(label) for label in self._sorted_records()]
            result = {"top1": nanmean(float(rank == 0) for rank in ranks)}
            if len(self.classes) > 5:
                result["top5"] = nanmean(float(rank < 5) for rank in ranks)
        return {**result, "ece": expected_calibration_error(*self._collect_probabilities())}

    def _collect_probabilities(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the predicted probabilities [N] and whether each prediction is correct."""
        labels = self._sorted_records()
        if self.multi_label:
            claims = [(label.probabilities[label.labeled], label.targets[label.labeled]) for label in labels]
        else:
            claims = [
                (label.probabilities.max(keepdims=True), np.array([_rank_of_target(label) == 0])) for label in labels
            ]
        claims.append((np.empty(0), np.empty(0, np.bool_)))
        probabilities, truth = zip(*claims, strict=True)
        return np.concatenate(probabilities), np.concatenate(truth)

    def fit_temperature(self) -> float:
        """Fit the temperature by maximum likelihood, divide the logits of all predictions by it, and return it.

        It is between 0.1 and 10, and 1 without predictions. It does not change which class is the most probable. The
        targets are smoothed by one additional uncertain image (Platt 1999), so a network that makes no mistake on a few
        images does not become certain.
        """
        labels = self._sorted_records()
        if not labels:
            return 1.0
        logits = np.stack([_logits(label.probabilities, self.multi_label) for label in labels])
        truth = np.stack([label.targets for label in labels]).astype(np.float64)
        labelled = np.stack([label.labeled for label in labels])
        doubt = 1 / (len(labels) + 2)
        truth = truth * (1 - doubt) + doubt / (2 if self.multi_label else len(self.classes))
        # The likelihood has one maximum over the inverse temperature: bisect the sign of its gradient.
        low, high = -math.log(10), math.log(10)
        for _ in range(50):
            middle = 0.5 * (low + high)
            excess = (_softmax_or_sigmoid(logits * math.exp(middle), self.multi_label) - truth) * logits
            low, high = (low, middle) if (excess * labelled).sum() > 0 else (middle, high)
        inverse = math.exp(0.5 * (low + high))
        for (id, label), scaled in zip(
            sorted(self._records.items()), _softmax_or_sigmoid(logits * inverse, self.multi_label), strict=True
        ):
            self._records[id] = label._replace(probabilities=scaled)
        return 1 / inverse

    def compute_per_class(self) -> dict[str, dict[str, float]]:
        """Return accuracy (recall of the class) and count per class; multi-label: ap and count (positives)."""
        labels = self._sorted_records()
        if not self.multi_label:
            found: list[list[float]] = [[] for _ in self.classes]
            for label in labels:
                found[int(np.argmax(label.targets))].append(float(_rank_of_target(label) == 0))
            return {
                name: {"accuracy": nanmean(hits), "count": float(len(hits))}
                for name, hits in zip(self.classes, found, strict=True)
            }
        rows = {}
        for k, name in enumerate(self.classes):
            known = [label for label in labels if label.labeled[k]]
            truth = np.array([label.targets[k] for label in known], np.bool_)
            scores = np.array([label.probabilities[k] for label in known], np.float64)
            rows[name] = {"ap": average_precision(truth, scores), "count": float(truth.sum())}
        return rows

    def score_image(self, prediction: ImageLabel, target: ImageLabel) -> float:
        """Return the probability of the true class.

        For multi-label, it is 1 minus the mean error of the labeled probabilities.
        """
        label = self._make_record("this image", prediction, target)
        if not self.multi_label:
            return float(label.probabilities[label.targets][0])
        return 1.0 - nanmean(np.abs(label.probabilities - label.targets)[label.labeled].tolist())

    def _make_record(self, id: str, prediction: ImageLabel, target: ImageLabel) -> _LabelRecord:
        probabilities, values = np.asarray(prediction.values, np.float64), np.asarray(target.values, np.float64)
        for kind, found in (("predicted", probabilities), ("true", values)):
            if found.shape != (len(self.classes),):
                raise ValueError(f"{id}: {kind} values have shape {found.shape}. Expected ({len(self.classes)},).")
            if not np.isfinite(found).all():
                raise ValueError(f"{id}: {kind} values {found} are not all finite.")
        truth = values > 0.5
        if not self.multi_label and truth.sum() != 1:
            raise ValueError(f"{id}: {truth.sum()} classes are true. Expected one. Set multi_label: true for several.")
        labelled = (
            np.ones(len(truth), np.bool_)
            if target.labeled_classes is None
            else np.asarray(target.labeled_classes, np.bool_)
        )
        return _LabelRecord(probabilities, truth, labelled)


def expected_calibration_error(
    probabilities: NDArray[np.float64], truth: NDArray[np.bool_], bins: int = NUM_BINS
) -> float:
    """Return the mean over predictions of the gap between probability and frequency in their bin; NaN if N is 0.

    Args:
        probabilities: [N].
        truth: whether each prediction is correct, [N].
        bins: number of bins.
    """
    if not len(truth):
        return math.nan
    places = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(places, probabilities, bins) - np.bincount(places, truth, bins)
    return float(np.abs(gaps).sum() / len(truth))


def _logits(probabilities: NDArray[np.float64], multi_label: bool) -> NDArray[np.float64]:
    """Return logits [C] of these probabilities, up to a constant."""
    if multi_label:
        inside = np.clip(probabilities, 1e-7, 1 - 1e-7)
        return np.log(inside) - np.log1p(-inside)
    return np.log(np.maximum(probabilities, 1e-30))


def _softmax_or_sigmoid(logits: NDArray[np.float64], multi_label: bool) -> NDArray[np.float64]:
    """Return probabilities [..., C] of the logits [..., C]."""
    if multi_label:
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def average_precision(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Return the sum over distinct scores, best first, of precision times recall gain; NaN without a positive.

    Args:
        truth: [N].
        scores: [N].
    """
    positives = int(truth.sum())
    if not positives:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(truth[order])[last]
    precision = hits / (last + 1)
    return float(np.sum(np.diff(hits, prepend=0) / positives * precision))


def _rank_of_target(label: _LabelRecord) -> int:
    """Return the number of classes ranked above the true one."""
    true = int(np.argmax(label.targets))
    better = label.probabilities > label.probabilities[true]
    equal = label.probabilities[:true] == label.probabilities[true]
    return int(better.sum() + equal.sum())
