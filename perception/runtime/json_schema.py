"""As much of JSON Schema (2020-12) as the manifest's schema uses, so that the runtime needs no package for it.

A keyword that is not known here is an error of the schema, never passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from perception.files.safe_names import escape_unprintable

KEYWORDS = frozenset(
    ("$schema", "$defs", "$ref", "title", "description", "type", "required", "additionalProperties", "properties")
    + ("propertyNames", "minProperties", "maxProperties", "items", "minItems", "maxItems", "uniqueItems", "oneOf")
    + ("const", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum")
)
PYTHON_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def find_schema_errors(
    value: object, schema: Mapping[str, Any], root: Mapping[str, Any], where: str = ""
) -> Iterator[str]:
    """What of ``value``, plain JSON, does not fit ``schema``: sentences that begin with the field. root: the whole."""
    if unknown := set(schema) - KEYWORDS:
        raise ValueError(f"the schema says {', '.join(sorted(unknown))}, which is not known here")
    if "$ref" in schema:
        yield from find_schema_errors(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, where)
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is_type(value, kind) for kind in kinds):
        yield f"{where or 'all'} is {format_value(value)}, expected {' or '.join(kinds)}"
        return
    if "oneOf" in schema and sum(not any(find_schema_errors(value, one, root, where)) for one in schema["oneOf"]) != 1:
        yield f"{where} is {format_value(value)}, which is none of what is allowed"
    if "const" in schema and not _is_equal(value, schema["const"]):
        yield f"{where} is {format_value(value)}, expected {schema['const']!r}"
    if "enum" in schema and not any(_is_equal(value, one) for one in schema["enum"]):
        yield f"{where} is {format_value(value)}, expected one of {', '.join(map(repr, schema['enum']))}"
    if isinstance(value, str):
        yield from _find_text_errors(value, schema, where)
    elif isinstance(value, list):
        yield from _find_list_errors(value, schema, root, where)
    elif isinstance(value, dict):
        yield from _find_object_errors(value, schema, root, where)
    elif isinstance(value, (int, float)) and _is_type(value, "number"):
        yield from _find_number_errors(value, schema, where)


def _find_text_errors(value: str, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{where} has {len(value)} characters"
    elif "pattern" in schema and not re.search(re.sub(r"\$$", r"\\Z", schema["pattern"]), value):
        yield f"{where} is {format_value(value)}, expected a text like {schema['pattern']}"


def _find_number_errors(value: float, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    low, high, above = (schema.get(key) for key in ("minimum", "maximum", "exclusiveMinimum"))
    if (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        bounds = [f"{word} {x:g}" for word, x in (("from", low), ("over", above), ("to", high)) if x is not None]
        yield f"{where} is {format_value(value)}, expected a number {' '.join(bounds)}"


def _find_list_errors(value: list, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        yield f"{where} has {len(value)} items"
        return
    if schema.get("uniqueItems") and len({repr(item) for item in value}) < len(value):
        yield f"{where} has items that are equal"
    for i, item in enumerate(value):
        yield from find_schema_errors(item, schema.get("items", {}), root, f"{where}[{i}]")


def _find_object_errors(value: dict, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> Iterator[str]:
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
        yield f"{where or 'all'} has {len(value)} entries"
        return
    dot = f"{where}." if where else ""
    yield from (f"{dot}{key} is missing" for key in schema.get("required", ()) if key not in value)
    for key, item in value.items():
        name = f"{dot}{format_value(key)[1:-1]}"
        yield from find_schema_errors(key, schema.get("propertyNames", {}), root, f"the name {name}")
        inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
        if inner is False:
            yield f"{name} is unknown"
        elif inner is not True:
            yield from find_schema_errors(item, inner, root, name)


def _is_type(value: object, type_name: str) -> bool:
    if type_name in ("number", "integer"):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return isinstance(value, int) or (math.isfinite(value) and (type_name == "number" or value.is_integer()))
    return isinstance(value, PYTHON_TYPES[type_name])


def _is_equal(value: object, expected: object) -> bool:
    return value == expected and isinstance(value, bool) == isinstance(expected, bool)


def format_value(value: object) -> str:
    """A value for a message: short, on one line, harmless to a terminal."""
    if isinstance(value, (dict, list)) and len(value) > 3:
        return f"{'a list of' if isinstance(value, list) else 'an object with'} {len(value)} entries"
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "a huge number"
    text = escape_unprintable(repr(value[:60] if isinstance(value, str) else value))
    return text if len(text) <= 80 else f"{text[:77]}..."
