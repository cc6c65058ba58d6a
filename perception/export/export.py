"""One network, one ONNX file: normalization, argmax and NMS inside; kept only if it proves equal to torch."""

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
from typing import Literal, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto
from torch import nn

from perception.export import embedded_preprocessing, parity, tensorrt
from perception.export import graph as passes
from perception.export.precision_gate import PrecisionSettings
from perception.export.reduce_precision import reduce_precision
from perception.export.trace import OPSET, SIZE_DIVISOR, trace_to_onnx
from perception.export.verify import iou_thresholds, measure_deviation, verify_parity
from perception.model import MultiTaskModel
from perception.runtime.manifest import (
    EMBEDDED_RESIZE_RULE,
    RESIZE_RULE,
    InputSpec,
    Manifest,
    OutputSpec,
    embed_manifest,
    manifest_to_json,
)
from perception.runtime.manifest import PreprocessPlacement as Preprocess
from perception.runtime.predictor import Predictor, select_specs
from perception.types import PerceptionError, TaskSpec

Target: TypeAlias = Literal["onnxruntime", "tensorrt"]
"""What a file is made for. Both read what is not int8; TensorRT wants it symmetric, which is slow on processors."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What `export` wrote. parity: output -> largest difference between torch and this file in ONNX Runtime.

    precision_lines: of a reduced precision, what it does to each task and to the speed; lines of text
    tensorrt_problems: what TensorRT would refuse of the file
    """

    path: Path
    manifest: Manifest
    parity: dict[str, float]
    num_batches: int
    size_bytes: int
    seconds: float
    precision_lines: tuple[str, ...] = ()
    tensorrt_problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in self.parity.items() if ".raw." not in name)
        precision = self.manifest.precision
        said = (
            f"Torch and ONNX Runtime agree on {self.num_batches} batches; largest differences"
            if precision == "fp32"
            else f"On {self.num_batches} batches of images this {precision} file differs from torch, at the most, by"
        )
        text = f"{self.path}: {self.size_bytes / 1e6:.1f} MB in {self.seconds:.0f} s. {said}: {differences}"
        warning = (
            [f"TensorRT would refuse this file: {'; '.join(self.tensorrt_problems)}."] if self.tensorrt_problems else []
        )
        return "\n".join([*self.precision_lines, text, *warning])


def export(
    model: MultiTaskModel,
    out: str | Path,
    *,
    size: tuple[int, int],
    tasks: Sequence[str] | None = None,
    dynamic: bool = True,
    preprocess: Preprocess = "external",
    reduction: PrecisionSettings | None = None,
    parity_sizes: Sequence[tuple[int, int]] = parity.PARITY_SIZES,
    parity_batch_sizes: Sequence[int] = parity.PARITY_BATCH_SIZES,
    parity_images: Sequence[NDArray[np.uint8]] = (),
    opset: int = OPSET,
    target: Target = "onnxruntime",
) -> ExportReport:
    """Write ``model`` (a `perception.model.MultiTaskModel`) as one ONNX file whose graph is ``model.predict``.

    size:    (height, width) that the network sees, that of training; multiples of 32
    tasks:   the only tasks in the file; None = all
    dynamic: the file takes any height and width that are multiples of 32, and ``size`` is a recommendation
    preprocess: "embedded": the graph letterboxes images of any size to ``size`` itself, and answers in their pixels
    reduction: arithmetic of less precision than float32, and how it is judged (`perception.export.precision_gate`)
    parity_sizes, parity_batch_sizes, parity_images: what parity is checked with: every size (where dynamic) and count,
    noise and images
    opset:   version of the ONNX operator set
    target:  "tensorrt": refuse to write what its parser would refuse (`perception.export.tensorrt`); otherwise the
        report tells it

    The model itself is not touched. The file, and its manifest as ``.json`` beside it, appear only after torch and
    ONNX Runtime agreed on every raw and decoded output of every batch (`perception.export.parity`). Raises
    `parity.Disagreement` where they do not, `precision_gate.Refused` where a reduced precision does not pay, and
    leaves both files as they were. What the manifest calls the parity of a file of less precision is that file's own.
    """
    start, out = time.perf_counter(), Path(out)
    fixed = not dynamic or preprocess == "embedded"
    _check_input_size(size)
    specs = select_specs(model.specs, tasks)
    network = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    digest = hash_weights(network)
    network.keep_tasks(list(specs))
    core = trace_to_onnx(network, specs, size if fixed else None, opset)
    found, count = verify_parity(
        network,
        core,
        specs,
        parity.generate_batches([size] if fixed else parity_sizes, parity_batch_sizes, parity_images),
    )
    outcome = reduce_precision(reduction, network, core, specs) if reduction else None
    if outcome:
        core = outcome.model
        shown = [
            batch
            for batch in parity.generate_batches([size], parity_batch_sizes, parity_images)
            if batch[0].startswith("images")
        ]
        found, count = measure_deviation(network, core, specs, shown)
    whole = core
    if preprocess == "embedded":
        whole = embedded_preprocessing.embed_letterbox(core, specs, size)
        found |= embedded_preprocessing.verify_embedding(whole, core, specs, iou_thresholds(network), parity_images)
    names = [f"{name}.{output}" for name, spec in specs.items() for output in spec.outputs]
    published = passes.keep_outputs(whole, names)
    obstacles = tensorrt.find_problems(published)
    if target == "tensorrt" and obstacles:
        raise PerceptionError(f"TensorRT would refuse this file: {'; '.join(obstacles)}. Nothing is written.")
    manifest = Manifest(
        specs,
        _describe_input(network, size, preprocess, not fixed),
        {entry.name: _describe_output(entry, specs, preprocess) for entry in published.graph.output},
        opset=opset,
        weights_sha256=digest,
        parity=found,
        library_versions={library.__name__: library.__version__ for library in (torch, onnx, onnxruntime)},
        **(outcome.manifest_fields if outcome else {}),
    )
    finished = write_onnx(out, published, manifest)
    table, seconds = outcome.lines if outcome else (), time.perf_counter() - start
    return ExportReport(out, finished, found, count, out.stat().st_size, seconds, table, tuple(obstacles))


def _check_input_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or any(side <= 0 or side % SIZE_DIVISOR for side in size):
        fits = "x".join(str(max(1, round(side / SIZE_DIVISOR)) * SIZE_DIVISOR) for side in size)
        found = "x".join(map(str, size))
        raise PerceptionError(f"Wrong input size {found}. Expected multiples of {SIZE_DIVISOR}. Use {fits}.")


def write_onnx(out: Path, model: ModelProto, manifest: Manifest) -> Manifest:
    """Put ``model`` with ``manifest`` at ``out``, and the manifest as JSON beside it, once a runtime has opened it.

    Returns the manifest as the file has it. Raises PerceptionError where nothing can be written there.
    """
    beside = out.with_suffix(".json")
    model.producer_name, _, model.producer_version = manifest.producer.partition(" ")
    try:
        return _write_files(out, beside, model, manifest)
    except OSError as error:
        raise PerceptionError(f"{out} cannot be written: {error}. What was there stays as it was.") from error


def _write_files(out: Path, json_path: Path, model: ModelProto, manifest: Manifest) -> Manifest:
    out.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_file(out) as path, _temporary_file(json_path) as text:
        path.write_bytes(embed_manifest(model.SerializeToString(), manifest))
        finished = Predictor(path, threads=1).manifest
        text.write_text(manifest_to_json(finished, indent=1) + "\n", "utf-8")
        for file in (path, text):
            file.chmod(0o644)
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        path.replace(out)
        text.replace(json_path)
    return finished


def _describe_output(entry: ValueInfoProto, specs: Mapping[str, TaskSpec], preprocess: Preprocess) -> OutputSpec:
    name, _, output = entry.name.rpartition(".")
    spec, space = specs[name], "image" if preprocess == "embedded" else "input"
    focal = f" through a lens of {spec.canonical_focal:g} pixels of the {space}" if spec.canonical_focal else ""
    meanings = {
        "boxes": f"x1 y1 x2 y2 in pixels of the {space}; best first, padded with zeros",
        "scores": "0 to 1; 0 = padding",
        "labels": "index into the task's classes",
        "probabilities": "0 to 1, of each class",
        "error": "expected error of each pixel, as a share of its value; no focal length changes it",
    }
    maps = "index into the task's classes, of each pixel" if spec.classes else f"{spec.unit} of each pixel{focal}"
    first = spec.annotation_type == "dense" and output == spec.outputs[0]
    meaning = maps if first else meanings.get(output, str(output))
    return OutputSpec(passes.dtype_of(entry), passes.shape_of(entry), meaning)


def _describe_input(model: MultiTaskModel, size: tuple[int, int], preprocess: Preprocess, dynamic: bool) -> InputSpec:
    mean, std = _read_normalization(model)
    if preprocess == "external":
        return InputSpec(size, mean, std, size_divisor=SIZE_DIVISOR, resize_rule=RESIZE_RULE, dynamic=dynamic)
    return InputSpec(
        size,
        mean,
        std,
        layout="NHWC",
        size_divisor=SIZE_DIVISOR,
        resize_rule=EMBEDDED_RESIZE_RULE,
        preprocess=preprocess,
        dynamic=False,
    )


@contextlib.contextmanager
def _temporary_file(out: Path) -> Iterator[Path]:
    """A file beside ``out`` that is gone at the end, unless it was renamed."""
    handle, name = tempfile.mkstemp(suffix=out.suffix, prefix=f".{out.stem}-", dir=out.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _read_normalization(model: MultiTaskModel) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) as fractions of 255, of the backbone's first layer."""
    mean, std = ((x.detach().double().flatten() / 255).tolist() for x in (model.backbone.mean, model.backbone.std))
    return tuple(round(x, 6) for x in mean), tuple(round(x, 6) for x in std)


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of names, kinds, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
