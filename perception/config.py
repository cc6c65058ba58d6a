"""Reading a YAML file into frozen dataclasses. Knows no component of the system.

A config is a frozen dataclass beside the class that it configures, declared with `configuration`. Reading refuses
unknown keys and wrong kinds with their dotted path, YAML aliases (bombs), tags (code), duplicate keys and huge files.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

import yaml

from perception.types import ConfigError

T = TypeVar("T")

MAX_BYTES = 1 << 20


@dataclass_transform(frozen_default=True, kw_only_default=True)
def configuration(cls: type[T]) -> type[T]:
    """Declare a config: a frozen, keyword-only dataclass that refuses unknown keys."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases and duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ConfigError(
                f"{mark.name}, line {mark.line + 1}: YAML aliases (*name) are not allowed. Write the value out."
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                mark = key.start_mark
                raise ConfigError(f"{mark.name}, line {mark.line + 1}: '{key.value}' is given twice. Keep one of them.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError naming the file and line where it is not one."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"No recipe at {path}. Give the path of a YAML file, for example configs/street.yaml.")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes. A recipe has at most {MAX_BYTES}.")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str = "the recipe") -> dict[str, Any]:
    """The mapping in YAML text. ``where`` names its origin for the message."""
    try:
        loader = _Loader(text)
        loader.name = where
        mapping = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply. A recipe has about four levels.") from error
    except (TypeError, ValueError, OverflowError) as error:  # a list as a key, a date or a number that is none
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{where} holds a {type(mapping).__name__}. Expected a mapping (key: value).")
    return mapping


def override(mapping: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``mapping`` with dotted ``key=value`` assignments applied; values are parsed as YAML.

    A number in the path selects an item of a list: ``data.train.0.weight=2``.
    """
    result = _copy(mapping)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"Override '{text}' is not of the form key=value, for example train.steps=100.")
        node: Any = result
        *parents, last = key.split(".")
        for part in parents:
            if isinstance(node, list):
                node = node[_position(node, part, key)]
                continue
            if not isinstance(node.get(part), (dict, list)):
                node[part] = {}
            node = node[part]
        try:
            parsed = yaml.load(value, _Loader)  # noqa: S506 - a SafeLoader
        except (yaml.YAMLError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ConfigError(f"Override '{text}': '{value}' is not valid YAML.") from error
        if isinstance(node, list):
            node[_position(node, last, key)] = parsed
        else:
            node[last] = parsed
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _position(items: list, part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(f"Override '{key}': '{part}' is no position in a list of {len(items)} items.")
    return int(part)


def build(cls: Any, value: Any, where: str = "", path: str = "") -> Any:
    """Validate plain data against a type. ``where`` names the file, ``path`` the place in it, for the message."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(value)
    except ValidationError as error:
        lines = [_explain(cls, problem, path) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join([f"{where or 'The recipe'} is not valid:", *lines])) from None


def _explain(cls: Any, problem: Any, path: str) -> str:
    location = ".".join([path, *map(str, problem["loc"])]).strip(".")
    if problem["type"] == "unexpected_keyword_argument":
        known = _fields_at(cls, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else (f"Known keys: {', '.join(known)}." if known else "Remove it.")
        return f"  {location}: unknown key. {hint}"
    if problem["type"] == "missing":
        return f"  {location}: missing. Add it."
    return f"  {location}: {problem['msg']}, found {problem['input']!r}"


def expected(name: str, known: Collection[str]) -> str:
    """What to write instead of a name that is unknown, as a sentence."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Expected one of: {', '.join(known)}."


def _fields_at(cls: Any, location: tuple) -> list[str]:
    """Names of the keys that the config at ``location`` (of a pydantic error) knows."""
    for part in location:
        if dataclasses.is_dataclass(cls):
            cls = get_type_hints(cls).get(str(part))
        elif get_origin(cls) in (Union, UnionType):  # of configs: the part is the tag that chose one of them
            cls = next((kind for kind in get_args(cls) if part in _tags(kind)), None)
        elif get_origin(cls) in (tuple, list):
            cls = get_args(cls)[0]
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _tags(cls: Any) -> list[Any]:
    return (
        [f.default for f in dataclasses.fields(cls) if isinstance(f.default, str)]
        if dataclasses.is_dataclass(cls)
        else []
    )


def to_plain(config: Any) -> Any:
    """A config as plain data that YAML can hold (the inverse of `build`)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def dump(config: Any) -> str:
    """A config as YAML text."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=120)
