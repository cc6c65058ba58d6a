"""The base class of the necks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import ClassVar

from torch import Tensor, nn


class Neck(nn.Module, ABC):
    """From a backbone's features to the pyramid that heads read. Each neck has its own file in ``perception.nn.necks``.

    Layers that no requested level needs are not built.

    Args:
        channels: {stride: channels} of the backbone.
        config: a config of class ``Config``.
        strides: the levels that heads read. They are powers of two, and can be coarser than all levels of the backbone.
    """

    Config: ClassVar[type]
    single_scale: ClassVar[bool] = False
    """Whether the neck expects features of one stride only, as plain ViTs have them."""
    channels: dict[int, int]
    """{stride: channels} of the pyramid."""

    def __init__(self, channels: Mapping[int, int], config: object, strides: Collection[int]) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, features: Mapping[int, Tensor], strides: Collection[int]) -> dict[int, Tensor]:
        """Return {stride: [B, channels, ceil(H / stride), ceil(W / stride)]} for ``strides`` only.

        Only what these levels need is computed. A level does not depend on which other levels are requested.
        """
