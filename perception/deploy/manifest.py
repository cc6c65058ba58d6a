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
from typing import Any, get_args

from perception import __version__
from perception.deploy import container
from perception.ops.image import PAD_VALUE
from perception.types import PerceptionError, Shape, TaskSpec

FORMAT = 1
MANIFEST_KEY = "perception.manifest"
DIGEST_KEY = "perception.manifest.sha256"


@dataclass(frozen=True, slots=True)
class InputRules:
    """How a picture becomes the input ``images``: uint8 RGB [batch, 3, height, width], not normalised.

    size:     recommended (height, width): that of training and evaluation
    multiple: height and width must be multiples of this
    mean, std: of the normalisation, which is the graph's own first layer: ``(value / 255 - mean) / std``
    placing:  "fit, top left": scaled to fit with its aspect ratio kept, placed top left, the rest filled with ``pad``
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


@dataclass(frozen=True, slots=True)
class Manifest:
    """tasks: name -> spec (classes, units, limits, focal length, thresholds).

    graph, weights: SHA-256 of the ONNX graph and of the network's parameters it was made from
    parity: output -> largest difference between torch and ONNX Runtime that the export saw
    """

    tasks: dict[str, TaskSpec]
    input: InputRules
    graph: str = ""
    weights: str = ""
    parity: dict[str, float] = field(default_factory=dict)
    producer: str = f"perception {__version__}"
    format: int = FORMAT

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs, in their order."""
        return [f"{name}.{output}" for name, spec in self.tasks.items() for output in spec.outputs]


def embed(model: bytes, manifest: Manifest) -> bytes:
    """The ONNX file ``model`` with ``manifest`` in its metadata; ``manifest.graph`` is computed."""
    manifest = dataclasses.replace(manifest, graph=container.digest(model))
    text = json.dumps(dataclasses.asdict(manifest), ensure_ascii=False)
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
        manifest = _record(Manifest, {**plain, "tasks": tasks, "input": _record(InputRules, plain.pop("input"))})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PerceptionError(f"{where}: the manifest is not valid: {error}. Export it again.") from error
    _validate(manifest, where)
    return manifest


def _record(cls: type, plain: Mapping[str, Any]) -> Any:
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()})


def _validate(manifest: Manifest, where: str) -> None:
    rules = manifest.input
    known = {"dtype": "uint8", "layout": "NCHW", "colour": "RGB", "placing": "fit, top left", "pad": PAD_VALUE}
    wrong = [
        f"input.{key} {getattr(rules, key)!r}, expected {value!r}"
        for key, value in known.items()
        if getattr(rules, key) != value
    ]
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
    if wrong:
        raise PerceptionError(f"{where}: the manifest is not valid: {'; '.join(wrong)}. Export it again.")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
