"""Read a YAML file into frozen dataclasses. Independent of the other components.

A config is a frozen dataclass beside the class that it configures, declared with `config_dataclass`. Reading rejects
unknown keys and wrong types (the error gives their dotted path), YAML aliases (they allow bombs), tags (they allow code
execution), duplicate keys and huge files.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from perception.types import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from typing_extensions import dataclass_transform
else:  # typing has it from Python 3.11 on; only type checkers use it

    def dataclass_transform(**_):
        """Do nothing; only type checkers use the real one."""
        return lambda function: function


T = TypeVar("T")

MAX_YAML_BYTES = 1 << 20
_MAX_QUOTED_LENGTH = 300
_YAML_VALUE_ERRORS = (TypeError, ValueError, OverflowError, AttributeError)
"""PyYAML raises these for a list used as a key, and for an invalid date or number."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config_dataclass(cls: type[T]) -> type[T]:
    """Declare a config: a frozen, keyword-only dataclass that rejects unknown keys."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


class _Loader(yaml.SafeLoader):
    """SafeLoader that rejects aliases and duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ConfigError(
                f"{mark.name}, line {mark.line + 1}: YAML aliases (*name) are not allowed. Write the value out."
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                mark = key.start_mark
                raise ConfigError(f"{mark.name}, line {mark.line + 1}: '{key.value}' is given twice. Keep one of them.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, too large, not UTF-8, not YAML or not a mapping. The message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"No recipe at {path}. Expected the path of a YAML file, for example configs/street.yaml.")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes. A recipe has at most {MAX_YAML_BYTES} bytes.")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str = "the recipe") -> dict[str, Any]:
    """Return the mapping in YAML text. Error messages name its origin ``where``. Raises ConfigError."""
    try:
        loader = _Loader(text)
        loader.name = where
        mapping = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply. Expected about four levels.") from error
    except _YAML_VALUE_ERRORS as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{where} contains a {type(mapping).__name__}. Expected a mapping (key: value).")
    return mapping


def apply_overrides(mapping: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``mapping`` with dotted ``key=value`` assignments applied. Values are parsed as YAML.

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
            place: Any = _parse_list_index(node, part, key) if isinstance(node, list) else part
            if not isinstance(node[place] if isinstance(node, list) else node.get(place), (dict, list)):
                node[place] = {}
            node = node[place]
        try:
            parsed = yaml.load(value, _Loader)  # noqa: S506 - a SafeLoader
        except (yaml.YAMLError, RecursionError, *_YAML_VALUE_ERRORS) as error:
            raise ConfigError(f"Override '{text}': '{value}' is not valid YAML.") from error
        if isinstance(node, list):
            node[_parse_list_index(node, last, key)] = parsed
        else:
            node[last] = parsed
    return result


def _copy(value: object) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _parse_list_index(items: list, part: str, key: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(items):
        raise ConfigError(f"Override '{key}': '{part}' is not a valid index into a list of {len(items)} items.")
    return int(part)


def validate_config(cls: Any, value: Any, where: str = "", path: str = "") -> Any:
    """Validate plain data against a type.

    Args:
        cls: a config class or another type.
        value: mappings, lists and scalars, as YAML gives them.
        where: the file, for error messages.
        path: the dotted path of ``value`` in this file, for error messages.

    Raises:
        ConfigError: ``value`` is not valid. The message has one line per problem.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(value)
    except ValidationError as error:
        lines = [_describe_error(cls, problem, path) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join([f"{where or 'The recipe'} is not valid:", *lines])) from None


def _describe_error(cls: object, error: ErrorDetails, path: str) -> str:
    keys, there = _resolve_location(cls, error["loc"])
    location, kind, found = ".".join([path, *keys]).strip("."), error["type"], error["input"]
    if kind == "unexpected_keyword_argument":
        known = _field_names(_resolve_location(cls, error["loc"][:-1])[1])
        near = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else (f"Known keys: {', '.join(known)}." if known else "Remove it.")
        return f"  {location}: unknown key. {hint}"
    if kind == "missing":
        return f"  {location}: missing. Add it."
    if kind == "union_tag_invalid":
        context = error.get("ctx", {})
        key, tag = context["discriminator"].strip("'"), context["tag"]
        return f"  {location}.{key}: found '{tag}'. {suggest_name(tag, _discriminator_keys(there))}"
    return f"  {location}: {_describe_expected(kind, there, found) or error['msg']}, found {_shorten_value(found)}"


def _shorten_value(value: object) -> str:
    """Text of a value for an error message, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_QUOTED_LENGTH else f"{text[:_MAX_QUOTED_LENGTH]}..."


def _describe_expected(kind: str, expected_type: object, found: object) -> str:
    """Describe the expected value in YAML terms rather than Python types."""
    tags, keys = _discriminator_keys(expected_type), _field_names(expected_type)
    if kind in ("tuple_type", "list_type"):
        return "expected a list, such as [a, b]"
    if kind == "union_tag_not_found" and tags:
        return f"expected a {next(iter(tags.values()))}: one of {', '.join(tags)}"
    if kind in ("dict_type", "dataclass_type", "model_attributes_type"):
        if tags and not keys:
            name = found if isinstance(found, str) and found in tags else next(iter(tags))
            return f"expected a mapping, such as {{{tags[name]}: {name}}}"
        return "expected a mapping" + (f" of {', '.join(keys)}" if keys else " (key: value)")
    return ""


def suggest_name(name: str, known_names: Collection[str]) -> str:
    """Return a sentence with the closest known name, or with all known names."""
    near = difflib.get_close_matches(name, known_names, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Expected one of: {', '.join(known_names)}."


def _resolve_location(cls: object, location: Sequence[Any]) -> tuple[list[str], Any]:
    """Return the recipe keys of a pydantic error ``location``, and the type of the value there.

    A location also names the tried member of a union. That part is not a key.
    """
    keys: list[str] = []
    for part in location:
        kinds = _union_members(cls)
        chosen = (
            [kind for kind in kinds if part in _discriminator_keys(kind) or _is_type_name(kind, part)]
            if len(kinds) > 1
            else []
        )
        if not chosen:
            keys.append(str(part))
        cls = chosen[0] if chosen else next((found for kind in kinds if (found := _member_type(kind, part))), None)
    return keys, cls


def _is_type_name(cls: object, part: object) -> bool:
    """Whether pydantic uses ``part`` as the name of this type, such as ``tuple[str, ...]`` or ``literal['rest']``."""
    return str(part).partition("[")[0] == getattr(get_origin(cls), "__name__", "").lower() != ""


def _member_type(cls: object, key: object) -> Any:
    """The type of the value at a key of a config, list or mapping; None if there is none."""
    if dataclasses.is_dataclass(cls):
        return get_type_hints(cls).get(str(key))
    place = {list: 0, tuple: 0, dict: 1}.get(get_origin(cls))
    return None if place is None else get_args(cls)[place]


def _union_members(cls: object) -> list[Any]:
    """The members of a union type; the type itself if it is not a union."""
    if get_origin(cls) is Annotated:
        return _union_members(get_args(cls)[0])
    return (
        [one for kind in get_args(cls) for one in _union_members(kind)]
        if get_origin(cls) in (Union, UnionType)
        else [cls]
    )


def _field_names(cls: object) -> list[str]:
    """Names of the keys of a config."""
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _discriminator_keys(cls: object) -> dict[str, str]:
    """{name: key that contains it} for the names that select a config or one member of a union."""
    return {
        field.default: field.name
        for kind in _union_members(cls)
        for field in (dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ())
        if isinstance(field.default, str) and get_type_hints(kind)[field.name] == Literal[field.default]
    }


def to_plain(config: object) -> Any:
    """Convert a config to plain data for YAML (the inverse of `validate_config`)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def dump_yaml(config: object) -> str:
    """Convert a config to YAML text."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=120)
