"""Task groups (Standley et al. 2020) in one network: a trunk for each group of tasks, shared hard inside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from perception.config import configuration, expected
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.gradient_cut import Divide, undivided
from perception.nn.necks import NeckConfig
from perception.nn.sharing.hard import Hard, HardConfig
from perception.nn.sharing.sharing import Features, Needs, Pyramids, Sharing, only
from perception.types import ConfigError


@configuration
class GroupsConfig:
    """groups: tasks that share a trunk. A task in none of them has one by itself; an empty group, which is what is left
    of one whose tasks were taken out of the recipe, has none."""

    name: Literal["groups"] = "groups"
    groups: Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)]


class Groups(Sharing):
    """Hard sharing inside each group and nothing between them, as in a network for each group, but trained and deployed
    as one. `perception group` finds which tasks belong together.

    Gradients meet at the trunks' pyramids, those of different groups at right angles. That of a task by itself counts
    too, for balancers that look at lengths. Trunks of groups without a kept stream are dropped by `keep`.
    """

    Config = GroupsConfig

    def __init__(
        self, config: GroupsConfig, backbone: BackboneConfig, neck: NeckConfig, needs: Needs, weights: bool
    ) -> None:
        super().__init__(config, backbone, neck, needs, weights)
        self.groups = nn.ModuleDict()
        for name, members in _named(config.groups, needs).items():
            own = {stream: strides for stream, strides in needs.items() if stream in members}
            self.groups[name] = Hard(HardConfig(), backbone, neck, own, weights)
        channels = {stream: its for group in self._groups() for stream, its in group.channels.items()}
        self.channels = {stream: channels[stream] for stream in needs}

    def forward(self, images: Tensor, needs: Needs, divide: Divide = undivided) -> Features:
        streams: Pyramids = {}
        shared: list[Tensor] = []
        for group in self._groups():
            own = {stream: strides for stream, strides in needs.items() if stream in group.channels}
            if own:
                features = group(images, own, divide)
                streams |= features.streams
                shared += features.shared
        return Features({stream: streams[stream] for stream in needs}, tuple(shared), {})

    def backbones(self) -> Iterator[Backbone]:
        return chain.from_iterable(group.backbones() for group in self._groups())

    def _groups(self) -> Iterator[Hard]:
        groups: Any = self.groups
        yield from groups.values()

    def shared(self) -> Iterator[nn.Parameter]:
        return chain.from_iterable(group.shared() for group in self._groups())

    def last_shared(self) -> Iterator[nn.Parameter]:
        return chain.from_iterable(group.last_shared() for group in self._groups())

    def keep(self, streams: Collection[str]) -> None:
        super().keep(streams)
        for group in self._groups():
            group.keep(streams)
        self.groups = only(self.groups, [name for name, group in self.groups.items() if group.channels])


def _named(groups: Collection[Collection[str]], tasks: Collection[str]) -> Mapping[str, Collection[str]]:
    """Name of a trunk -> its tasks: the number of a group, or the name of a task in none; so what other tasks there are
    renames no weights. Raises ConfigError where a group names what is no task, or a task is named twice."""
    for task, times in Counter(chain.from_iterable(groups)).items():
        if task not in tasks:
            raise ConfigError(f"model.sharing.groups: this recipe has no '{task}'. {expected(task, tasks)}")
        if times > 1:
            raise ConfigError(f"model.sharing.groups: '{task}' is named {times} times. Expected one group for a task.")
    numbered = {str(i): members for i, members in enumerate(groups) if members}
    return numbered | {task: (task,) for task in tasks if not any(task in members for members in groups)}
