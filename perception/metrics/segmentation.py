"""Intersection over union of segmentation masks, from one confusion matrix over all pixels of all images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.metrics.metric import PerImageRecords, nanmean
from perception.types import DenseMap, LabelSpace


class _ConfusionRecord(NamedTuple):
    """The non-zero entries of an image's confusion matrix. Dense matrices of 5,000 images would take 900 MB.

    Attributes:
        label_space: meaning of the target's ids; None = the classes.
    """

    indices: NDArray[np.int32]
    counts: NDArray[np.int64]
    label_space: LabelSpace | None = None


class SegmentationMetric(PerImageRecords[_ConfusionRecord]):
    """Cityscapes' mean intersection over union (Cordts et al. 2016): one confusion matrix over the whole data set.

    * Pixels with an invalid target are excluded. A pixel without a predicted class is a miss of the true class.
    * Classes without true pixels are excluded from the means, whether or not they are predicted (Cityscapes counts them
      as 0 if they are predicted). The table shows them with NaN and 0 pixels.

    A source that labels only some classes, or super-classes (`DenseMap.label_space`), is evaluated in its own label
    space:

    * A predicted class counts as the set that contains it. If sets overlap, it counts as the true set if that contains
      it, else as every set that does. So a prediction that the label allows is correct, and is never a false positive
      of other sets.
    * The id without a name (what the source does not label) is not a row of the mean; predicting a class there is
      wrong.
    * Sources of the same label space share one confusion matrix. ``miou`` is the mean over label spaces, with equal
      weights. If there are several, ``<source>/miou`` is the value of each source. The source is the part of an image
      id before its first "/".

    Args:
        classes: names, in the order of the class ids.
    """

    protocol = (
        "One confusion matrix over the labeled pixels of all images (as Cityscapes), at source resolution; classes "
        "without true pixels are excluded from the means. Sources of different label spaces have a matrix each, in "
        "their own classes and super-classes, by summed probabilities, and the mean is over these."
    )

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)

    def update(self, image_id: str, prediction: DenseMap, target: DenseMap) -> None:
        """Add one image.

        Raises:
            ValueError: sizes or class ids do not fit. The message names ``image_id``.
        """
        flat = self._count_pairs(image_id, prediction, target)
        places = np.flatnonzero(flat)
        self._records[image_id] = _ConfusionRecord(places.astype(np.int32), flat[places], target.label_space)

    def confusion_matrix(self, label_space: LabelSpace | None = None, source: str | None = None) -> NDArray[np.int64]:
        """Return pixel counts [K, C + 1] by true id (row) and predicted class (column). The last column is "no class".

        Args:
            label_space: label space of the rows; None = the classes.
            source: count only the images of this source; None = all.
        """
        rows = len(self.classes) if label_space is None else len(label_space.class_sets)
        total = np.zeros(rows * (len(self.classes) + 1), np.int64)
        for id, counts in self._records.items():
            if counts.label_space == label_space and source in (None, _source_of(id)):
                total[counts.indices] += counts.counts
        return total.reshape(rows, -1)

    def compute(self) -> dict[str, float]:
        """Return miou and pixel_accuracy, 0 to 1; if label spaces differ also <source>/miou."""
        spaces = self._find_label_spaces()
        matrices = {space: self.confusion_matrix(space) for space in spaces}
        pixels = sum(int(matrix.sum()) for matrix in matrices.values())
        hits = sum(int(_count_correct(matrix, space).sum()) for space, matrix in matrices.items())
        numbers = {
            "miou": nanmean(self._miou(matrix, space) for space, matrix in matrices.items()),
            "pixel_accuracy": hits / pixels if pixels else math.nan,
        }
        if len(spaces) > 1:
            for source in self._sources(spaces):
                numbers[f"{source}/miou"] = nanmean(
                    self._miou(self.confusion_matrix(space, source), space)
                    for space in spaces
                    if source in spaces[space]
                )
        return numbers

    def compute_per_class(self) -> dict[str, dict[str, float]]:
        """Return iou, accuracy (recall), pixels (of the target) and predicted (pixels) per class.

        They are counted over the pixels of all sources where the class is unambiguous: a pixel that may be of the class
        or of another one is excluded. Then follow the rows of each source in its own classes, named "<source>:
        <class>", if label spaces differ from the classes.
        """
        spaces = self._find_label_spaces()
        decided = np.zeros((len(self.classes), len(self.classes) + 1), np.int64)
        wrong = np.zeros(len(self.classes), np.int64)
        for space in spaces or (None,):
            for row, each in zip(self.confusion_matrix(space), self._class_sets(space), strict=True):
                if len(each) == 1:
                    decided[each[0]] += row
                else:
                    elsewhere = np.ones(len(self.classes), bool)
                    elsewhere[list(each)] = False
                    wrong += np.where(elsewhere, row[:-1], 0)
        predicted = decided[:, :-1].sum(0) + wrong
        table = dict(zip(self.classes, _per_class_rows(decided.diagonal(), decided.sum(1), predicted), strict=True))
        for source in self._sources(spaces):
            for space in spaces:
                if space is not None and source in spaces[space]:
                    matrix = self.confusion_matrix(space, source)
                    rows = _per_class_rows(
                        _count_correct(matrix, space), matrix.sum(1), _count_predicted(matrix, space)
                    )
                    names = zip(space.names, rows, strict=True)
                    table |= {f"{source}: {name}": row for name, row in names if name}
        return table

    def score_image(self, prediction: DenseMap, target: DenseMap) -> float:
        """Return the mean intersection over union of this image."""
        rows = len(self._class_sets(target.label_space))
        return self._miou(self._count_pairs("this image", prediction, target).reshape(rows, -1), target.label_space)

    def _find_label_spaces(self) -> dict[LabelSpace | None, set[str]]:
        """Return label space -> its sources, the classes themselves first, independent of the order of ids."""
        spaces: dict[LabelSpace | None, set[str]] = {}
        for id in sorted(self._records):
            spaces.setdefault(self._records[id].label_space, set()).add(_source_of(id))
        return dict(sorted(spaces.items(), key=lambda item: item[0] is not None))

    def _sources(self, label_spaces: dict[LabelSpace | None, set[str]]) -> list[str]:
        return sorted(set().union(*label_spaces.values()))

    def _class_sets(self, label_space: LabelSpace | None) -> Sequence[tuple[int, ...]]:
        return [(k,) for k in range(len(self.classes))] if label_space is None else label_space.class_sets

    def _miou(self, matrix: NDArray[np.int64], label_space: LabelSpace | None) -> float:
        rows = _per_class_rows(
            _count_correct(matrix, label_space), matrix.sum(1), _count_predicted(matrix, label_space)
        )
        names = self.classes if label_space is None else label_space.names
        return nanmean(row["iou"] for name, row in zip(names, rows, strict=True) if name or label_space is None)

    def _count_pairs(self, id: str, prediction: DenseMap, target: DenseMap) -> NDArray[np.int64]:
        """Count the pixels of an image by true id and predicted class [K * (C + 1)]."""
        classes, rows = len(self.classes), len(self._class_sets(target.label_space))
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
        if true.size and (true.min() < 0 or true.max() >= rows):
            raise ValueError(f"{id}: true class ids are {true.min()} to {true.max()}. Expected 0 to {rows - 1}.")
        known = np.asarray(prediction.valid, np.bool_)[valid] & (predicted >= 0) & (predicted < classes)
        columns = np.where(known, predicted, classes).astype(np.int64)
        return np.bincount(true * (classes + 1) + columns, minlength=rows * (classes + 1))


def _source_of(id: str) -> str:
    return id.partition("/")[0]


def _membership_mask(matrix: NDArray[np.int64], label_space: LabelSpace | None) -> NDArray[np.bool_]:
    """Return which classes are in each row's set: bool [K, C + 1]; "no class" is in none."""
    members = np.eye(*matrix.shape, dtype=bool) if label_space is None else np.zeros(matrix.shape, bool)
    for k, each in enumerate(() if label_space is None else label_space.class_sets):
        members[k, list(each)] = True
    return members


def _count_correct(matrix: NDArray[np.int64], label_space: LabelSpace | None) -> NDArray[np.int64]:
    """Count the pixels of each row [K] whose prediction is in the row's set."""
    return np.where(_membership_mask(matrix, label_space), matrix, 0).sum(1)


def _count_predicted(matrix: NDArray[np.int64], label_space: LabelSpace | None) -> NDArray[np.int64]:
    """Count the pixels predicted as each row [K]: its correct ones, and the wrong ones in its set."""
    members = _membership_mask(matrix, label_space)
    wrong = np.where(members, 0, matrix).sum(0)
    return _count_correct(matrix, label_space) + (members * wrong).sum(1)


def _per_class_rows(hits: NDArray, true: NDArray, predicted: NDArray) -> list[dict[str, float]]:
    """Return the table's rows; NaN for classes without true pixels."""
    return [
        {
            "iou": int(h) / int(t + p - h) if t else math.nan,
            "accuracy": int(h) / int(t) if t else math.nan,
            "pixels": float(t),
            "predicted": float(p),
        }
        for h, t, p in zip(hits, true, predicted, strict=True)
    ]
