"""What every sharing architecture is: pictures in, a pyramid for each stream out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from perception.nn.trunk import Trunk

Needs = Mapping[str, Collection[int]]
"""Stream (one for each task) -> strides of the pyramid that its reader wants."""

Pyramids = dict[str, dict[int, Tensor]]
"""Stream -> {stride: features [B, C, H / stride, W / stride]}."""


class Features(NamedTuple):
    """What a sharing architecture makes of a batch of pictures.

    streams: the pyramid of each stream
    shared:  the features where the gradients of several streams meet; empty where they never do
    routing: how much each stream took of each expert [B, streams, experts]; None where there are no experts
    """

    streams: Pyramids
    shared: tuple[Tensor, ...]
    routing: Tensor | None = None


class Sharing(nn.Module, ABC):
    """Which layers tasks share. A new architecture subclasses this and is named in `perception.nn.sharing.SHARINGS`."""

    channels: dict[str, dict[int, int]]
    """Stream -> {stride: channels} of its pyramid."""

    @abstractmethod
    def forward(self, images: Tensor, needs: Needs) -> Features:
        """uint8 RGB [B, 3, H, W] to the pyramids of the streams in ``needs``. Runs nothing that they do not depend on.

        A stream's pyramid does not depend on which others are asked for.
        """

    @abstractmethod
    def trunks(self) -> Iterator[Trunk]:
        """Every backbone with its neck, at least one."""

    @abstractmethod
    def last_shared(self) -> Iterator[nn.Parameter]:
        """Parameters of the last layers that several streams depend on; none where nothing is shared."""

    def shared(self) -> Iterator[nn.Parameter]:
        """All parameters that several streams depend on."""
        return self.parameters()

    def penalties(self, features: Features) -> dict[str, Tensor]:
        """Name -> scalar that the architecture asks to be minimised beside the losses, with its strength."""
        return {}

    def keep(self, streams: Collection[str]) -> None:
        """Drop, in place, what none of ``streams`` depends on."""
        self.channels = {name: channels for name, channels in self.channels.items() if name in streams}
