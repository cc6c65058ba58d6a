"""What every sharing architecture is: images in, a pyramid for each stream out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.gradient_cut import CutFunction, no_cut
from perception.nn.necks import NeckConfig

RequiredStrides = Mapping[str, Collection[int]]
"""Stream (one for each task) -> strides of the pyramid that its reader wants."""

TaskPyramids = dict[str, dict[int, Tensor]]
"""Stream -> {stride: features [B, C, H / stride, W / stride]}."""


class SharingOutput(NamedTuple):
    """What a sharing architecture makes of a batch of images.

    pyramids:   the pyramid of each stream
    shared_features:    the features where the gradients of several streams meet, as they are read; empty where they
    never do
    penalties: name -> scalar, with its strength, to be minimised beside the losses; of a training pass
    """

    pyramids: TaskPyramids
    shared_features: tuple[Tensor, ...]
    penalties: dict[str, Tensor]


class Sharing(nn.Module, ABC):
    """Which layers tasks share. A new architecture subclasses this and is named in `perception.nn.sharing.SHARINGS`.

    ``Kind(config, backbone, neck, needs, weights)``: needs = the streams and all that can be asked of them, weights =
    load the backbone's.
    """

    Config: ClassVar[type]
    channels: dict[str, dict[int, int]]
    """Stream -> {stride: channels} of its pyramid."""

    def __init__(
        self, config: Any, backbone: BackboneConfig, neck: NeckConfig, required_strides: RequiredStrides, weights: bool
    ) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, images: Tensor, required_strides: RequiredStrides, cut: CutFunction = no_cut) -> SharingOutput:
        """uint8 RGB [B, 3, H, W] to the pyramids of the streams in ``required_strides``. Runs nothing that they do not
        depend on.

        A stream's pyramid does not depend on which others are asked for.

        cut: called with each of the features where gradients meet; what it returns is read from there on. Not called
            where no set of features parts what streams share from what they do not.
        """

    @abstractmethod
    def backbones(self) -> Iterator[Backbone]:
        """Every backbone, at least one; all normalize images alike."""

    @abstractmethod
    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that several streams depend on; each of the others belongs to one stream."""

    @abstractmethod
    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the last layers among them."""

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Drop, in place, what none of ``tasks`` depends on."""
        self.channels = {name: channels for name, channels in self.channels.items() if name in tasks}


def all_strides(required_strides: RequiredStrides) -> set[int]:
    """All strides that any stream wants."""
    return {stride for strides in required_strides.values() for stride in strides}


def select_modules(modules: nn.ModuleDict, names: Collection[str]) -> nn.ModuleDict:
    """Those of the modules that have one of the names."""
    return nn.ModuleDict({name: module for name, module in modules.items() if name in names})
