"""The manifest against its JSON schema: what is written fits it, what is wrong does not."""

import json
import re
from pathlib import Path

import pytest

from perception.deploy import manifest as module
from perception.deploy.manifest import extract, parse
from perception.types import PerceptionError

SCHEMA = json.loads(Path(module.__file__).with_name("manifest.schema.json").read_text("utf-8"))
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "null": type(None)}


def problems(value, schema, where="$") -> list[str]:
    """What of JSON Schema the manifest's schema uses. An unknown keyword is an error of the test."""
    known = "$schema $defs title description type required additionalProperties properties const enum pattern minimum"
    known += " maximum items minItems maxItems minProperties propertyNames oneOf $ref"
    assert set(schema) <= set(known.split())
    found = []
    if "$ref" in schema:
        found += problems(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], where)
    if "oneOf" in schema and sum(not problems(value, one, where) for one in schema["oneOf"]) != 1:
        found.append(f"{where}: fits none")
    if "type" in schema and not any(is_of(value, kind) for kind in listed(schema["type"])):
        return [*found, f"{where}: {value!r} is no {schema['type']}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r}")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{where}: {value!r}")
    if is_of(value, "number") and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{where}: {value!r}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        for i, item in enumerate(value):
            found += problems(item, schema.get("items", {}), f"{where}[{i}]")
    if isinstance(value, dict):
        found += [f"{where}: no {key}" for key in schema.get("required", ()) if key not in value]
        if len(value) < schema.get("minProperties", 0):
            found.append(f"{where}: empty")
        for key, item in value.items():
            found += problems(key, schema.get("propertyNames", {}), f"{where} key")
            rest = schema.get("additionalProperties", True)
            inner = schema.get("properties", {}).get(key, rest)
            if inner is False:
                found.append(f"{where}.{key}: unknown")
            elif inner is not True:
                found += problems(item, inner, f"{where}.{key}")
    return found


def listed(kinds) -> list[str]:
    return kinds if isinstance(kinds, list) else [kinds]


def is_of(value, kind: str) -> bool:
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, KINDS[kind]) and not (kind == "integer" and isinstance(value, bool))


@pytest.fixture(params=["exported", "exported_inside"])
def text(request) -> str:
    return request.getfixturevalue(request.param).with_suffix(".json").read_text("utf-8")


def test_what_is_written_fits_the_schema(text):
    assert problems(json.loads(text), SCHEMA) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("graph"),
        lambda m: m.update(format=1),
        lambda m: m.update(extra=1),
        lambda m: m["input"].update(dtype="float32"),
        lambda m: m["input"].update(size=[96]),
        lambda m: m["outputs"]["depth.depth"].update(shape="batch"),
        lambda m: m["tasks"]["depth"].update(limits=[1]),
        lambda m: m["tasks"]["depth"].pop("unit"),
        lambda m: m["parity"].update({"depth.depth": "small"}),
        lambda m: m.update(weights="0" * 63),
    ],
)
def test_what_is_wrong_does_not(text, change):
    manifest = json.loads(text)
    change(manifest)
    assert problems(manifest, SCHEMA)


def test_the_schema_names_every_field(exported):
    """In both directions: what the code writes is described, what is described is written."""
    plain = json.loads(exported.with_suffix(".json").read_text("utf-8"))
    assert set(SCHEMA["properties"]) == set(plain) == set(SCHEMA["required"])
    assert set(SCHEMA["properties"]["input"]["properties"]) == set(plain["input"])
    for spec in plain["tasks"].values():
        assert set(SCHEMA["properties"]["tasks"]["additionalProperties"]["properties"]) == set(spec)


def test_the_schema_is_a_schema():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["outputs"].pop("depth.depth"), r"outputs: depth\.depth is missing"),
        (lambda m: m["input"].update(preprocess="within"), "input.preprocess 'within', expected one of"),
        (lambda m: m["input"].update(layout="NHWC"), "input.layout 'NHWC', expected 'NCHW'"),
        (lambda m: m["input"].update(resize="nearest"), "input.resize 'nearest'"),
        (lambda m: m.pop("outputs"), "manifest is not valid"),
        (lambda m: m.update(surprise=1), "surprise"),
    ],
)
def test_x3_a_manifest_that_is_not_valid_is_refused(exported, change, message):
    plain = json.loads(exported.with_suffix(".json").read_text("utf-8"))
    assert parse(json.dumps(plain), "") == extract(exported.read_bytes(), "")
    change(plain)
    with pytest.raises(PerceptionError, match=message):
        parse(json.dumps(plain), "small.onnx")
