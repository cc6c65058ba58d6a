"""Sharing architectures: what tasks have in common between the picture and their heads."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field

from perception.nn.backbone import BackboneConfig
from perception.nn.necks import NeckConfig
from perception.nn.sharing.hard import Hard, HardConfig
from perception.nn.sharing.sharing import Features, Needs, Pyramids, Sharing

__all__ = ["SHARINGS", "Features", "HardConfig", "Needs", "Pyramids", "Sharing", "SharingConfig", "build_sharing"]

SHARINGS: dict[str, Any] = {"hard": Hard}

SharingConfig: TypeAlias = Annotated[HardConfig, Field()]


def build_sharing(
    config: HardConfig, backbone: BackboneConfig, neck: NeckConfig, needs: Needs, weights: bool
) -> Sharing:
    """The architecture that a config names, for streams with these ``needs``. weights: load the backbone's."""
    return SHARINGS[config.name](config, backbone, neck, needs, weights)
