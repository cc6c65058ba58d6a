"""Intersection over union of label maps, from one confusion matrix over all pixels of all pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.metrics.metric import Records, mean
from perception.types import DenseMap, LabelSpace


class _Counts(NamedTuple):
    """The entries of one picture's confusion matrix that are not 0; dense ones of 5,000 pictures would take 900 MB.

    space: what the ids of its truth mean; None = the classes
    """

    places: NDArray[np.int32]
    pixels: NDArray[np.int64]
    space: LabelSpace | None = None


class SegmentationMetric(Records[_Counts]):
    """Cityscapes' mean intersection over union (Cordts et al. 2016): one confusion matrix over the whole data set.

    * Pixels whose truth is not valid are left out. A pixel that the prediction gives no class is a miss of the true
      class.
    * Classes that are absent from the truth are in no mean, whether or not they are predicted (Cityscapes counts them
      as 0 where they are predicted); the table shows them with NaN and 0 pixels.

    A source that knows only some classes, or super-classes (`DenseMap.classes`), is judged in its own label space:

    * The prediction of a class is one of the set that it lies in. Where sets overlap, it is of the true set if that
      holds it, else of every set that does. So a prediction that the label allows is right, and never wrong for others.
    * What the source does not label (the id without a name) is no row of the mean; predicting a class there is wrong.
    * Sources of the same label space share one confusion matrix. ``miou`` is the mean of the label spaces' figures,
      each counting once; where there are several, ``<source>/miou`` tells that of each source by itself. A source is
      what a picture's id names before its first "/".

    classes: names, in the order of the class ids
    """

    protocol = (
        "One confusion matrix over the labelled pixels of all pictures (as Cityscapes), at source resolution; "
        "classes absent from the truth are in no mean. Sources of unlike label spaces have a matrix each, in their own "
        "classes and super-classes, by the sums of the probabilities, and the mean is over these."
    )

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)

    def update(self, id: str, prediction: DenseMap, target: DenseMap) -> None:
        """Account for one picture. Raises ValueError naming ``id`` where sizes or class ids do not fit."""
        flat = self._flat(id, prediction, target)
        places = np.flatnonzero(flat)
        self._records[id] = _Counts(places.astype(np.int32), flat[places], target.classes)

    def confusion(self, space: LabelSpace | None = None, source: str | None = None) -> NDArray[np.int64]:
        """Pixels [K, C + 1] by true id of a label space (row) and predicted class (column); the last column is "no
        class". source: of its pictures alone; None = of all."""
        rows = len(self.classes) if space is None else len(space.sets)
        total = np.zeros(rows * (len(self.classes) + 1), np.int64)
        for id, counts in self._records.items():
            if counts.space == space and source in (None, _source(id)):
                total[counts.places] += counts.pixels
        return total.reshape(rows, -1)

    def compute(self) -> dict[str, float]:
        """miou and pixel_accuracy, 0 to 1; where label spaces differ also <source>/miou."""
        spaces = self._spaces()
        matrices = {space: self.confusion(space) for space in spaces}
        pixels = sum(int(matrix.sum()) for matrix in matrices.values())
        hits = sum(int(_hits(matrix, space).sum()) for space, matrix in matrices.items())
        numbers = {
            "miou": mean(self._miou(matrix, space) for space, matrix in matrices.items()),
            "pixel_accuracy": hits / pixels if pixels else math.nan,
        }
        if len(spaces) > 1:
            for source in self._sources(spaces):
                numbers[f"{source}/miou"] = mean(
                    self._miou(self.confusion(space, source), space) for space in spaces if source in spaces[space]
                )
        return numbers

    def table(self) -> dict[str, dict[str, float]]:
        """Per class: iou, accuracy (the share of its pixels that is found), pixels (of the truth), predicted.

        Over the pixels of all sources where the class can be decided: a pixel that may be of the class or of another
        one is left out. Then the rows of each source in its own classes, called "<source>: <class>", where label spaces
        differ from the classes.
        """
        spaces = self._spaces()
        decided = np.zeros((len(self.classes), len(self.classes) + 1), np.int64)
        wrong = np.zeros(len(self.classes), np.int64)
        for space in spaces or (None,):
            for row, each in zip(self.confusion(space), self._sets(space), strict=True):
                if len(each) == 1:
                    decided[each[0]] += row
                else:
                    elsewhere = np.ones(len(self.classes), bool)
                    elsewhere[list(each)] = False
                    wrong += np.where(elsewhere, row[:-1], 0)
        predicted = decided[:, :-1].sum(0) + wrong
        table = dict(zip(self.classes, _rows(decided.diagonal(), decided.sum(1), predicted), strict=True))
        for source in self._sources(spaces):
            for space in spaces:
                if space is not None and source in spaces[space]:
                    matrix = self.confusion(space, source)
                    rows = _rows(_hits(matrix, space), matrix.sum(1), _claims(matrix, space))
                    names = zip(space.names, rows, strict=True)
                    table |= {f"{source}: {name}": row for name, row in names if name}
        return table

    def quality(self, prediction: DenseMap, target: DenseMap) -> float:
        """Mean intersection over union of this picture alone."""
        rows = len(self._sets(target.classes))
        return self._miou(self._flat("this picture", prediction, target).reshape(rows, -1), target.classes)

    def _spaces(self) -> dict[LabelSpace | None, set[str]]:
        """Label space -> the sources that label in it, the classes themselves first; the same in any order of ids."""
        spaces: dict[LabelSpace | None, set[str]] = {}
        for id in sorted(self._records):
            spaces.setdefault(self._records[id].space, set()).add(_source(id))
        return dict(sorted(spaces.items(), key=lambda item: item[0] is not None))

    def _sources(self, spaces: dict[LabelSpace | None, set[str]]) -> list[str]:
        return sorted(set().union(*spaces.values()))

    def _sets(self, space: LabelSpace | None) -> Sequence[tuple[int, ...]]:
        return [(k,) for k in range(len(self.classes))] if space is None else space.sets

    def _miou(self, matrix: NDArray[np.int64], space: LabelSpace | None) -> float:
        rows = _rows(_hits(matrix, space), matrix.sum(1), _claims(matrix, space))
        names = self.classes if space is None else space.names
        return mean(row["iou"] for name, row in zip(names, rows, strict=True) if name or space is None)

    def _flat(self, id: str, prediction: DenseMap, target: DenseMap) -> NDArray[np.int64]:
        """Pixels of one picture by true id and predicted class [K * (C + 1)]."""
        classes, rows = len(self.classes), len(self._sets(target.classes))
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


def _source(id: str) -> str:
    return id.partition("/")[0]


def _members(matrix: NDArray[np.int64], space: LabelSpace | None) -> NDArray[np.bool_]:
    """Which classes are in which row's set: bool [K, C + 1]; "no class" is in none."""
    members = np.eye(*matrix.shape, dtype=bool) if space is None else np.zeros(matrix.shape, bool)
    for k, each in enumerate(() if space is None else space.sets):
        members[k, list(each)] = True
    return members


def _hits(matrix: NDArray[np.int64], space: LabelSpace | None) -> NDArray[np.int64]:
    """Pixels of each row [K] whose prediction is in the row's set."""
    return np.where(_members(matrix, space), matrix, 0).sum(1)


def _claims(matrix: NDArray[np.int64], space: LabelSpace | None) -> NDArray[np.int64]:
    """Pixels that the predictions say to be of each row [K]: its hits, and what lies in its set and was not right."""
    members = _members(matrix, space)
    wrong = np.where(members, 0, matrix).sum(0)
    return _hits(matrix, space) + (members * wrong).sum(1)


def _rows(hits: NDArray, true: NDArray, predicted: NDArray) -> list[dict[str, float]]:
    """The table's rows; NaN for what is absent from the truth."""
    return [
        {
            "iou": int(h) / int(t + p - h) if t else math.nan,
            "accuracy": int(h) / int(t) if t else math.nan,
            "pixels": float(t),
            "predicted": float(p),
        }
        for h, t, p in zip(hits, true, predicted, strict=True)
    ]
