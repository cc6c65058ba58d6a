"""The base class of the sharing architectures: images in, one pyramid per stream out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.gradient_cut import CutFunction, no_cut
from perception.nn.necks import NeckConfig

RequiredStrides = Mapping[str, Collection[int]]
"""Stream (one per task) -> strides of the pyramid that its head reads."""

TaskPyramids = dict[str, dict[int, Tensor]]
"""Stream -> {stride: features [B, C, H / stride, W / stride]}."""


class SharingOutput(NamedTuple):
    """Output of a sharing architecture for a batch of images.

    Attributes:
        pyramids: the pyramid of each stream.
        shared_features: the features where the gradients of several streams meet, after the cut; empty if they never
            meet.
        penalties: name -> weighted scalar to minimize together with the losses, in training only.
    """

    pyramids: TaskPyramids
    shared_features: tuple[Tensor, ...]
    penalties: dict[str, Tensor]


class Sharing(nn.Module, ABC):
    """The layers that tasks share.

    A new architecture subclasses this and is listed in `perception.nn.sharing.SHARINGS`.

    Args:
        config: a config of class ``Config``.
        backbone: config of the backbone.
        neck: config of the neck.
        required_strides: all streams, with all strides that can be requested for them.
        weights: whether to load the backbone's weights.
    """

    Config: ClassVar[type]
    channels: dict[str, dict[int, int]]
    """Stream -> {stride: channels} of its pyramid."""

    def __init__(
        self,
        config: object,
        backbone: BackboneConfig,
        neck: NeckConfig,
        required_strides: RequiredStrides,
        weights: bool,
    ) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, images: Tensor, required_strides: RequiredStrides, cut: CutFunction = no_cut) -> SharingOutput:
        """Return the pyramids of the streams in ``required_strides``. Only what they depend on is computed.

        A stream's pyramid does not depend on which other streams are requested.

        Args:
            images: uint8 RGB [B, 3, H, W].
            required_strides: stream -> strides.
            cut: called with each of the features where gradients meet; everything above reads its result. Not called if
                no set of features separates the shared from the task-specific layers.
        """

    @abstractmethod
    def backbones(self) -> Iterator[Backbone]:
        """Return every backbone, at least one. All normalize images in the same way."""

    @abstractmethod
    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that several streams depend on. Each other parameter belongs to one stream."""

    @abstractmethod
    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the last shared layers."""

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove, in place, what none of ``tasks`` depends on."""
        self.channels = {name: channels for name, channels in self.channels.items() if name in tasks}


def all_strides(required_strides: RequiredStrides) -> set[int]:
    """Return the union of the strides of all streams."""
    return {stride for strides in required_strides.values() for stride in strides}


def select_modules(modules: nn.ModuleDict, names: Collection[str]) -> nn.ModuleDict:
    """Return the modules with one of the names."""
    return nn.ModuleDict({name: module for name, module in modules.items() if name in names})
