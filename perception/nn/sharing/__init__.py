"""Sharing architectures: what tasks have in common between the picture and their heads."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field

from perception.nn.backbone import BackboneConfig
from perception.nn.necks import NeckConfig
from perception.nn.sharing.cross_stitch import CrossStitch, CrossStitchConfig
from perception.nn.sharing.experts import Experts, ExpertsConfig
from perception.nn.sharing.groups import Groups, GroupsConfig
from perception.nn.sharing.hard import Hard, HardConfig
from perception.nn.sharing.sharing import Features, Needs, Pyramids, Sharing
from perception.nn.sharing.soft import Soft, SoftConfig
from perception.nn.sharing.task_attention import TaskAttention, TaskAttentionConfig

SHARINGS: dict[str, type[Sharing]] = {
    "hard": Hard,
    "soft": Soft,
    "cross_stitch": CrossStitch,
    "task_attention": TaskAttention,
    "experts": Experts,
    "groups": Groups,
}
"""Name of an architecture in a recipe -> class. Adding one: also name its config in `SharingConfig`."""

SharingConfig: TypeAlias = Annotated[
    HardConfig | SoftConfig | CrossStitchConfig | TaskAttentionConfig | ExpertsConfig | GroupsConfig,
    Field(discriminator="name"),
]


def build_sharing(config: Any, backbone: BackboneConfig, neck: NeckConfig, needs: Needs, weights: bool) -> Sharing:
    """The architecture that a config names, for streams with these ``needs``. weights: load the backbone's."""
    return SHARINGS[config.name](config, backbone, neck, needs, weights)


__all__ = ["SHARINGS", "Features", "HardConfig", "Needs", "Pyramids", "Sharing", "SharingConfig", "build_sharing"]
