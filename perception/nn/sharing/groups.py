"""Task groups (Standley et al. 2020) in one network: a trunk for each group of tasks, with hard sharing inside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass, suggest_name
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.gradient_cut import CutFunction, no_cut
from perception.nn.necks import NeckConfig
from perception.nn.sharing.hard import HardSharing, HardSharingConfig
from perception.nn.sharing.sharing import RequiredStrides, Sharing, SharingOutput, TaskPyramids, select_modules
from perception.types import ConfigError


@config_dataclass
class TaskGroupsConfig:
    """Config of `TaskGroups`.

    Attributes:
        groups: groups of tasks that share a trunk. A task in no group has its own trunk. An empty group (its tasks were
            removed from the recipe) has none.
    """

    name: Literal["groups"] = "groups"
    groups: Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)]


class TaskGroups(Sharing):
    """Hard sharing inside each group and no sharing between groups. All groups are trained and deployed as one network.

    `perception group` finds which tasks to group. Gradients meet at the trunks' pyramids, and those of different groups
    are orthogonal. The pyramid of a task without a group is included, for balancers that use gradient norms.
    `keep_tasks` removes the trunks of groups without a kept stream.
    """

    Config = TaskGroupsConfig

    def __init__(
        self,
        config: TaskGroupsConfig,
        backbone: BackboneConfig,
        neck: NeckConfig,
        required_strides: RequiredStrides,
        weights: bool,
    ) -> None:
        super().__init__(config, backbone, neck, required_strides, weights)
        self.groups = nn.ModuleDict()
        for name, members in _name_groups(config.groups, required_strides).items():
            own = {stream: strides for stream, strides in required_strides.items() if stream in members}
            self.groups[name] = HardSharing(HardSharingConfig(), backbone, neck, own, weights)
        channels = {stream: its for group in self._iterate_groups() for stream, its in group.channels.items()}
        self.channels = {stream: channels[stream] for stream in required_strides}

    def forward(self, images: Tensor, required_strides: RequiredStrides, cut: CutFunction = no_cut) -> SharingOutput:
        """Return the pyramids of the requested streams, see `Sharing.forward`."""
        streams: TaskPyramids = {}
        shared_parameters: list[Tensor] = []
        for group in self._iterate_groups():
            own = {stream: strides for stream, strides in required_strides.items() if stream in group.channels}
            if own:
                features = group(images, own, cut)
                streams |= features.pyramids
                shared_parameters += features.shared_features
        return SharingOutput({stream: streams[stream] for stream in required_strides}, tuple(shared_parameters), {})

    def backbones(self) -> Iterator[Backbone]:
        """Return the backbones of all groups."""
        return chain.from_iterable(group.backbones() for group in self._iterate_groups())

    def _iterate_groups(self) -> Iterator[HardSharing]:
        groups: Any = self.groups
        yield from groups.values()

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of all trunks."""
        return chain.from_iterable(group.shared_parameters() for group in self._iterate_groups())

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of all necks."""
        return chain.from_iterable(group.last_shared_parameters() for group in self._iterate_groups())

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove the trunks of groups without one of the tasks, in place."""
        super().keep_tasks(tasks)
        for group in self._iterate_groups():
            group.keep_tasks(tasks)
        self.groups = select_modules(self.groups, [name for name, group in self.groups.items() if group.channels])


def _name_groups(groups: Collection[Collection[str]], tasks: Collection[str]) -> Mapping[str, Collection[str]]:
    """Return {trunk name: its tasks}, in which the name is the index of a group, or the name of a task without one.

    So changes to other tasks do not rename weights. Raises ConfigError if a group has an unknown task, or a task is
    named twice.
    """
    for task, times in Counter(chain.from_iterable(groups)).items():
        if task not in tasks:
            raise ConfigError(f"model.sharing.groups: this recipe has no '{task}'. {suggest_name(task, tasks)}")
        if times > 1:
            raise ConfigError(f"model.sharing.groups: '{task}' is named {times} times. Expected one group per task.")
    numbered = {str(i): members for i, members in enumerate(groups) if members}
    return numbered | {task: (task,) for task in tasks if not any(task in members for members in groups)}
