"""Necks: from a backbone's features to the pyramid that heads read. To add a neck, write its file and list it here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from perception.config import config_dataclass
from perception.nn.blocks import ChannelCount
from perception.nn.necks.bifpn import BiFPN, BiFPNConfig
from perception.nn.necks.fpn import FPN, FPNConfig
from perception.nn.necks.neck import Neck
from perception.nn.necks.pan import PAN, PANConfig
from perception.nn.necks.simple import SimplePyramid, SimplePyramidConfig
from perception.types import ConfigError

NECKS: dict[str, type[Neck]] = {"fpn": FPN, "pan": PAN, "bifpn": BiFPN, "simple": SimplePyramid}
"""Neck name in a recipe -> class. To add one, also add its config to `NeckConfig`."""

STRIDES = (4, 8, 16, 32, 64)
"""Strides of the levels that heads can read."""


def check_strides(strides: Sequence[int]) -> None:
    """Check that the strides can be the levels of a pyramid.

    Raises:
        ConfigError: they cannot. The message names the strides.
    """
    if not strides or list(strides) != sorted(set(strides) & set(STRIDES)):
        raise ConfigError(
            f"strides is {list(strides)}. Expected some of {', '.join(map(str, STRIDES))}, in this order, "
            "without duplicates."
        )


@config_dataclass
class AutoNeckConfig:
    """Selects `simple` if all backbone features have one stride, else `fpn`, with these widths.

    Attributes:
        channels: width of the levels of stride 8 and coarser.
        fine_channels: width of the level of stride 4.
    """

    name: Literal["auto"] = "auto"
    channels: ChannelCount = 96
    fine_channels: ChannelCount = 48


def _default_to_auto(value: object) -> object:
    return {"name": "auto", **value} if isinstance(value, dict) else value


NeckConfig: TypeAlias = Annotated[
    Annotated[AutoNeckConfig | FPNConfig | PANConfig | BiFPNConfig | SimplePyramidConfig, Field(discriminator="name")],
    BeforeValidator(_default_to_auto),
]


def build_neck(config: Any, channels: Mapping[int, int], strides: Collection[int]) -> Neck:
    """Build the neck that a config names.

    Args:
        config: one of the configs in `NeckConfig`.
        channels: {stride: channels} of the backbone.
        strides: the levels that heads read.

    Raises:
        ConfigError: the neck, the backbone and the levels do not fit together.
    """
    plain, have = len(channels) == 1, ", ".join(map(str, sorted(channels)))
    if isinstance(config, AutoNeckConfig):
        fitting = SimplePyramid if plain else FPN
        config = fitting.Config(channels=config.channels, fine_channels=config.fine_channels)
    kind = NECKS[config.name]
    if kind.single_scale != plain:
        names = " or ".join(name for name, other in NECKS.items() if other.single_scale == plain)
        raise ConfigError(
            f"model.neck: '{config.name}' reads features of "
            f"{'one stride' if kind.single_scale else 'several strides'}, but "
            f"the backbone's have stride {have}. Use model.neck.name: {names}."
        )
    if unknown := sorted(set(strides) - set(STRIDES)):
        raise ConfigError(f"A task reads a level of stride {unknown[0]}. Levels have strides {STRIDES}.")
    lacking = [stride for stride in STRIDES if min(strides) <= stride <= max(channels) and stride not in channels]
    if lacking and not plain:
        raise ConfigError(
            f"A task reads levels from stride {min(strides)} on, but the backbone's have strides {have}. Set "
            "tasks.<name>.strides without the finer ones, or choose another backbone."
        )
    return kind(channels, config, strides)


__all__ = ["NECKS", "AutoNeckConfig", "Neck", "NeckConfig", "build_neck", "check_strides"]
