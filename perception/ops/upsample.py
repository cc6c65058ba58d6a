"""From maps of a coarse grid of cells to pixels, bilinear, each value at the place that it belongs to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_pixels(maps: Tensor, stride: int, step: int = 1) -> Tensor:
    """The bilinear interpolation of ``maps`` at every ``step``-th pixel: those that ``[::step, ::step]`` picks.

    maps:   [B, C, h, w], cells of ``stride`` x ``stride`` pixels, each value at the centre of its cell
    Returns [B, C, h * stride / step, w * stride / step], rounded up.

    Interpolating to the smaller size instead would take values between pixels: all of them (step - 1) / 2 pixels off.
    """
    if stride % step:
        size = maps.shape[2] * stride, maps.shape[3] * stride
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[..., ::step, ::step]
    return _along(_along(maps, 2, stride, step), 3, stride, step)


def _along(maps: Tensor, axis: int, stride: int, step: int) -> Tensor:
    count = maps.shape[axis]
    before = torch.cat([maps.narrow(axis, 0, 1), maps.narrow(axis, 0, count - 1)], axis)
    after = torch.cat([maps.narrow(axis, 1, count - 1), maps.narrow(axis, count - 1, 1)], axis)
    away = [(pixel + 0.5) / stride - 0.5 for pixel in range(0, stride, step)]
    values = [torch.lerp(maps, before if share < 0 else after, abs(share)) for share in away]
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)
