"""Greedy per-class non-maximum suppression: a single ONNX node, with the same kept boxes in torch.

Classes are separated by adding an offset per class to the boxes (as torchvision's ``batched_nms`` does). The offset is
computed per image, so results do not depend on the rest of the batch. torch and ONNX Runtime use the same float32
arithmetic, so the kept boxes are equal.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.nn.functional import pad


@torch.library.custom_op("perception::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Return which candidates are kept: bool [B, K].

    Args:
        boxes: float32 [B, K, 4], x1 y1 x2 y2 with x1 <= x2 and y1 <= y2.
        scores: float32 [B, K]. A score <= 0 marks padding, which is never kept. Of equal scores, the first one wins.
        labels: int64 [B, K].
        iou_threshold: a candidate is dropped if its IoU with a better kept one of its class is larger.
    """
    threshold = float(np.float32(iou_threshold))  # ONNX stores float32; an IoU of exactly 0.6 must give the same result
    moved = _offset_by_class(boxes.float(), labels)
    kept = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    for row, picture, score in zip(kept, moved, scores.float(), strict=True):
        live = (score > 0).nonzero().squeeze(1)
        row[live[torchvision.ops.nms(picture[live], score[live], threshold)]] = True
    return kept


@nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


@torch.library.custom_op("perception::stable_topk", mutates_args=())
def stable_topk(values: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` largest values per row, largest first: int64 [B, count].

    Equal values keep their order. ``values`` is float32 [B, K] with K >= count.
    """
    return values.sort(dim=1, descending=True, stable=True).indices[:, :count].contiguous()


@stable_topk.register_fake
def _(values: Tensor, count: int) -> Tensor:
    return values.new_empty((values.shape[0], count), dtype=torch.int64)


def _offset_by_class(boxes: Tensor, labels: Tensor) -> Tensor:
    """Shift boxes [B, K, 4] by class so that boxes of different classes of an image cannot overlap."""
    if not boxes.shape[1]:
        return boxes
    span = boxes.amax((1, 2)) - boxes.amin((1, 2)) + 1
    return boxes + (labels.to(boxes.dtype) * span[:, None])[:, :, None]


def select_detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float | None, max_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best ``max_detections`` candidates kept by `nms_mask`, best first. Missing detections are zeros.

    Traceable; float32 independent of autocast. Equal scores keep their order.

    Args:
        boxes: [B, K, 4], pixels.
        scores: [B, K].
        labels: int64 [B, K].
        iou_threshold: as in `nms_mask`; None = no suppression, for networks without duplicates.
        max_detections: D.

    Returns:
        boxes [B, D, 4], scores [B, D], labels [B, D].
    """
    with torch.autocast(boxes.device.type, enabled=False):
        boxes, scores = boxes.detach().float(), scores.detach().float()
        alive = scores if iou_threshold is None else scores * nms_mask(boxes, scores, labels, iou_threshold)
        room = (0, max_detections)  # there may be fewer candidates than ``max_detections``
        order = stable_topk(pad(alive, room), max_detections)
        scores = pad(alive, room).gather(1, order)
        found = scores > 0
        boxes = pad(boxes, (0, 0, *room)).gather(1, order[:, :, None].expand(-1, -1, 4)) * found[:, :, None]
        labels = pad(labels, room).gather(1, order) * found
    return boxes, scores, labels


def onnx_translations() -> dict[Any, Callable]:
    """Return the ``custom_translation_table`` of ``torch.onnx.export`` for `nms_mask` and `stable_topk`."""
    from onnxscript import FLOAT, INT64, opset18

    def keep_in_onnx(boxes: FLOAT, scores: FLOAT, labels: INT64, iou_threshold: float):
        """One batched NonMaxSuppression; its output [M, 3] (image, class 0, candidate) is scattered to a mask."""
        op: Any = opset18
        highest = op.ReduceMax(boxes, op.Constant(value_ints=[1, 2]), keepdims=1)
        lowest = op.ReduceMin(boxes, op.Constant(value_ints=[1, 2]), keepdims=1)
        span = op.Add(op.Sub(highest, lowest), op.Constant(value_float=1.0))
        offset = op.Mul(op.Unsqueeze(op.Cast(labels, to=1), op.Constant(value_ints=[2])), span)
        chosen = op.NonMaxSuppression(
            op.Add(boxes, offset),
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Shape(scores, start=1, end=2),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[0.0]),
        )
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        nothing = op.ConstantOfShape(op.Shape(scores))
        ones = op.Expand(op.Constant(value_floats=[1.0]), op.Shape(chosen, start=0, end=1))
        return op.Greater(op.ScatterND(nothing, places, ones), op.Constant(value_float=0.0))

    def best_in_onnx(values: FLOAT, count: int):
        """TopK; among equal values, the lower index comes first, as in a stable sort."""
        op: Any = opset18
        _, places = op.TopK(values, op.Constant(value_ints=[count]), axis=1, largest=1, sorted=1)
        return places

    return {torch.ops.perception.nms_mask.default: keep_in_onnx, torch.ops.perception.stable_topk.default: best_in_onnx}
