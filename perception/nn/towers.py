"""Convolution towers that are shared by the levels of a pyramid."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class ConvTower(nn.Module):
    """Depthwise-separable convolutions shared by all levels, with a separate BatchNorm per level.

    The levels have different statistics, so a shared BatchNorm would behave differently in evaluation and in training.
    """

    def __init__(self, channels: int, num_convs: int, num_levels: int) -> None:
        super().__init__()
        self.depthwise = nn.ModuleList(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False) for _ in range(num_convs)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(num_convs))
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2 * num_convs)) for _ in range(num_levels)
        )

    def forward(self, features: Tensor, level: int) -> Tensor:
        """Map the features [B, C, H, W] of the level with this index to the same shape."""
        norms: Any = self.norms[level]
        for i, (depthwise, pointwise) in enumerate(zip(self.depthwise, self.pointwise, strict=True)):
            features = F.relu6(norms[2 * i](depthwise(features)))
            features = F.relu6(norms[2 * i + 1](pointwise(features)))
        return features
