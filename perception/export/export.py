"""One network, one ONNX file: normalisation, argmax and NMS inside; kept only if it proves equal to torch."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from perception.export import embedded_preprocessing, parity, tensorrt
from perception.export import graph as passes
from perception.export.precision_gate import Reduction
from perception.export.reduction import reduce_precision
from perception.export.trace import MULTIPLE, OPSET, translate
from perception.export.verify import deviation, iou_thresholds, verify
from perception.runtime.manifest import RESIZE, RESIZE_INSIDE, InputRules, Manifest, OutputRules, embed, to_text
from perception.runtime.manifest import Preprocess as Preprocess
from perception.runtime.predictor import Perceiver, choose
from perception.types import PerceptionError, TaskSpec

Target: TypeAlias = Literal["onnxruntime", "tensorrt"]
"""What a file is made for. Both read what is not int8; TensorRT wants it symmetric, which is slow on processors."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What `export` wrote. parity: output -> largest difference between torch and this file in ONNX Runtime.

    table: of a reduced precision, what it does to each task and to the speed; lines of text
    obstacles: what TensorRT would refuse of the file
    """

    path: Path
    manifest: Manifest
    parity: dict[str, float]
    batches: int
    bytes: int
    seconds: float
    table: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()

    def __str__(self) -> str:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in self.parity.items() if ".raw." not in name)
        precision = self.manifest.precision
        said = (
            f"Torch and ONNX Runtime agree on {self.batches} batches; largest differences"
            if precision == "fp32"
            else f"On {self.batches} batches of pictures this {precision} file differs from torch, at the most, by"
        )
        text = f"{self.path}: {self.bytes / 1e6:.1f} MB in {self.seconds:.0f} s. {said}: {differences}"
        warning = [f"TensorRT would refuse this file: {'; '.join(self.obstacles)}."] if self.obstacles else []
        return "\n".join([*self.table, text, *warning])


def export(
    model: Any,
    out: str | Path,
    *,
    size: tuple[int, int],
    tasks: Sequence[str] | None = None,
    dynamic: bool = True,
    preprocess: Preprocess = "outside",
    reduction: Reduction | None = None,
    sizes: Sequence[tuple[int, int]] = parity.SIZES,
    batches: Sequence[int] = parity.BATCHES,
    images: Sequence[NDArray[np.uint8]] = (),
    opset: int = OPSET,
    target: Target = "onnxruntime",
) -> ExportReport:
    """Write ``model`` (a `perception.model.Perception`) as one ONNX file whose graph is ``model.predict``.

    size:    (height, width) that the network sees, that of training; multiples of 32
    tasks:   the only tasks in the file; None = all
    dynamic: the file takes any height and width that are multiples of 32, and ``size`` is a recommendation
    preprocess: "inside": the graph letterboxes pictures of any size to ``size`` itself, and answers in their pixels
    reduction: arithmetic of less precision than float32, and how it is judged (`perception.export.precision_gate`)
    sizes, batches, images: what parity is checked with: every size (where dynamic) and count, noise and pictures
    opset:   version of the ONNX operator set
    target:  "tensorrt": refuse to write what its parser would refuse (`perception.export.tensorrt`); otherwise the
        report tells it

    The model itself is not touched. The file, and its manifest as ``.json`` beside it, appear only after torch and
    ONNX Runtime agreed on every raw and decoded output of every batch (`perception.export.parity`). Raises
    `parity.Disagreement` where they do not, `precision_gate.Refused` where a reduced precision does not pay, and
    leaves both files as they were. What the manifest calls the parity of a file of less precision is that file's own.
    """
    start, out = time.perf_counter(), Path(out)
    fixed = not dynamic or preprocess == "inside"
    _check_size(size)
    specs = choose(model.specs, tasks)
    network = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    digest = weights_digest(network)
    network.keep(list(specs))
    core = translate(network, specs, size if fixed else None, opset)
    found, count = verify(network, core, specs, parity.batches([size] if fixed else sizes, batches, images))
    outcome = reduce_precision(reduction, network, core, specs) if reduction else None
    if outcome:
        core = outcome.model
        shown = [batch for batch in parity.batches([size], batches, images) if batch[0].startswith("pictures")]
        found, count = deviation(network, core, specs, shown)
    whole = core
    if preprocess == "inside":
        whole = embedded_preprocessing.wrap(core, specs, size)
        found |= embedded_preprocessing.verify(whole, core, specs, iou_thresholds(network), images)
    names = [f"{name}.{output}" for name, spec in specs.items() for output in spec.outputs]
    published = passes.keep_outputs(whole, names)
    obstacles = tensorrt.problems(published)
    if target == "tensorrt" and obstacles:
        raise PerceptionError(f"TensorRT would refuse this file: {'; '.join(obstacles)}. Nothing is written.")
    manifest = Manifest(
        specs,
        _rules(network, size, preprocess, not fixed),
        {entry.name: _output_rules(entry, specs, preprocess) for entry in published.graph.output},
        opset=opset,
        weights=digest,
        parity=found,
        made_with={library.__name__: library.__version__ for library in (torch, onnx, onnxruntime)},
        **(outcome.facts if outcome else {}),
    )
    finished = write(out, published, manifest)
    table, seconds = outcome.table if outcome else (), time.perf_counter() - start
    return ExportReport(out, finished, found, count, out.stat().st_size, seconds, table, tuple(obstacles))


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or any(side <= 0 or side % MULTIPLE for side in size):
        fits = "x".join(str(max(1, round(side / MULTIPLE)) * MULTIPLE) for side in size)
        found = "x".join(map(str, size))
        raise PerceptionError(f"Wrong input size {found}. Expected multiples of {MULTIPLE}. Use {fits}.")


def write(out: Path, model: ModelProto, manifest: Manifest) -> Manifest:
    """Put ``model`` with ``manifest`` at ``out``, and the manifest as JSON beside it, once a runtime has opened it.

    Returns the manifest as the file has it. Raises PerceptionError where nothing can be written there.
    """
    beside = out.with_suffix(".json")
    model.producer_name, _, model.producer_version = manifest.producer.partition(" ")
    try:
        return _write(out, beside, model, manifest)
    except OSError as error:
        raise PerceptionError(f"{out} cannot be written: {error}. What was there stays as it was.") from error


def _write(out: Path, beside: Path, model: ModelProto, manifest: Manifest) -> Manifest:
    out.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(out) as path, _temporary(beside) as text:
        path.write_bytes(embed(model.SerializeToString(), manifest))
        finished = Perceiver(path, threads=1).manifest
        text.write_text(to_text(finished, indent=1) + "\n", "utf-8")
        for file in (path, text):
            file.chmod(0o644)
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        path.replace(out)
        text.replace(beside)
    return finished


def _output_rules(entry: Any, specs: Mapping[str, TaskSpec], preprocess: Preprocess) -> OutputRules:
    name, _, output = entry.name.rpartition(".")
    spec, space = specs[name], "picture" if preprocess == "inside" else "input"
    focal = f" through a lens of {spec.canonical_focal:g} pixels of the {space}" if spec.canonical_focal else ""
    meanings = {
        "boxes": f"x1 y1 x2 y2 in pixels of the {space}; best first, padded with zeros",
        "scores": "0 to 1; 0 = padding",
        "labels": "index into the task's classes",
        "probabilities": "0 to 1, of each class",
        "error": "expected error of each pixel, as a share of its value; no focal length changes it",
    }
    maps = "index into the task's classes, of each pixel" if spec.classes else f"{spec.unit} of each pixel{focal}"
    first = spec.shape == "dense" and output == spec.outputs[0]
    meaning = maps if first else meanings.get(output, str(output))
    return OutputRules(passes.dtype_of(entry), passes.shape_of(entry), meaning)


def _rules(model: Any, size: tuple[int, int], preprocess: Preprocess, dynamic: bool) -> InputRules:
    mean, std = _normalisation(model)
    if preprocess == "outside":
        return InputRules(size, mean, std, multiple=MULTIPLE, resize=RESIZE, dynamic=dynamic)
    return InputRules(
        size, mean, std, layout="NHWC", multiple=MULTIPLE, resize=RESIZE_INSIDE, preprocess=preprocess, dynamic=False
    )


@contextlib.contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """A file beside ``out`` that is gone at the end, unless it was renamed."""
    handle, name = tempfile.mkstemp(suffix=out.suffix, prefix=f".{out.stem}-", dir=out.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _normalisation(model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) as fractions of 255, of the backbone's first layer."""
    mean, std = ((x.detach().double().flatten() / 255).tolist() for x in (model.backbone.mean, model.backbone.std))
    return tuple(round(x, 6) for x in mean), tuple(round(x, 6) for x in std)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names, kinds, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
