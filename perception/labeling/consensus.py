"""Where several views of one image lead to the same answer: what of a prediction may stand as a label.

What a network says of an image, of its mirror image and of the image at other sizes should be one and the same.
Where it is not, the answer hangs on chance, and it is left out. On CamVid's validation images the pixels that agree
are right as often as equally many with the highest softmax, and agreement needs nothing but answers: it works for every
kind of task and for exported networks. numpy, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perception.types import IGNORE_INDEX, Annotation, DenseMap, ImageLabel, Instances, TaskSpec

MAX_QUANTITY_RATIO = 1.1
"""By what factor the largest of the views' values may exceed the smallest."""

MATCH_IOU = 0.5
"""IoU from which on boxes of two views are of the same thing."""

FAINT_SCORE_RATIO = 1 / 3
"""Share of a task's threshold from which on a score says that something might be there."""


def mirror_annotation(annotation: Annotation, width: int) -> Annotation:
    """What is said of an image of this width, as it is for its mirror image."""
    if isinstance(annotation, ImageLabel):
        return annotation
    if isinstance(annotation, DenseMap):
        return DenseMap(annotation.values[..., ::-1], annotation.valid[..., ::-1])
    boxes = annotation.boxes.copy()
    boxes[:, [0, 2]] = width - annotation.boxes[:, [2, 0]]
    return Instances(boxes, annotation.labels, annotation.scores)


def find_consensus(views: Sequence[Annotation], spec: TaskSpec) -> Annotation | None:
    """What all views say, as a label; None where that is nothing at all: then the image is not labeled.

    views: predictions of one task in pixels of one image, the first that of the image as it is

    Maps are not valid where views differ: classes by name, quantities by more than `MAX_QUANTITY_RATIO`. Boxes that all
    views have are objects; what only some have, or too faintly, is an ignore region, neither object nor background. Of
    labels of whole images the class must be the same; where several may hold, those that differ are not labeled.
    """
    if spec.annotation_type == "instances":
        return _merge_boxes([view for view in views if isinstance(view, Instances)], spec.score_threshold)
    if spec.annotation_type == "label":
        values = np.stack([view.values for view in views if isinstance(view, ImageLabel)])
        return _merge_multi_label(values, spec.score_threshold) if spec.multi_label else _merge_single_label(values)
    maps = [view for view in views if isinstance(view, DenseMap)]
    found = _merge_masks(maps) if spec.classes else _merge_quantities(maps)
    return found if found.valid.any() else None


def _merge_masks(views: Sequence[DenseMap]) -> DenseMap:
    first = views[0]
    valid = np.logical_and.reduce([view.valid & (view.values == first.values) for view in views])
    return DenseMap(np.where(valid, first.values, IGNORE_INDEX).astype(np.uint8), valid)


def _merge_quantities(views: Sequence[DenseMap]) -> DenseMap:
    values = np.stack([view.values for view in views])
    valid = np.logical_and.reduce([view.valid for view in views]) & (
        values.max(0) <= MAX_QUANTITY_RATIO * values.min(0)
    )
    return DenseMap(np.where(valid, values.mean(0), 0).astype(np.float32), valid)


def _merge_boxes(views: Sequence[Instances], threshold: float) -> Instances:
    clear = [_filter_scores(view, threshold) for view in views]
    first = clear[0]
    everywhere = np.all([np.ones(len(first.boxes), bool), *(_has_match(first, view) for view in clear[1:])], axis=0)
    sure = _select_boxes(first, everywhere)
    seen = [_filter_scores(views[0], FAINT_SCORE_RATIO * threshold), *clear[1:]]
    kinds = [sure, *(_select_boxes(view, ~_has_match(view, sure)) for view in seen)]
    return Instances(
        np.concatenate([kind.boxes for kind in kinds]),
        np.concatenate([kind.labels for kind in kinds]),
        ignore=np.arange(sum(len(kind.boxes) for kind in kinds)) >= len(sure.boxes),
    )


def _filter_scores(view: Instances, threshold: float) -> Instances:
    assert view.scores is not None
    return _select_boxes(view, np.asarray(view.scores) >= threshold)


def _select_boxes(view: Instances, keep: NDArray[np.bool_]) -> Instances:
    assert view.scores is not None
    return Instances(view.boxes[keep], view.labels[keep], view.scores[keep])


def _has_match(first: Instances, second: Instances) -> NDArray[np.bool_]:
    """Which boxes of the first are of the same thing as any of the second: bool [N]."""
    corners = np.maximum(first.boxes[:, None, :2], second.boxes[None, :, :2])
    sides = np.minimum(first.boxes[:, None, 2:], second.boxes[None, :, 2:]) - corners
    common = np.maximum(sides, 0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first.boxes, second.boxes)]
    together = areas[0][:, None] + areas[1][None] - common
    same = (first.labels[:, None] == second.labels[None]) & (common >= MATCH_IOU * together)
    return np.asarray(same.any(1))


def _merge_single_label(values: NDArray[np.float32]) -> ImageLabel | None:
    best = values.argmax(1)
    if (best != best[0]).any():
        return None
    return ImageLabel((np.arange(values.shape[1]) == best[0]).astype(np.float32))


def _merge_multi_label(values: NDArray[np.float32], threshold: float) -> ImageLabel | None:
    held = values >= threshold
    same = (held == held[0]).all(0)
    return ImageLabel((held[0] & same).astype(np.float32), same) if same.any() else None
