"""Intersection over union of label maps, from one confusion matrix over all pixels of all pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.metrics.metric import Records, mean
from perception.types import DenseMap


class _Counts(NamedTuple):
    """The entries of one picture's confusion matrix that are not 0; dense ones of 5,000 pictures would take 900 MB."""

    places: NDArray[np.int32]
    pixels: NDArray[np.int64]


class SegmentationMetric(Records[_Counts]):
    """Cityscapes' mean intersection over union (Cordts et al. 2016): one confusion matrix over the whole data set.

    * Pixels whose truth is not valid are left out. A pixel that the prediction gives no class is a miss of the true
      class.
    * Classes that are absent from the truth are in no mean, whether or not they are predicted (Cityscapes counts them
      as 0 where they are predicted); the table shows them with NaN and 0 pixels.

    classes: names, in the order of the class ids
    """

    protocol = (
        "One confusion matrix over the labelled pixels of all pictures (as Cityscapes), at source resolution; "
        "classes absent from the truth are in no mean."
    )

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)

    def update(self, id: str, prediction: DenseMap, target: DenseMap) -> None:
        """Account for one picture. Raises ValueError naming ``id`` where sizes or class ids do not fit."""
        flat = self._flat(id, prediction, target)
        places = np.flatnonzero(flat)
        self._records[id] = _Counts(places.astype(np.int32), flat[places])

    def confusion(self) -> NDArray[np.int64]:
        """Pixels [C, C + 1] by true class (row) and predicted class (column); the last column is "no class"."""
        total = np.zeros(len(self.classes) * (len(self.classes) + 1), np.int64)
        for counts in self._records.values():
            total[counts.places] += counts.pixels
        return total.reshape(len(self.classes), -1)

    def compute(self) -> dict[str, float]:
        """miou and pixel_accuracy, 0 to 1."""
        matrix = self.confusion()
        pixels = int(matrix.sum())
        return {
            "miou": mean(_ious(matrix)),
            "pixel_accuracy": int(matrix.trace()) / pixels if pixels else math.nan,
        }

    def table(self) -> dict[str, dict[str, float]]:
        """Per class: iou, accuracy (the share of its pixels that is found), pixels (of the truth), predicted."""
        matrix = self.confusion()
        true, predicted, hits = matrix.sum(1), matrix.sum(0), matrix.diagonal()
        return {
            name: {
                "iou": iou,
                "accuracy": int(hits[k]) / int(true[k]) if true[k] else math.nan,
                "pixels": float(true[k]),
                "predicted": float(predicted[k]),
            }
            for k, (name, iou) in enumerate(zip(self.classes, _ious(matrix), strict=True))
        }

    def quality(self, prediction: DenseMap, target: DenseMap) -> float:
        """Mean intersection over union of this picture alone."""
        return mean(_ious(self._flat("this picture", prediction, target).reshape(len(self.classes), -1)))

    def _flat(self, id: str, prediction: DenseMap, target: DenseMap) -> NDArray[np.int64]:
        """Pixels of one picture by true class and predicted class [C * (C + 1)]."""
        classes = len(self.classes)
        values, truth = np.asarray(prediction.values), np.asarray(target.values)
        if values.shape != truth.shape:
            raise ValueError(
                f"{id}: the predicted map is {values.shape}, the true map {truth.shape}. Expected one size."
            )
        valid = np.asarray(target.valid, np.bool_)
        predicted, true = values[valid], truth[valid]
        for kind, ids in (("predicted", predicted), ("true", true)):
            if not np.issubdtype(ids.dtype, np.integer) and not np.isfinite(ids).all():
                raise ValueError(f"{id}: the {kind} map holds NaN or infinity. Expected class ids.")
        true = true.astype(np.int64)
        if true.size and (true.min() < 0 or true.max() >= classes):
            raise ValueError(f"{id}: true class ids are {true.min()} to {true.max()}. Expected 0 to {classes - 1}.")
        known = np.asarray(prediction.valid, np.bool_)[valid] & (predicted >= 0) & (predicted < classes)
        columns = np.where(known, predicted, classes).astype(np.int64)
        return np.bincount(true * (classes + 1) + columns, minlength=classes * (classes + 1))


def _ious(matrix: NDArray[np.int64]) -> list[float]:
    """Per class, from pixels [C, C + 1]; NaN for a class that is absent from the truth."""
    hits = matrix.diagonal()
    true = matrix.sum(1)
    union = true + matrix[:, :-1].sum(0) - hits
    return [int(hits[k]) / int(union[k]) if true[k] else math.nan for k in range(len(hits))]
