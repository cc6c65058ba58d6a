"""Sharing architectures: which layers the tasks share between the image and their heads."""

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
"""Architecture name in a recipe -> class. To add one, also add its config to `SharingConfig`."""

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
    """Build the architecture that a config names.

    Args:
        config: one of the configs in `SharingConfig`.
        backbone: config of the backbone.
        neck: config of the neck.
        required_strides: stream -> strides that its head reads.
        weights: whether to load the backbone's weights.
    """
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
