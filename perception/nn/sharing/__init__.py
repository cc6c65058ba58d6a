"""Sharing architectures: what tasks have in common between the image and their heads."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field

from perception.nn.backbone import BackboneConfig
from perception.nn.necks import NeckConfig
from perception.nn.sharing.cross_stitch import CrossStitch, CrossStitchConfig
from perception.nn.sharing.experts import MixtureOfExperts, MixtureOfExpertsConfig
from perception.nn.sharing.groups import TaskGroups, TaskGroupsConfig
from perception.nn.sharing.hard import HardSharing, HardSharingConfig
from perception.nn.sharing.sharing import RequiredStrides, Sharing, SharingOutput, TaskPyramids
from perception.nn.sharing.soft import SoftSharing, SoftSharingConfig
from perception.nn.sharing.task_attention import TaskAttention, TaskAttentionConfig

SHARINGS: dict[str, type[Sharing]] = {
    "hard": HardSharing,
    "soft": SoftSharing,
    "cross_stitch": CrossStitch,
    "task_attention": TaskAttention,
    "experts": MixtureOfExperts,
    "groups": TaskGroups,
}
"""Name of an architecture in a recipe -> class. Adding one: also name its config in `SharingConfig`."""

SharingConfig: TypeAlias = Annotated[
    HardSharingConfig
    | SoftSharingConfig
    | CrossStitchConfig
    | TaskAttentionConfig
    | MixtureOfExpertsConfig
    | TaskGroupsConfig,
    Field(discriminator="name"),
]


def build_sharing(
    config: Any, backbone: BackboneConfig, neck: NeckConfig, required_strides: RequiredStrides, weights: bool
) -> Sharing:
    """The architecture that a config names, for streams with these ``required_strides``. weights: load the
    backbone's."""
    return SHARINGS[config.name](config, backbone, neck, required_strides, weights)


__all__ = [
    "SHARINGS",
    "HardSharingConfig",
    "RequiredStrides",
    "Sharing",
    "SharingConfig",
    "SharingOutput",
    "TaskPyramids",
    "build_sharing",
]
