"""What an exported file says of itself: tasks, classes, sizes, normalization, units, and the proof of parity. No torch.

The manifest is JSON in the ONNX file's metadata, beside the SHA-256 of its own text; the manifest holds the SHA-256 of
the graph. So a file that was damaged or edited is refused. This is no signature: whoever wants to deceive can
recompute both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from perception import __version__
from perception.ops.image import PAD_VALUE
from perception.runtime import onnx_file
from perception.runtime.json_schema import find_schema_errors, format_value
from perception.types import PerceptionError, TaskSpec

FORMAT = 3
MAX_CHARACTERS = 1 << 24
"""Characters of a manifest."""
MAX_PIXELS = 100_000_000
"""Of a network's input."""
MAX_MASK_CLASSES = 255
INTEGER_FIELDS = frozenset(("size", "size_divisor", "pad_value", "shape"))
"""Fields of whole numbers."""
MAX_PROBLEMS = 5
"""That one message tells."""
MANIFEST_KEY = "perception.manifest"
DIGEST_KEY = "perception.manifest.sha256"


RESIZE_RULE = "bilinear; shrunk by 1.4 or more: to twice the size, then means of 2 x 2; by 2.8 or more: means of areas"
"""How an image is brought to the size it is placed at: `perception.ops.image`. Rounded to whole levels."""

EMBEDDED_RESIZE_RULE = (
    "bilinear to k times the size, then means of k x k; k = 1, 2, round(s) for a shrinkage s from 0, 1.4, 2.8"
)
"""The same rule in plain operators, without rounding to whole levels: `perception.export.embedded_preprocessing`."""

PreprocessPlacement: TypeAlias = Literal["external", "embedded"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """How an image becomes the graph's one input.

    size:     (height, width) that the network sees: that of training and evaluation
    mean, std: of the normalization, which is the graph's own first layer: ``(value / 255 - mean) / std``
    layout:   "NCHW": uint8 RGB [batch, 3, height, width]; "NHWC": [batch, height, width, 3]
    size_divisor: height and width that the network sees must be multiples of this
    placement:  "fit, top left": scaled to fit with its aspect ratio kept, placed top left, the rest filled with
    ``pad_value``
    resize_rule:   the rule of that scaling
    preprocess: "external": the caller places images, and outputs are in pixels of the input. "embedded": the graph
        does; the input is a batch of images of any one size, and outputs are in pixels of these images
    dynamic:  outside: any multiples of ``size_divisor`` are welcome, ``size`` is a recommendation; otherwise only
    ``size``
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = "images"
    dtype: str = "uint8"
    layout: str = "NCHW"
    color_order: str = "RGB"
    size_divisor: int = 32
    placement: str = "fit, top left"
    pad_value: int = PAD_VALUE
    resize_rule: str = RESIZE_RULE
    preprocess: PreprocessPlacement = "external"
    dynamic: bool = True

    @property
    def embeds_preprocessing(self) -> bool:
        """Does the graph place images itself?"""
        return self.preprocess == "embedded"


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output of the graph.

    dtype: as numpy calls it. shape: numbers, or names of what is known only at run time ("batch", "height", "width")
    description: what its numbers are, with their unit
    """

    dtype: str
    shape: tuple[int | str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """tasks:  name -> spec (classes, units, limits, focal length, thresholds)
    outputs:   name -> what it is, in the graph's order; a task's are called ``<task>.<output>``
    precision: of the arithmetic: "int8" and "fp16" keep what is sensitive in float32
    opset:     version of the ONNX operator set
    graph_sha256, weights_sha256: SHA-256 of the ONNX graph and of the network's parameters it was made from
    parity:    output -> largest difference between torch and ONNX Runtime that the export saw
    quality:   of a reduced precision: task -> its metric by name, "before" and "after" on the validation images
    speed:     of a reduced precision: seconds per image "before" and "after" on one thread, and their "ratio"
    producer, library_versions: program that wrote the file; versions of the libraries that it used
    """

    tasks: dict[str, TaskSpec]
    input: InputSpec
    outputs: dict[str, OutputSpec]
    precision: Precision = "fp32"
    opset: int = 0
    graph_sha256: str = ""
    weights_sha256: str = ""
    parity: dict[str, float] = field(default_factory=dict)
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)
    producer: str = f"perception {__version__}"
    library_versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


def manifest_to_json(manifest: Manifest, indent: int | None = None) -> str:
    """The manifest as JSON, as `perception/runtime/manifest.schema.json` describes it."""
    return json.dumps(dataclasses.asdict(manifest), ensure_ascii=False, indent=indent, allow_nan=False)


def embed_manifest(model: bytes, manifest: Manifest) -> bytes:
    """The ONNX file ``model`` with ``manifest`` in its metadata; ``manifest.graph`` is computed."""
    manifest = dataclasses.replace(manifest, graph_sha256=onnx_file.hash_graph(model))
    text = manifest_to_json(manifest)
    return onnx_file.replace_metadata(model, {MANIFEST_KEY: text, DIGEST_KEY: _sha256(text)})


def extract_manifest(model: bytes, where: str) -> Manifest:
    """The manifest of an ONNX file that passed `container.check`; ``where`` names it in messages.

    Raises PerceptionError where the manifest is missing, of another format, or does not fit itself or the graph.
    """
    pairs = onnx_file.read_metadata(model)
    if MANIFEST_KEY not in pairs:
        raise PerceptionError(
            f"{where} has no manifest. Expected a file written by `perception export`. Export it again."
        )
    text = pairs[MANIFEST_KEY]
    if pairs.get(DIGEST_KEY) != _sha256(text):
        raise PerceptionError(
            f"{where}: the manifest was changed after the export (its SHA-256 differs). Export it again."
        )
    manifest = parse_manifest(text, where)
    if manifest.graph_sha256 != onnx_file.hash_graph(model):
        raise PerceptionError(
            f"{where}: the graph is not the one that was exported (its SHA-256 differs). Export it again."
        )
    return manifest


def parse_manifest(text: str, where: str) -> Manifest:
    """A manifest from its JSON, which `manifest.schema.json` describes. Raises PerceptionError naming what is wrong."""
    if len(text) > MAX_CHARACTERS:
        raise PerceptionError(f"{where}: the manifest has {len(text)} characters, expected at most {MAX_CHARACTERS}.")
    try:
        plain = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise PerceptionError(
            f"{where}: the manifest is not valid: it is no JSON: {error}. Export it again."
        ) from error
    found = plain.get("format") if isinstance(plain, dict) else None
    if found != FORMAT and (isinstance(found, int) or found is None):
        raise PerceptionError(
            f"{where}: manifest format {format_value(found)}, expected {FORMAT}. "
            "Use the version of perception that wrote it, or export it again."
        )
    wrong = list(islice(find_schema_errors(plain, load_schema(), load_schema()), MAX_PROBLEMS)) or list(
        _find_inconsistencies(plain)
    )
    if wrong:
        raise PerceptionError(f"{where}: the manifest is not valid: {'; '.join(wrong)}. Export it again.")
    tasks = {name: _build_record(TaskSpec, spec) for name, spec in plain["tasks"].items()}
    outputs = {name: _build_record(OutputSpec, entry) for name, entry in plain["outputs"].items()}
    parts = {"tasks": tasks, "outputs": outputs, "input": _build_record(InputSpec, plain["input"])}
    return Manifest(**{**plain, **parts, "opset": int(plain["opset"]), "format": FORMAT})


@lru_cache(maxsize=1)
def load_schema() -> dict[str, Any]:
    """The JSON Schema of the manifest, which is published beside this module."""
    return json.loads(Path(__file__).with_name("manifest.schema.json").read_text("utf-8"))


def _reject_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _build_record(cls: type, plain: Mapping[str, Any]) -> object:
    return cls(**{key: _convert_value(value, key in INTEGER_FIELDS) for key, value in plain.items()})


def _convert_value(value: object, is_integer: bool) -> object:
    """Lists as tuples, and 32.0 as 32 where a whole number is meant: to JSON they are one."""
    if isinstance(value, list):
        return tuple(_convert_value(item, is_integer) for item in value)
    return int(value) if is_integer and isinstance(value, float) else value


def _find_inconsistencies(plain: Mapping[str, Any]) -> Iterator[str]:
    """What no schema can say: how the fields of a manifest must fit one another."""
    rules, outputs = plain["input"], plain["outputs"]
    inside = rules["preprocess"] == "embedded"
    known = {
        "layout": "NHWC" if inside else "NCHW",
        "pad_value": PAD_VALUE,
        "resize_rule": EMBEDDED_RESIZE_RULE if inside else RESIZE_RULE,
    }
    for key, value in known.items():
        if rules[key] != value:
            yield f"input.{key} {format_value(rules[key])}, expected {value!r}"
    if any(side % rules["size_divisor"] for side in rules["size"]):
        yield f"input.size {rules['size']}, expected multiples of {rules['size_divisor']}"
    if math.prod(rules["size"]) > MAX_PIXELS:
        yield f"input.size {rules['size']}, expected at most {MAX_PIXELS} pixels"
    for name, spec in plain["tasks"].items():
        yield from _find_task_inconsistencies(name, spec, outputs)
    if extra := set(outputs) - {
        f"{name}.{output}" for name, spec in plain["tasks"].items() for output in spec["outputs"]
    }:
        yield f"outputs: {', '.join(sorted(extra))} of no task"


def _find_task_inconsistencies(name: str, spec: Mapping[str, Any], outputs: Mapping[str, Any]) -> Iterator[str]:
    where, classes = f"tasks.{name}", spec["classes"]
    if spec["name"] != name:
        yield f"{where}.name {spec['name']}, expected {name}"
    if not classes and (spec["annotation_type"] != "dense" or not spec["unit"]):
        yield f"{where}: neither classes nor a unit"
    if spec["annotation_type"] == "dense" and len(classes) > MAX_MASK_CLASSES:
        yield f"{where}.classes has {len(classes)}, expected at most {MAX_MASK_CLASSES}: ids are bytes"
    if spec["limits"] and not spec["limits"][0] < spec["limits"][1]:
        yield f"{where}.limits {spec['limits']}, expected the smaller number first"
    wanted = expected_outputs(spec["annotation_type"], classes)
    counts = {str(outputs[key]["shape"][1:2]) for key in (f"{name}.{o}" for o in spec["outputs"]) if key in outputs}
    if spec["annotation_type"] == "instances" and len(counts) > 1:
        yield f"outputs: {name} has unlike numbers of {' and '.join(spec['outputs'])}"
    if len(spec["outputs"]) < len(wanted) or (
        spec["annotation_type"] != "dense" and len(spec["outputs"]) > len(wanted)
    ):
        yield f"{where}.outputs {spec['outputs']}, expected {len(wanted)} of type {spec['annotation_type']}"
    for i, output in enumerate(spec["outputs"]):
        entry, (dtype, shape) = outputs.get(f"{name}.{output}"), wanted[min(i, len(wanted) - 1)]
        if entry is None:
            yield f"outputs: {name}.{output} is missing"
        elif (i < len(wanted) and entry["dtype"] != dtype) or not is_compatible_shape(entry["shape"], shape):
            yield (
                f"outputs.{name}.{output} is {entry['dtype']} {format_value(entry['shape'])}, "
                f"expected {dtype} {list(shape)}"
            )


def expected_outputs(shape: str, classes: Sequence[str]) -> list[tuple[str, tuple[int | str, ...]]]:
    """(dtype, shape) of what a task of this shape gives, in order; words are sizes known at run time or of the file."""
    if shape == "instances":
        return [("float32", ("batch", "K", 4)), ("float32", ("batch", "K")), ("int64", ("batch", "K"))]
    if shape == "dense":
        return [("uint8" if classes else "float32", ("batch", "height", "width"))]
    return [("float32", ("batch", len(classes)))]


def is_compatible_shape(shape: Sequence[int | str], expected: Sequence[int | str]) -> bool:
    """Whether a shape has as many sizes as expected, and the same where both say a number."""
    pairs = zip(shape, expected)  # noqa: B905 - of one length, or it does not fit
    return len(shape) == len(expected) and all(
        a == b for a, b in pairs if not isinstance(a, str) and not isinstance(b, str)
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
