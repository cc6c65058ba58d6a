"""What every neck is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn


class Neck(nn.Module, ABC):
    """One file of ``perception.nn.necks``: from a backbone's features to the pyramid that heads read.

    ``Kind(channels, config, strides)``: channels = {stride: channels} of the backbone, strides = the levels that heads
    read: powers of two, the coarsest may be coarser than any of the backbone's. Layers that none of them needs are not
    made.
    """

    Config: ClassVar[type]
    single_scale: ClassVar[bool] = False
    """Whether it is made for features of one stride only, as plain ViTs have them."""
    channels: dict[int, int]
    """{stride: channels} of the pyramid."""

    def __init__(self, channels: Mapping[int, int], config: Any, strides: Collection[int]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, features: Mapping[int, Tensor], strides: Collection[int]) -> dict[int, Tensor]:
        """{stride: [B, channels, ceil(H / stride), ceil(W / stride)]} for ``strides`` only; what they do not need is
        not computed, and each is what it would be if all were asked for."""
