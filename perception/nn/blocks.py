"""Building blocks of necks and heads."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

ChannelCount = Annotated[int, Field(gt=0)]
"""Number of feature channels."""


def conv_norm_act(
    in_channels: int, out_channels: int, kernel_size: int = 1, groups: int = 1, act: bool = True, stride: int = 1
) -> nn.Sequential:
    """Build convolution (same padding, no bias), BatchNorm, ReLU6 (which folds, quantizes and runs fast everywhere)."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if act else nn.Sequential(*layers)


def separable_conv(in_channels: int, out_channels: int, kernel_size: int = 5) -> nn.Sequential:
    """Build a depthwise and a pointwise convolution (Howard et al. 2017): a large kernel at a ninth of the cost."""
    return nn.Sequential(
        *conv_norm_act(in_channels, in_channels, kernel_size, groups=in_channels),
        *conv_norm_act(in_channels, out_channels, 1),
    )


def downsample(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build layers that halve height and width, rounded up.

    They are a depthwise stride-2 and a pointwise convolution, without an activation.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        *conv_norm_act(in_channels, out_channels, act=False),
    )


def upsample_to(features: Tensor, reference: Tensor) -> Tensor:
    """Resize bilinearly to the height and width of ``reference``."""
    return F.interpolate(features, size=reference.shape[-2:], mode="bilinear", align_corners=False)


def upsample_twice(features: Tensor, reference: Tensor) -> Tensor:
    """Resize bilinearly by a factor of two, to the next finer level.

    The result is cropped to the size of ``reference``: the last cell of stride 64 may extend beyond the last cell of
    stride 32. Cell positions stay exactly aligned.
    """
    features = F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
    return features[..., : reference.shape[-2], : reference.shape[-1]]
