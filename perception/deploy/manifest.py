"""What an exported file says of itself: tasks, classes, sizes, normalisation, units, and the proof of parity. No torch.

The manifest is JSON in the ONNX file's metadata, beside the SHA-256 of its own text; the manifest holds the SHA-256 of
the graph. So a file that was damaged or edited is refused. This is no signature: whoever wants to deceive can
recompute both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from perception import __version__
from perception.deploy import container
from perception.ops.image import PAD_VALUE
from perception.types import PerceptionError, Shape, TaskSpec

FORMAT = 2
MANIFEST_KEY = "perception.manifest"
DIGEST_KEY = "perception.manifest.sha256"


RESIZE = "bilinear; shrunk by 1.4 or more: to twice the size, then means of 2 x 2; by 2.8 or more: means of areas"
"""How a picture is brought to the size it is placed at: `perception.ops.image`. Rounded to whole levels."""

RESIZE_INSIDE = (
    "bilinear to k times the size, then means of k x k; k = 1, 2, round(s) for a shrinkage s from 0, 1.4, 2.8"
)
"""The same rule in plain operators, without rounding to whole levels: `perception.deploy.inside`."""

Preprocess: TypeAlias = Literal["outside", "inside"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, slots=True)
class InputRules:
    """How a picture becomes the graph's one input.

    size:     (height, width) that the network sees: that of training and evaluation
    mean, std: of the normalisation, which is the graph's own first layer: ``(value / 255 - mean) / std``
    layout:   "NCHW": uint8 RGB [batch, 3, height, width]; "NHWC": [batch, height, width, 3]
    multiple: height and width that the network sees must be multiples of this
    placing:  "fit, top left": scaled to fit with its aspect ratio kept, placed top left, the rest filled with ``pad``
    resize:   the rule of that scaling
    preprocess: "outside": the caller places pictures, and outputs are in pixels of the input. "inside": the graph
        does; the input is a batch of pictures of any one size, and outputs are in pixels of these pictures
    dynamic:  outside: any multiples of ``multiple`` are welcome, ``size`` is a recommendation; otherwise only ``size``
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = "images"
    dtype: str = "uint8"
    layout: str = "NCHW"
    colour: str = "RGB"
    multiple: int = 32
    placing: str = "fit, top left"
    pad: int = PAD_VALUE
    resize: str = RESIZE
    preprocess: Preprocess = "outside"
    dynamic: bool = True

    @property
    def inside(self) -> bool:
        """Does the graph place pictures itself?"""
        return self.preprocess == "inside"


@dataclass(frozen=True, slots=True)
class OutputRules:
    """One output of the graph.

    dtype: as numpy calls it. shape: numbers, or names of what is known only at run time ("batch", "height", "width")
    meaning: what its numbers are, with their unit
    """

    dtype: str
    shape: tuple[int | str, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """tasks:  name -> spec (classes, units, limits, focal length, thresholds)
    outputs:   name -> what it is, in the graph's order; a task's are called ``<task>.<output>``
    precision: of the arithmetic: "int8" and "fp16" keep what is sensitive in float32
    opset:     version of the ONNX operator set
    graph, weights: SHA-256 of the ONNX graph and of the network's parameters it was made from
    parity:    output -> largest difference between torch and ONNX Runtime that the export saw
    quality:   of a reduced precision: task -> its metric by name, "before" and "after" on the validation pictures
    speed:     of a reduced precision: seconds per picture "before" and "after" on one thread, and their "ratio"
    producer, made_with: program that wrote the file; versions of the libraries that it used
    """

    tasks: dict[str, TaskSpec]
    input: InputRules
    outputs: dict[str, OutputRules]
    precision: Precision = "fp32"
    opset: int = 0
    graph: str = ""
    weights: str = ""
    parity: dict[str, float] = field(default_factory=dict)
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)
    producer: str = f"perception {__version__}"
    made_with: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


def to_text(manifest: Manifest, indent: int | None = None) -> str:
    """The manifest as JSON, as `perception/deploy/manifest.schema.json` describes it."""
    return json.dumps(dataclasses.asdict(manifest), ensure_ascii=False, indent=indent, allow_nan=False)


def embed(model: bytes, manifest: Manifest) -> bytes:
    """The ONNX file ``model`` with ``manifest`` in its metadata; ``manifest.graph`` is computed."""
    manifest = dataclasses.replace(manifest, graph=container.digest(model))
    text = to_text(manifest)
    return container.with_metadata(model, {MANIFEST_KEY: text, DIGEST_KEY: _sha256(text)})


def extract(model: bytes, where: str) -> Manifest:
    """The manifest of an ONNX file that passed `container.check`; ``where`` names it in messages.

    Raises PerceptionError where the manifest is missing, of another format, or does not fit itself or the graph.
    """
    pairs = container.metadata(model)
    if MANIFEST_KEY not in pairs:
        raise PerceptionError(
            f"{where} has no manifest. Expected a file written by `perception export`. Export it again."
        )
    text = pairs[MANIFEST_KEY]
    if pairs.get(DIGEST_KEY) != _sha256(text):
        raise PerceptionError(
            f"{where}: the manifest was changed after the export (its SHA-256 differs). Export it again."
        )
    manifest = parse(text, where)
    if manifest.graph != container.digest(model):
        raise PerceptionError(
            f"{where}: the graph is not the one that was exported (its SHA-256 differs). Export it again."
        )
    return manifest


def parse(text: str, where: str) -> Manifest:
    """A manifest from its JSON. Raises PerceptionError naming the field that is wrong."""
    try:
        plain = json.loads(text)
        if plain.get("format") != FORMAT:
            raise PerceptionError(
                f"{where}: manifest format {plain.get('format')}, expected {FORMAT}. "
                "Use the version of perception that wrote it, or export it again."
            )
        tasks = {name: _record(TaskSpec, spec) for name, spec in plain.pop("tasks").items()}
        outputs = {name: _record(OutputRules, entry) for name, entry in plain.pop("outputs").items()}
        rules = _record(InputRules, plain.pop("input"))
        manifest = Manifest(**plain, tasks=tasks, outputs=outputs, input=rules)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PerceptionError(f"{where}: the manifest is not valid: {error}. Export it again.") from error
    _validate(manifest, where)
    return manifest


def _record(cls: type, plain: Mapping[str, Any]) -> Any:
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()})


def _validate(manifest: Manifest, where: str) -> None:
    rules = manifest.input
    known = {
        "dtype": "uint8",
        "layout": "NHWC" if rules.preprocess == "inside" else "NCHW",
        "colour": "RGB",
        "placing": "fit, top left",
        "pad": PAD_VALUE,
        "resize": RESIZE_INSIDE if rules.preprocess == "inside" else RESIZE,
    }
    wrong = [
        f"input.{key} {getattr(rules, key)!r}, expected {value!r}"
        for key, value in known.items()
        if getattr(rules, key) != value
    ]
    if rules.preprocess not in get_args(Preprocess):
        wrong.append(f"input.preprocess {rules.preprocess!r}, expected one of {get_args(Preprocess)}")
    if not isinstance(rules.multiple, int) or rules.multiple < 1:
        wrong.append(f"input.multiple {rules.multiple!r}, expected a positive whole number")
    elif len(rules.size) != 2 or any(not isinstance(x, int) or x <= 0 or x % rules.multiple for x in rules.size):
        wrong.append(f"input.size {rules.size!r}, expected height and width, multiples of {rules.multiple}")
    if not manifest.tasks:
        wrong.append("no task")
    for name, spec in manifest.tasks.items():
        if spec.name != name or spec.shape not in get_args(Shape) or not spec.outputs:
            wrong.append(f"tasks.{name}: name {spec.name!r}, shape {spec.shape!r}, outputs {spec.outputs!r}")
        if not spec.classes and not spec.unit:
            wrong.append(f"tasks.{name}: neither classes nor a unit")
        absent = [f"{name}.{output}" for output in spec.outputs if f"{name}.{output}" not in manifest.outputs]
        wrong += [f"outputs: {output} is missing" for output in absent]
    if wrong:
        raise PerceptionError(f"{where}: the manifest is not valid: {'; '.join(wrong)}. Export it again.")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
