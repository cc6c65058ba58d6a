"""The data settings of a recipe, read section by section, so that one error does not hide the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perception import config
from perception.data import DataConfig, SourceConfig
from perception.doctor.findings import Finding, sanitize_text
from perception.types import ConfigError

SPLITS = ("train", "validation")
MAX_INPUT_SIDE = 1 << 14
"""Maximum side of the network's input, pixels. Larger inputs do not fit into memory."""


@dataclass(frozen=True, slots=True)
class PlannedSource:
    """A source of the recipe with the readers whose config is valid.

    Attributes:
        split: "train" or "validation".
        config: config of the source, without invalid readers.
        is_incomplete: some of its config is invalid, so its labels are not fully known.
    """

    split: str
    config: SourceConfig
    is_incomplete: bool = False

    @property
    def where(self) -> str:
        """The source's name in findings: "train/<name>"."""
        return f"{self.split}/{sanitize_text(self.config.name, 80)}"


@dataclass(slots=True)
class DataPlan:
    """The valid parts of a recipe, and findings for the rest.

    Attributes:
        path: file of the recipe.
        name: name of the recipe.
        raw_recipe: the recipe as written.
        data: its ``data`` section.
        tasks: task -> settings as written.
        classes: task -> class list; empty for a quantity.
        sources: the sources of both splits.
        findings: errors in the recipe.
        unreadable_splits: splits with a source that could not be read.
        has_valid_size: ``data.size`` is the recipe's value, not the default in place of an invalid one.
    """

    path: Path
    name: str
    raw_recipe: dict[str, Any]
    data: DataConfig
    tasks: dict[str, dict[str, Any]]
    classes: dict[str, tuple[str, ...]]
    sources: list[PlannedSource] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unreadable_splits: set[str] = field(default_factory=set)
    has_valid_size: bool = True

    def get_setting(self, task: str, name: str, default: object = None) -> object:
        """Return a setting of a task as written in the recipe."""
        return self.tasks[task].get(name, default)

    def add_error(self, where: str, message: object, fix: str = "Correct it in the recipe.") -> None:
        """Add a finding about an error in the recipe itself."""
        self.findings.append(Finding("error", "recipe", where, sanitize_text(message), fix))


def read_plan(path: Path, overrides: Sequence[str] = (), tasks: Collection[str] | None = None) -> DataPlan:
    """Read the plan of a recipe.

    Args:
        path: file of the recipe.
        overrides: "key=value" settings that replace those of the file.
        tasks: tasks to examine; None = all.

    Returns:
        The valid parts of the recipe, and findings for the rest.

    Raises:
        ConfigError: the file is not a recipe.
    """
    mapping = _load_recipe(path, overrides)
    wanted = _select_tasks(path, mapping["tasks"], tasks)
    name = mapping.get("name", "run")
    plan = DataPlan(path, name if isinstance(name, str) else "run", mapping, DataConfig(), {}, {})
    for task, given in wanted.items():
        _read_task(plan, task, given)
    if not plan.tasks:
        plan.add_error("recipe", "No task of the recipe is valid, so its labels cannot be checked.", "Fix the tasks.")
    try:
        plan.data = config.validate_config(DataConfig, mapping["data"])
        plan.sources = [PlannedSource(part, source) for part in SPLITS for source in getattr(plan.data, part)]
    except ConfigError:
        _read_piecewise(plan, mapping["data"])
    if max(plan.data.size) > MAX_INPUT_SIDE:
        shown = sanitize_text(list(plan.data.size), 80)
        plan.add_error("recipe", f"data.size is {shown}. Expected at most {MAX_INPUT_SIDE} pixels a side.")
        plan.data, plan.has_valid_size = dataclasses.replace(plan.data, size=DataConfig().size), False
    return plan


def _read_piecewise(plan: DataPlan, section: dict[Any, Any]) -> None:
    """Read the valid parts of a faulty ``data`` section, and add findings for the rest."""
    plan.data = _read_settings(plan, section)
    for part in SPLITS:
        _read_sources(plan, part, section.get(part))


def _load_recipe(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        mapping = config.apply_overrides(config.load_yaml(path), overrides)
    except ConfigError:
        raise
    except (OSError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a recipe: {error}. Compare it with configs/street.yaml.") from error
    for section in ("data", "tasks"):
        if not isinstance(mapping.get(section), dict) or not mapping[section]:
            raise ConfigError(
                f"{path} is not a recipe: its section '{section}' is missing or not a mapping. "
                "Compare it with configs/street.yaml."
            )
    return mapping


def _select_tasks(path: Path, settings: dict[Any, Any], tasks: Collection[str] | None) -> dict[Any, Any]:
    unknown = [name for name in tasks or () if name not in settings]
    if unknown:
        raise ConfigError(f"{path} has no task '{unknown[0]}'. It has: {', '.join(map(str, settings))}.")
    return {name: value for name, value in settings.items() if tasks is None or name in tasks}


def _read_task(plan: DataPlan, task: object, settings: object) -> None:
    settings = {} if settings is None else settings
    if not isinstance(task, str) or not isinstance(settings, dict):
        plan.add_error("recipe", f"tasks.{task}: expected a name and a mapping of settings, found {settings!r}.")
        return
    names = settings.get("classes", ())
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        plan.add_error(
            "recipe", f"tasks.{task}.classes: expected a list of names, found {names!r}.",
            "Quote names that YAML reads as another type (yes, no, on, off, null, 1).",
        )  # fmt: skip
        return
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        plan.add_error("recipe", f"tasks.{task}.classes: {', '.join(twice)} given twice.", "Give each class once.")
        names = list(dict.fromkeys(names))
    plan.tasks[task], plan.classes[task] = settings, tuple(names)


def _read_settings(plan: DataPlan, section: dict[Any, Any]) -> DataConfig:
    """The ``data`` section without its sources; if it is faulty, only valid values of ``root`` and ``size``."""
    settings = {key: value for key, value in section.items() if key not in SPLITS}
    try:
        return config.validate_config(DataConfig, settings, where="The recipe", path="data")
    except ConfigError as error:
        plan.add_error("recipe", error)
    kept: dict[str, Any] = {}
    for key in ("root", "size"):
        if key in settings:
            try:
                config.validate_config(DataConfig, {**kept, key: settings[key]})
            except ConfigError:
                continue
            kept[key] = settings[key]
    plan.has_valid_size = "size" in kept or "size" not in settings
    return config.validate_config(DataConfig, kept)


def _read_sources(plan: DataPlan, split: str, items: object) -> None:
    if items is None:
        items = []
    if not isinstance(items, list):
        plan.add_error("recipe", f"data.{split}: expected a list of sources, found {items!r}.")
        plan.unreadable_splits.add(split)
        return
    for position, item in enumerate(items):
        source = _read_source(plan, split, position, item)
        if source is None:
            plan.unreadable_splits.add(split)
        elif any(other.split == split and other.config.name == source.config.name for other in plan.sources):
            plan.add_error(source.where, f"data.{split} has two sources named '{source.config.name}'.", "Rename one.")
            renamed = dataclasses.replace(source.config, name=f"{source.config.name} ({position})")
            plan.sources.append(dataclasses.replace(source, config=renamed))
        else:
            plan.sources.append(source)


def _read_source(plan: DataPlan, split: str, position: int, item: Any) -> PlannedSource | None:
    """Read a source without the readers whose config is faulty; None if nothing is left."""
    path = f"data.{split}.{position}"
    try:
        return PlannedSource(split, config.validate_config(SourceConfig, item, path=path))
    except ConfigError as error:
        named = isinstance(item, dict) and isinstance(item.get("name"), str)
        plan.add_error(f"{split}/{sanitize_text(item['name'], 80)}" if named else "recipe", error)
    labels = item.get("labels") if isinstance(item, dict) else None
    readers = []
    for label in labels if isinstance(labels, list) else []:
        try:
            readers += config.validate_config(SourceConfig, {"name": "one", "labels": [label]}).labels
        except ConfigError:
            continue
    if not readers:
        return None
    name = item["name"] if named and item["name"] and "/" not in item["name"] else f"source {position}"
    return PlannedSource(split, SourceConfig(name=name, labels=tuple(readers)), is_incomplete=True)
