"""From maps of a coarse grid of cells to pixels, bilinear, each value at the place that it belongs to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample_to_pixels(maps: Tensor, stride: int, subsample: int = 1) -> Tensor:
    """The bilinear interpolation of ``maps`` at every ``subsample``-th pixel: those that ``[::step, ::step]`` picks.

    maps:   [B, C, h, w], cells of ``stride`` x ``stride`` pixels, each value at the center of its cell
    Returns [B, C, h * stride / step, w * stride / step], rounded up.

    Interpolating to the smaller size instead would take values between pixels: all of them (step - 1) / 2 pixels off.
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
    """The class of every pixel: the largest of the interpolated logits, as bytes.

    logits: [B, C, h, w], cells of ``stride`` x ``stride`` pixels
    Returns uint8 [B, h * stride, w * stride].

    There are two forms of it, equal but for rounding, because torch is fast at resizing and at looking across planes,
    and ONNX Runtime is slow at both: there, half of the default network's heads was this one step.
    """
    if torch.compiler.is_exporting():
        return _upsample_argmax_for_export(logits, stride)
    size = logits.shape[2] * stride, logits.shape[3] * stride
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)


def _upsample_argmax_for_export(logits: Tensor, stride: int) -> Tensor:
    """Each pixel of a cell is a fixed mixture of the cell and its neighbors: one product of matrices."""
    batch, classes, height, width = logits.shape
    cells = logits.permute(0, 2, 3, 1)
    cells = torch.cat([cells[:, :1], cells, cells[:, -1:]], 1)
    cells = torch.cat([cells[:, :, :1], cells, cells[:, :, -1:]], 2)
    around = [cells[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    mixed = _bilinear_weights(stride).to(logits) @ torch.stack(around).flatten(1)
    best = mixed.view(stride, stride, batch, height, width, classes).argmax(-1).float()
    placed = best.permute(2, 3, 0, 4, 1).reshape(batch, height * stride, width * stride)
    return placed.to(torch.uint8)  # last, and from float: TensorRT has bytes at its ends alone


def _bilinear_weights(stride: int) -> Tensor:
    """[stride * stride, 9]: how the pixels of a cell mix the 3 x 3 cells around it, by rows."""
    away = (torch.arange(stride) + 0.5) / stride - 0.5
    along = torch.stack([(-away).clamp(min=0), 1 - away.abs(), away.clamp(min=0)], 1)
    return (along[:, None, :, None] * along[None, :, None, :]).reshape(stride * stride, 9)
