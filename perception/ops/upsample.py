"""Bilinear upsampling from a grid of cells to pixels, exactly aligned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample_to_pixels(maps: Tensor, stride: int, subsample: int = 1) -> Tensor:
    """Interpolate ``maps`` bilinearly at every ``subsample``-th pixel: those of ``[::subsample, ::subsample]``.

    Resizing to the smaller size would sample between pixels, with an offset of (subsample - 1) / 2 pixels.

    Args:
        maps: [B, C, h, w], cells of ``stride`` x ``stride`` pixels, values at the cell centers.
        stride: pixels per cell.
        subsample: step between pixels.

    Returns:
        [B, C, h * stride / subsample, w * stride / subsample], rounded up.
    """
    if stride % subsample:
        size = maps.shape[2] * stride, maps.shape[3] * stride
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[..., ::subsample, ::subsample]
    return _upsample_axis(_upsample_axis(maps, 2, stride, subsample), 3, stride, subsample)


def _upsample_axis(maps: Tensor, axis: int, stride: int, subsample: int) -> Tensor:
    count = maps.shape[axis]
    before = torch.cat([maps.narrow(axis, 0, 1), maps.narrow(axis, 0, count - 1)], axis)
    after = torch.cat([maps.narrow(axis, 1, count - 1), maps.narrow(axis, count - 1, 1)], axis)
    away = [(pixel + 0.5) / stride - 0.5 for pixel in range(0, stride, subsample)]
    values = [torch.lerp(maps, before if share < 0 else after, abs(share)) for share in away]
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def upsample_argmax(logits: Tensor, stride: int) -> Tensor:
    """Return the class of every pixel: argmax of the interpolated logits.

    The export uses another implementation, equal except for rounding. torch is fast at resizing and at argmax over
    planes. ONNX Runtime is slow at both: this step alone took half of the time of the default network's heads.

    Args:
        logits: [B, C, h, w], cells of ``stride`` x ``stride`` pixels.
        stride: pixels per cell.

    Returns:
        uint8 [B, h * stride, w * stride].
    """
    if torch.compiler.is_exporting():
        return _upsample_argmax_for_export(logits, stride)
    size = logits.shape[2] * stride, logits.shape[3] * stride
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)


def _upsample_argmax_for_export(logits: Tensor, stride: int) -> Tensor:
    """Each pixel of a cell is a fixed mixture of the cell and its neighbors: one matrix product."""
    batch, classes, height, width = logits.shape
    cells = logits.permute(0, 2, 3, 1)
    cells = torch.cat([cells[:, :1], cells, cells[:, -1:]], 1)
    cells = torch.cat([cells[:, :, :1], cells, cells[:, :, -1:]], 2)
    around = [cells[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    mixed = _bilinear_weights(stride).to(logits) @ torch.stack(around).flatten(1)
    best = mixed.view(stride, stride, batch, height, width, classes).argmax(-1).float()
    placed = best.permute(2, 3, 0, 4, 1).reshape(batch, height * stride, width * stride)
    return placed.to(torch.uint8)  # last, and from float: TensorRT supports bytes only at inputs and outputs


def _bilinear_weights(stride: int) -> Tensor:
    """[stride * stride, 9]: weights of the 3 x 3 neighboring cells for each pixel of a cell, row by row."""
    away = (torch.arange(stride) + 0.5) / stride - 0.5
    along = torch.stack([(-away).clamp(min=0), 1 - away.abs(), away.clamp(min=0)], 1)
    return (along[:, None, :, None] * along[None, :, None, :]).reshape(stride * stride, 9)
