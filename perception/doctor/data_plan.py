"""What a recipe wants of its data, read section by section, so that one fault does not hide the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perception import config
from perception.data import DataConfig, SourceConfig
from perception.doctor.findings import Finding, plain
from perception.types import ConfigError

PARTS = ("train", "validation")
MAX_SIDE = 1 << 14
"""Pixels of the network's input beyond which no memory would do."""


@dataclass(frozen=True, slots=True)
class PlannedSource:
    """A source of the recipe with those of its readers whose config is valid.

    broken: whether some of it could not be read, so that what it labels is not known
    """

    part: str
    config: SourceConfig
    broken: bool = False

    @property
    def where(self) -> str:
        """Its name in findings: "train/<name>"."""
        return f"{self.part}/{plain(self.config.name, 80)}"


@dataclass(slots=True)
class Plan:
    """path: of the recipe. data: its ``data`` section. tasks: task -> its settings as written.

    classes: task -> its class list; empty for a quantity
    unknown: parts of which a source could not be read at all
    size_known: whether data.size is what the recipe says
    """

    path: Path
    name: str
    mapping: dict[str, Any]
    data: DataConfig
    tasks: dict[str, dict[str, Any]]
    classes: dict[str, tuple[str, ...]]
    sources: list[PlannedSource] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    size_known: bool = True

    def setting(self, task: str, name: str, default: Any = None) -> Any:
        """A setting of a task as the recipe writes it."""
        return self.tasks[task].get(name, default)

    def error(self, where: str, what: object, mend: str = "Correct it in the recipe.") -> None:
        """Note a fault of the recipe itself."""
        self.findings.append(Finding("error", "recipe", where, plain(what), mend))


def read_plan(path: Path, overrides: Sequence[str] = (), tasks: Collection[str] | None = None) -> Plan:
    """The plan of a recipe. Raises ConfigError where the file is no recipe at all."""
    mapping = _mapping(path, overrides)
    wanted = _wanted(path, mapping["tasks"], tasks)
    name = mapping.get("name", "run")
    plan = Plan(path, name if isinstance(name, str) else "run", mapping, DataConfig(), {}, {})
    for task, given in wanted.items():
        _read_task(plan, task, given)
    if not plan.tasks:
        plan.error("recipe", "No task of the recipe can be read, so nothing can be said of its labels.", "Mend them.")
    try:
        plan.data = config.build(DataConfig, mapping["data"])
        plan.sources = [PlannedSource(part, source) for part in PARTS for source in getattr(plan.data, part)]
    except ConfigError:
        _read_piecewise(plan, mapping["data"])
    if max(plan.data.size) > MAX_SIDE:
        shown = plain(list(plan.data.size), 80)
        plan.error("recipe", f"data.size is {shown}. Expected at most {MAX_SIDE} pixels a side.")
        plan.data, plan.size_known = dataclasses.replace(plan.data, size=DataConfig().size), False
    return plan


def _read_piecewise(plan: Plan, section: dict[Any, Any]) -> None:
    """What is right in a faulty ``data`` section, and findings for the rest."""
    plan.data = _read_settings(plan, section)
    for part in PARTS:
        _read_sources(plan, part, section.get(part))


def _mapping(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        mapping = config.override(config.load_yaml(path), overrides)
    except ConfigError:
        raise
    except (OSError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is no recipe: {error}. Compare it with configs/street.yaml.") from error
    for section in ("data", "tasks"):
        if not isinstance(mapping.get(section), dict) or not mapping[section]:
            raise ConfigError(
                f"{path} is no recipe: its section '{section}' is missing or no mapping. "
                "Compare it with configs/street.yaml."
            )
    return mapping


def _wanted(path: Path, given: dict[Any, Any], tasks: Collection[str] | None) -> dict[Any, Any]:
    unknown = [name for name in tasks or () if name not in given]
    if unknown:
        raise ConfigError(f"{path} has no task '{unknown[0]}'. It has: {', '.join(map(str, given))}.")
    return {name: value for name, value in given.items() if tasks is None or name in tasks}


def _read_task(plan: Plan, task: Any, given: Any) -> None:
    given = {} if given is None else given
    if not isinstance(task, str) or not isinstance(given, dict):
        plan.error("recipe", f"tasks.{task}: expected a name and a mapping of settings, found {given!r}.")
        return
    names = given.get("classes", ())
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        plan.error(
            "recipe", f"tasks.{task}.classes: expected a list of names, found {names!r}.",
            "Put names that YAML takes for something else (yes, no, on, off, null, 1) in quotes.",
        )  # fmt: skip
        return
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        plan.error("recipe", f"tasks.{task}.classes: {', '.join(twice)} given twice.", "Give each class once.")
        names = list(dict.fromkeys(names))
    plan.tasks[task], plan.classes[task] = given, tuple(names)


def _read_settings(plan: Plan, section: dict[Any, Any]) -> DataConfig:
    """The ``data`` section without its sources; of a faulty one only ``root`` and ``size``, where these are right."""
    settings = {key: value for key, value in section.items() if key not in PARTS}
    try:
        return config.build(DataConfig, settings, where="The recipe", path="data")
    except ConfigError as error:
        plan.error("recipe", error)
    kept: dict[str, Any] = {}
    for key in ("root", "size"):
        if key in settings:
            try:
                config.build(DataConfig, {**kept, key: settings[key]})
            except ConfigError:
                continue
            kept[key] = settings[key]
    plan.size_known = "size" in kept or "size" not in settings
    return config.build(DataConfig, kept)


def _read_sources(plan: Plan, part: str, given: Any) -> None:
    if given is None:
        given = []
    if not isinstance(given, list):
        plan.error("recipe", f"data.{part}: expected a list of sources, found {given!r}.")
        plan.unknown.add(part)
        return
    for position, item in enumerate(given):
        source = _read_source(plan, part, position, item)
        if source is None:
            plan.unknown.add(part)
        elif any(other.part == part and other.config.name == source.config.name for other in plan.sources):
            plan.error(source.where, f"data.{part} has two sources of the name '{source.config.name}'.", "Rename one.")
            renamed = dataclasses.replace(source.config, name=f"{source.config.name} ({position})")
            plan.sources.append(dataclasses.replace(source, config=renamed))
        else:
            plan.sources.append(source)


def _read_source(plan: Plan, part: str, position: int, item: Any) -> PlannedSource | None:
    """The source, or what is left of it without the readers whose config is faulty."""
    path = f"data.{part}.{position}"
    try:
        return PlannedSource(part, config.build(SourceConfig, item, path=path))
    except ConfigError as error:
        named = isinstance(item, dict) and isinstance(item.get("name"), str)
        plan.error(f"{part}/{plain(item['name'], 80)}" if named else "recipe", error)
    labels = item.get("labels") if isinstance(item, dict) else None
    readers = []
    for label in labels if isinstance(labels, list) else []:
        try:
            readers += config.build(SourceConfig, {"name": "one", "labels": [label]}).labels
        except ConfigError:
            continue
    if not readers:
        return None
    name = item["name"] if named and item["name"] and "/" not in item["name"] else f"source {position}"
    return PlannedSource(part, SourceConfig(name=name, labels=tuple(readers)), broken=True)
