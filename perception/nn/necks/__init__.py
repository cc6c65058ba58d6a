"""Necks: from a backbone's features to the pyramid that heads read. One file = one neck; to add one, name it here."""

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
"""Name of a neck in a recipe -> class. Adding one: also name its config in `NeckConfig`."""

STRIDES = (4, 8, 16, 32, 64)
"""Of the levels that heads can read."""


def check_strides(strides: Sequence[int]) -> None:
    """Raises ConfigError where they cannot be the levels of a pyramid that something reads."""
    if not strides or list(strides) != sorted(set(strides) & set(STRIDES)):
        raise ConfigError(
            f"strides is {list(strides)}. Expected some of {', '.join(map(str, STRIDES))}, in this order, each once."
        )


@config_dataclass
class AutoNeckConfig:
    """`simple` where the backbone's features all have one stride, else `fpn`, with these widths."""

    name: Literal["auto"] = "auto"
    channels: ChannelCount = 96
    fine_channels: ChannelCount = 48


def _default_to_auto(value: Any) -> Any:
    return {"name": "auto", **value} if isinstance(value, dict) else value


NeckConfig: TypeAlias = Annotated[
    Annotated[AutoNeckConfig | FPNConfig | PANConfig | BiFPNConfig | SimplePyramidConfig, Field(discriminator="name")],
    BeforeValidator(_default_to_auto),
]


def build_neck(config: Any, channels: Mapping[int, int], strides: Collection[int]) -> Neck:
    """The neck that a config names.

    channels: {stride: channels} of the backbone. strides: the levels that heads read. Raises ConfigError where the
    neck, the backbone and the levels do not fit together.
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
            f"A task reads levels from stride {min(strides)} on, but the backbone's have strides {have}. Give "
            "tasks.<name>.strides without the finer ones, or take another backbone."
        )
    return kind(channels, config, strides)


__all__ = ["NECKS", "AutoNeckConfig", "Neck", "NeckConfig", "build_neck", "check_strides"]
