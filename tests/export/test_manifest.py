"""The manifest against its JSON schema: what is written fits it, what is wrong does not."""

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest

from perception import cli
from perception.runtime import json_schema, onnx_file
from perception.runtime import manifest as module
from perception.runtime.manifest import DIGEST_KEY, MANIFEST_KEY, extract_manifest, parse_manifest
from perception.runtime.predictor import Predictor
from perception.types import PerceptionError

SCHEMA = json.loads(Path(module.__file__).with_name("manifest.schema.json").read_text("utf-8"))


def problems(value) -> list[str]:
    return list(json_schema.find_schema_errors(value, SCHEMA, SCHEMA))


@pytest.fixture(params=["exported", "exported_with_preprocessing"])
def text(request) -> str:
    return request.getfixturevalue(request.param).with_suffix(".json").read_text("utf-8")


def test_what_is_written_fits_the_schema(text):
    assert problems(json.loads(text)) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("graph_sha256"),
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
    assert problems(manifest)


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


@pytest.mark.fault("X3")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["outputs"].pop("depth.depth"), r"outputs: depth\.depth is missing"),
        (lambda m: m["input"].update(preprocess="within"), "input.preprocess is 'within', expected one of"),
        (lambda m: m["input"].update(layout="NHWC"), "input.layout 'NHWC', expected 'NCHW'"),
        (lambda m: m["input"].update(resize_rule="nearest"), "input.resize_rule 'nearest'"),
        (lambda m: m.pop("outputs"), "manifest is not valid"),
        (lambda m: m.update(surprise=1), "surprise"),
    ],
)
def test_a_manifest_that_is_not_valid_is_refused(exported, change, message):
    plain = json.loads(exported.with_suffix(".json").read_text("utf-8"))
    assert parse_manifest(json.dumps(plain), "") == extract_manifest(exported.read_bytes(), "")
    change(plain)
    with pytest.raises(PerceptionError, match=message):
        parse_manifest(json.dumps(plain), "small.onnx")


def signed(model: Path, manifest: object, out: Path) -> Path:
    """The file with another manifest whose checksums are right: as one who wants to deceive would write it."""
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    metadata = {MANIFEST_KEY: text, DIGEST_KEY: module._sha256(text)}
    out.write_bytes(onnx_file.replace_metadata(model.read_bytes(), metadata))
    return out


def renamed(plain: dict, old: str, new: str) -> dict:
    """The manifest with another name for a task wherever it is said."""
    plain["tasks"][new] = plain["tasks"].pop(old) | {"name": new}
    for kind in ("outputs", "parity"):
        plain[kind] = {key.replace(f"{old}.", f"{new}.", 1): value for key, value in plain[kind].items()}
    return plain


@pytest.mark.fault("S3")
@pytest.mark.parametrize(
    "name", ["../../../out", "/tmp/out", "..", "a/b", "a\\b", "C:x", "a\x1b[31m", "A", "", "a\n", "a" * 65]
)
@pytest.mark.parametrize("command", ["predict", "label"])
def test_a_task_whose_name_is_a_path_is_refused_when_the_file_is_opened(exported, tmp_path, name, command, capsys):
    plain = renamed(json.loads(exported.with_suffix(".json").read_text("utf-8")), "segmentation", name)
    evil = signed(exported, plain, tmp_path / "evil.onnx")
    (tmp_path / "images").mkdir()
    options = ["--maps"] if command == "predict" else []
    arguments = [command, str(evil), str(tmp_path / "images"), "--out", str(tmp_path / "a" / "b"), *options]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert "the manifest is not valid" in said
    assert "\x1b" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.onnx", "images"]


@pytest.mark.fault("X3")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["tasks"]["classification"].update(classes=["a\x1b[31m", "b"]), r"classes\[0\] is 'a\\x1b\[31m'"),
        (lambda m: m["tasks"]["classification"].update(classes=["a", "a"]), "classes has items that are equal"),
        (lambda m: m["tasks"]["classification"].update(classes=["a"]), r"classification\.probabilities is float32"),
        (lambda m: m["tasks"]["depth"].update(unit="m\u202e"), "depth.unit"),
        (lambda m: m["tasks"]["depth"].update(limits=[80, 1]), "the smaller number first"),
        (lambda m: m["tasks"]["depth"].update(canonical_focal=10**400), "canonical_focal is a huge number"),
        (lambda m: m["tasks"]["depth"].update(score_threshold=True), "score_threshold is True, expected number"),
        (lambda m: m["input"].update(size=[1 << 14, 1 << 14]), "at most 100000000 pixels"),
        (lambda m: m["input"].update(size=[1 << 40, 32]), r"input.size\[0\]"),
        (lambda m: m["input"].update(std=[0, 1, 1]), "over 0"),
        (lambda m: m["outputs"]["detection.scores"].update(shape=["batch", 7]), "unlike numbers of boxes"),
        (lambda m: m["outputs"]["depth.depth"].update(dtype="int64"), "expected float32"),
        (lambda m: m.update(outputs=[]), "outputs is .*, expected object"),
        (lambda m: m.update(tasks=5), "tasks is 5, expected object"),
    ],
)
def test_a_manifest_whose_fields_do_not_fit_is_refused(exported, change, message):
    plain = json.loads(exported.with_suffix(".json").read_text("utf-8"))
    change(plain)
    with pytest.raises(PerceptionError, match=message):
        parse_manifest(json.dumps(plain), "small.onnx")


@pytest.mark.fault("X3")
@pytest.mark.parametrize(
    "text", ["", "[]", "5", "null", '{"format": NaN}', "[" * 200_000, '{"format": 1e999}', "9" * 9999]
)
def test_what_is_no_manifest_at_all_is_refused(text):
    with pytest.raises(PerceptionError, match="manifest"):
        parse_manifest(text, "small.onnx")


@pytest.mark.fault("X3")
def test_a_graph_that_gives_something_else_than_its_manifest_says_is_refused(exported, tmp_path):
    plain = json.loads(exported.with_suffix(".json").read_text("utf-8"))
    other = copy.deepcopy(plain)
    for name in ("boxes", "scores", "labels"):
        other["outputs"][f"detection.{name}"]["shape"][1] = 299
    with pytest.raises(PerceptionError, match=r"detection\.boxes is tensor\(float\).*its manifest says"):
        Predictor(signed(exported, other, tmp_path / "a.onnx"))
    other = copy.deepcopy(plain)
    other["outputs"]["depth.depth"]["shape"] = ["batch", "width", "height"]
    perceiver = Predictor(signed(exported, other, tmp_path / "b.onnx"), threads=1)
    with pytest.raises(PerceptionError, match=r"depth\.depth is float32 \[1, 96, 160\].*manifest says"):
        perceiver(np.zeros((50, 50, 3), np.uint8))


WRONG = (
    None,
    True,
    0,
    -1,
    3,
    1 << 70,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "batch",
    "../x",
    "\x1b[2J",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
)


def places(value, path=()) -> list[tuple]:
    """The paths to everything in plain JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def mutated(plain: dict, chance: random.Random) -> dict:
    """A copy in which up to three places hold something else, are gone, or are doubled."""
    found = copy.deepcopy(plain)
    for _ in range(chance.randint(1, 3)):
        *way, last = chance.choice(places(found)[1:])
        holder = found
        for key in way:
            holder = holder[key]
        kind = chance.randrange(5)
        if kind == 0:
            del holder[last]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(chance.choice(WRONG))] = holder[last]
        elif kind == 2 and isinstance(holder[last], list):
            holder[last] = holder[last] * chance.choice((0, 2, 1000))
        elif kind == 3 and isinstance(holder[last], int | float):
            holder[last] = holder[last] * chance.choice((-1, 2, 0.5, 1 << 40)) + chance.choice((0, 1))
        else:
            holder[last] = copy.deepcopy(chance.choice(WRONG))
    return found


@pytest.mark.fault("X3")
def test_any_manifest_is_refused_by_a_sentence_or_works(exported, tmp_path):
    """3,000 that are wrong somewhere, checksums right: no other error, no hang, no flood of memory."""
    plain = json.loads(exported.with_suffix(".json").read_text("utf-8"))
    chance, opened, picture = random.Random(0), 0, np.zeros((40, 60, 3), np.uint8)
    for _ in range(3000):
        given = mutated(plain, chance)
        path = signed(exported, given, tmp_path / "m.onnx")
        said = ""
        try:
            perceiver = Predictor(path, threads=1)
            opened += 1
            perceiver(picture).to_dict()
        except PerceptionError as error:
            said = str(error)
        assert said.isprintable()
        assert problems(given) == [] or not _opens(path)
    assert 0 < opened < 1500


def _opens(path: Path) -> bool:
    try:
        extract_manifest(path.read_bytes(), "")
    except PerceptionError:
        return False
    return True


def test_the_package_reads_the_schema_as_jsonschema_does(text):
    jsonschema = pytest.importorskip("jsonschema")
    judge, chance, plain = jsonschema.Draft202012Validator(SCHEMA), random.Random(1), json.loads(text)
    for _ in range(1000):
        given = mutated(plain, chance)
        assert judge.is_valid(given) == (problems(given) == [])
