"""Consensus of several views of one image: the predictions that are reliable enough for labels.

The predictions for an image, its mirror image and the image at other sizes should be the same. Predictions that differ
are unreliable and are dropped. On CamVid's validation images, pixels with consensus are as accurate as the same number
of pixels with the highest softmax. Consensus needs only predictions: it works for every kind of task and for exported
networks. numpy, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perception.types import IGNORE_INDEX, Annotation, DenseMap, ImageLabel, Instances, TaskSpec

MAX_QUANTITY_RATIO = 1.1
"""Maximum ratio of the largest to the smallest value of the views."""

MATCH_IOU = 0.5
"""Minimum IoU for boxes of two views to mark the same object."""

FAINT_SCORE_RATIO = 1 / 3
"""Fraction of a task's score threshold from which a box counts as a possible object."""


def mirror_annotation(annotation: Annotation, width: int) -> Annotation:
    """Mirror an annotation horizontally. ``width`` is that of the image, pixels."""
    if isinstance(annotation, ImageLabel):
        return annotation
    if isinstance(annotation, DenseMap):
        return DenseMap(annotation.values[..., ::-1], annotation.valid[..., ::-1])
    boxes = annotation.boxes.copy()
    boxes[:, [0, 2]] = width - annotation.boxes[:, [2, 0]]
    return Instances(boxes, annotation.labels, annotation.scores)


def find_consensus(views: Sequence[Annotation], spec: TaskSpec) -> Annotation | None:
    """Find the label on which all views agree.

    * Maps: pixels are invalid where the classes differ, or quantities differ by more than `MAX_QUANTITY_RATIO`.
    * Boxes: boxes in all views are objects. Boxes in some views, or with low scores, become ignore regions.
    * Image-level labels: the class must be the same. With multiple labels, classes that differ are not labeled.

    Args:
        views: predictions of one task in pixels of one image. The first is that of the original image.
        spec: spec of the task.

    Returns:
        The label; None if the views agree on nothing, and the image is not labeled.
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
    """Which boxes of the first view match a box of the second: bool [N]."""
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
