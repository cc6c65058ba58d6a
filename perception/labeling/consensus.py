"""Where several views of one picture lead to the same answer: what of a prediction may stand as a label.

What a network says of a picture, of its mirror image and of the picture at other sizes should be one and the same.
Where it is not, the answer hangs on chance, and it is left out. On CamVid's validation pictures the pixels that agree
are right as often as equally many with the highest softmax, and agreement needs nothing but answers: it works for every
kind of task and for exported networks. numpy, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perception.types import IGNORE_INDEX, Annotation, DenseMap, ImageLabel, Instances, TaskSpec

SAME_QUANTITY = 1.1
"""By what factor the largest of the views' values may exceed the smallest."""

SAME_BOX = 0.5
"""IoU from which on boxes of two views are of the same thing."""

FAINT = 1 / 3
"""Share of a task's threshold from which on a score says that something might be there."""


def mirrored(annotation: Annotation, width: int) -> Annotation:
    """What is said of a picture of this width, as it is for its mirror image."""
    if isinstance(annotation, ImageLabel):
        return annotation
    if isinstance(annotation, DenseMap):
        return DenseMap(annotation.values[..., ::-1], annotation.valid[..., ::-1])
    boxes = annotation.boxes.copy()
    boxes[:, [0, 2]] = width - annotation.boxes[:, [2, 0]]
    return Instances(boxes, annotation.labels, annotation.scores)


def agreed(views: Sequence[Annotation], spec: TaskSpec) -> Annotation | None:
    """What all views say, as a label; None where that is nothing at all: then the picture is not labelled.

    views: predictions of one task in pixels of one picture, the first that of the picture as it is

    Maps are not valid where views differ: classes by name, quantities by more than `SAME_QUANTITY`. Boxes that all
    views have are objects; what only some have, or too faintly, is an ignore region, neither object nor background. Of
    labels of whole pictures the class must be the same; where several may hold, those that differ are not labelled.
    """
    if spec.shape == "instances":
        return _boxes([view for view in views if isinstance(view, Instances)], spec.threshold)
    if spec.shape == "label":
        values = np.stack([view.values for view in views if isinstance(view, ImageLabel)])
        return _classes(values, spec.threshold) if spec.multi_label else _class(values)
    maps = [view for view in views if isinstance(view, DenseMap)]
    found = _label_map(maps) if spec.classes else _quantity(maps)
    return found if found.valid.any() else None


def _label_map(views: Sequence[DenseMap]) -> DenseMap:
    first = views[0]
    valid = np.logical_and.reduce([view.valid & (view.values == first.values) for view in views])
    return DenseMap(np.where(valid, first.values, IGNORE_INDEX).astype(np.uint8), valid)


def _quantity(views: Sequence[DenseMap]) -> DenseMap:
    values = np.stack([view.values for view in views])
    valid = np.logical_and.reduce([view.valid for view in views]) & (values.max(0) <= SAME_QUANTITY * values.min(0))
    return DenseMap(np.where(valid, values.mean(0), 0).astype(np.float32), valid)


def _boxes(views: Sequence[Instances], threshold: float) -> Instances:
    clear = [_over(view, threshold) for view in views]
    first = clear[0]
    everywhere = np.all([np.ones(len(first.boxes), bool), *(_among(first, view) for view in clear[1:])], axis=0)
    sure = _rows(first, everywhere)
    seen = [_over(views[0], FAINT * threshold), *clear[1:]]
    kinds = [sure, *(_rows(view, ~_among(view, sure)) for view in seen)]
    return Instances(
        np.concatenate([kind.boxes for kind in kinds]),
        np.concatenate([kind.labels for kind in kinds]),
        ignore=np.arange(sum(len(kind.boxes) for kind in kinds)) >= len(sure.boxes),
    )


def _over(view: Instances, threshold: float) -> Instances:
    assert view.scores is not None
    return _rows(view, np.asarray(view.scores) >= threshold)


def _rows(view: Instances, kept: NDArray[np.bool_]) -> Instances:
    assert view.scores is not None
    return Instances(view.boxes[kept], view.labels[kept], view.scores[kept])


def _among(first: Instances, second: Instances) -> NDArray[np.bool_]:
    """Which boxes of the first are of the same thing as any of the second: bool [N]."""
    corners = np.maximum(first.boxes[:, None, :2], second.boxes[None, :, :2])
    sides = np.minimum(first.boxes[:, None, 2:], second.boxes[None, :, 2:]) - corners
    common = np.maximum(sides, 0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first.boxes, second.boxes)]
    together = areas[0][:, None] + areas[1][None] - common
    same = (first.labels[:, None] == second.labels[None]) & (common >= SAME_BOX * together)
    return np.asarray(same.any(1))


def _class(values: NDArray[np.float32]) -> ImageLabel | None:
    best = values.argmax(1)
    if (best != best[0]).any():
        return None
    return ImageLabel((np.arange(values.shape[1]) == best[0]).astype(np.float32))


def _classes(values: NDArray[np.float32], threshold: float) -> ImageLabel | None:
    held = values >= threshold
    same = (held == held[0]).all(0)
    return ImageLabel((held[0] & same).astype(np.float32), same) if same.any() else None
