"""The search space of `perception tune`: dotted keys of the recipe, each with its values.

tune:
  train.lr: {log: [3.0e-4, 3.0e-3]}
  balance.name: {choice: [static, uncertainty]}
  balance.weights.depth: {log: [0.25, 4], when: {balance.name: static}}
  model.neck: {choice: [{name: fpn, channels: 64}, {name: fpn, channels: 128}]}
  model.sharing: {choice: [{name: hard}, {name: groups, groups: [[detection, depth], [segmentation]]}]}
  train.batch_size: {integer: [4, 16]}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from perception import config
from perception import recipe as recipes
from perception.config import config_dataclass
from perception.mtl.balancers import BALANCERS
from perception.nn.fusion import FUSIONS
from perception.nn.sharing import SHARINGS
from perception.recipe import Recipe
from perception.types import ConfigError

TUNE_SECTION = "tune"
DIMENSION_KINDS = ("choice", "uniform", "log", "integer")
DEFAULT_BALANCERS = ("static", "uncertainty", "geometric_mean", "dwa", "famo", "imtl", "aligned_mtl", "upgrad")
"""Balancers in the default space: one or two of each family, no slow ones."""


@config_dataclass
class Dimension:
    """The values of one key. Exactly one of the first four fields is set.

    Attributes:
        choice: any values, including mappings.
        uniform: [low, high], uniformly distributed.
        log: [low, high], uniformly distributed in the logarithm.
        integer: [low, high], an integer, both ends included.
        when: other keys of the space -> the value that each must have; otherwise the recipe's value is kept.
    """

    choice: tuple[Any, ...] | None = None
    uniform: tuple[float, float] | None = None
    log: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    when: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Name of the field that is set."""
        return next(name for name in DIMENSION_KINDS if getattr(self, name) is not None)

    @property
    def values(self) -> tuple[Any, ...]:
        """The choices, or (low, high)."""
        return getattr(self, self.kind)

    def __post_init__(self) -> None:
        given = [name for name in DIMENSION_KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"Expected exactly one of {', '.join(DIMENSION_KINDS)}, found {', '.join(given) or 'none'}."
            )
        if not self.values:
            raise ConfigError("choice: expected at least one value.")
        low, high = self.values[0], self.values[-1]
        if self.kind != "choice" and (not low < high or (self.kind == "log" and low <= 0)):
            raise ConfigError(
                f"{self.kind}: expected [low, high] with low < high{' and low > 0' * (self.kind == 'log')}."
            )


SearchSpace: TypeAlias = dict[str, Dimension]


def load_space(path: Path | None, recipe_file: Path) -> SearchSpace | None:
    """Load the space from a YAML file (top level or ``tune``), or from the recipe's ``tune`` section; None if absent.

    Raises:
        ConfigError: the space is invalid or empty.
    """
    mapping = config.load_yaml(path or recipe_file)
    section = mapping.get(TUNE_SECTION, mapping if path else None)
    if section is None:
        return None
    where = str(path or recipe_file)
    space = config.validate_config(dict[str, Dimension], section, where=where, path=TUNE_SECTION)
    for key, dimension in space.items():
        for other in dimension.when:
            if other not in space or list(space).index(other) > list(space).index(key):
                raise ConfigError(
                    f"{where}: {TUNE_SECTION}.{key}.when uses {other}, which must be listed before it in the space."
                )
    if not space:
        raise ConfigError(f"{where}: the section {TUNE_SECTION} is empty. Remove it to use the default space.")
    return space


def build_default_space(recipe: Recipe) -> SearchSpace:
    """Build the default space: learning rate, balancer, static weights, sharing, fusion.

    The first task's weight is fixed, because only the ratios matter. Only sharings without required settings and with
    shared parameters, which some balancers need, are included; others only if the recipe uses them.
    """
    lr, first = recipe.train.lr, next(iter(recipe.tasks))
    balancers = [name for name in DEFAULT_BALANCERS if name in BALANCERS]
    space = {
        "train.lr": Dimension(log=(lr / 4, lr * 4)),
        "balance.name": Dimension(choice=tuple(dict.fromkeys([recipe.balance.name, *balancers]))),
    }
    for task in recipe.tasks:
        if task != first:
            weight = Dimension(log=(0.25, 4.0), when={"balance.name": "static"})
            space[f"balance.weights.{task}"] = weight
    architectures = {
        "model.sharing.name": (recipe.model.sharing.name, SHARINGS),
        "model.fusion.name": (recipe.model.fusion.name, FUSIONS),
    }
    for key, (mine, known) in architectures.items():
        usable = tuple(
            name for name in dict.fromkeys([mine, *known]) if name == mine or _is_buildable(recipe, {key: name})
        )
        if len(usable) > 1:
            space[key] = Dimension(choice=usable)
    return space


def _is_buildable(recipe: Recipe, values: Mapping[str, Any]) -> bool:
    """Whether the recipe is valid with these values and no further settings, and its tasks share parameters."""
    try:
        network = recipes.build_model(apply_values(recipe, values), pretrained=False)
    except (ConfigError, ValueError):
        return False
    return next(network.shared_parameters(), None) is not None


def suggest_values(space: SearchSpace, suggest_value: Callable[[str, Dimension], Any]) -> dict[str, Any]:
    """Get a value for every key whose conditions hold. suggest_value: key, dimension -> value."""
    values: dict[str, Any] = {}
    for key, dimension in space.items():
        if all(values.get(other) == wanted for other, wanted in dimension.when.items()):
            values[key] = suggest_value(key, dimension)
    return values


def find_recipe_point(space: SearchSpace, recipe: Recipe) -> dict[str, Any] | None:
    """Find the point of the space that equals the recipe; None if the space does not contain it."""
    values = suggest_values(space, lambda key, dimension: _find_recipe_value(recipe, key, dimension))
    return None if _ABSENT in values.values() else values


_ABSENT = object()


def _find_recipe_value(recipe: Recipe, key: str, dimension: Dimension) -> object:
    """The recipe's value in a dimension."""
    value = _get_value(config.to_plain(recipe), key)
    if dimension.kind != "choice":
        inside = isinstance(value, (int, float)) and dimension.values[0] <= value <= dimension.values[1]
        return value if inside else _ABSENT
    return next((v for v in dimension.values if v == value or _is_unchanged(recipe, key, v)), _ABSENT)


def _is_unchanged(recipe: Recipe, key: str, value: object) -> bool:
    """Whether a choice, with defaults for missing settings, equals the recipe's value."""
    try:
        return apply_values(recipe, {key: value}) == recipe
    except ConfigError:
        return False


def _get_value(mapping: Any, key: str) -> object:
    *parents, _ = parts = key.split(".")
    if parents[:-1] == ["balance"] and parents[-1] == "weights":
        return mapping["balance"].get("weights", {}).get(parts[-1], 1.0)
    for part in parts:
        if not isinstance(mapping, dict) or part not in mapping:
            return None
        mapping = mapping[part]
    return mapping


def apply_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Apply values to the recipe. A section with a new ``name`` is reset, because its settings belong to the old name.

    Raises:
        ConfigError: the result is not a valid recipe.
    """
    mapping = config.to_plain(recipe)
    overrides = []
    for key, value in values.items():
        section, _, last = key.rpartition(".")
        if last == "name" and section and _get_value(mapping, key) != value:
            overrides.append(f"{section}={json.dumps({'name': value})}")
        else:
            overrides.append(f"{key}={json.dumps(value)}")
    return recipes.parse(config.dump_yaml(mapping), overrides, where="tune")


def dump_space(space: SearchSpace) -> str:
    """Dump the space as YAML, to detect changes."""
    return config.dump_yaml({key: {dim.kind: list(dim.values), "when": dim.when} for key, dim in space.items()})


def find_pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto-optimal (score, cost) points (high score, low cost), ordered by cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0]))
    chosen: list[int] = []
    for i in order:
        if not chosen or points[i][0] > points[chosen[-1]][0]:
            chosen.append(i)
    return chosen
