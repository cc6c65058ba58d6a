"""One network, one ONNX file: normalisation, argmax and NMS inside; kept only if it proves equal to torch."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from timm.layers import Conv2dSame  # type: ignore[attr-defined]
from torch import Tensor, nn

from perception.deploy import graph as passes
from perception.deploy import inside, parity
from perception.deploy.manifest import RESIZE, RESIZE_INSIDE, InputRules, Manifest, OutputRules, embed, to_text
from perception.deploy.manifest import Preprocess as Preprocess
from perception.deploy.reduce import Reduction
from perception.deploy.runtime import Perceiver, choose
from perception.deploy.session import open_session, runner
from perception.nn.backbone import reparameterize
from perception.ops.nms import onnx_translations
from perception.types import PerceptionError, TaskSpec

MULTIPLE = 32
OPSET, IR_VERSION = 18, 8
"""The oldest that hold what the graphs need: ONNX Runtime from 1.14 and TensorRT from 10.0 read them."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What `export` wrote. parity: output -> largest difference between torch and ONNX Runtime.

    table: of a reduced precision, what it does to each task and to the speed; lines of text
    """

    path: Path
    manifest: Manifest
    parity: dict[str, float]
    batches: int
    bytes: int
    seconds: float
    table: tuple[str, ...] = ()

    def __str__(self) -> str:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in self.parity.items() if ".raw." not in name)
        text = (
            f"{self.path}: {self.bytes / 1e6:.1f} MB in {self.seconds:.0f} s. Torch and ONNX Runtime agree on "
            f"{self.batches} batches; largest differences: {differences}"
        )
        return "\n".join([*self.table, text])


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
) -> ExportReport:
    """Write ``model`` (a `perception.model.Perception`) as one ONNX file whose graph is ``model.predict``.

    size:    (height, width) that the network sees, that of training; multiples of 32
    tasks:   the only tasks in the file; None = all
    dynamic: the file takes any height and width that are multiples of 32, and ``size`` is a recommendation
    preprocess: "inside": the graph letterboxes pictures of any size to ``size`` itself, and answers in their pixels
    reduction: arithmetic of less precision than float32, and how it is judged (`perception.deploy.reduce`)
    sizes, batches, images: what parity is checked with: every size (where dynamic) and count, noise and pictures
    opset:   version of the ONNX operator set

    The model itself is not touched. The file, and its manifest as ``.json`` beside it, appear only after torch and
    ONNX Runtime agreed on every raw and decoded output of every batch (`perception.deploy.parity`). Raises
    `parity.Disagreement` where they do not, `reduce.Refused` where a reduced precision does not pay, and leaves both
    files as they were.
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
    outcome = reduction.apply(network, core, specs) if reduction else None
    if outcome:
        core = outcome.model
    whole = core
    if preprocess == "inside":
        whole = inside.wrap(core, specs, size)
        found |= inside.verify(whole, core, specs, _iou_thresholds(network), images)
    names = [f"{name}.{output}" for name, spec in specs.items() for output in spec.outputs]
    published = passes.keep_outputs(whole, names)
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
    table = outcome.table if outcome else ()
    return ExportReport(out, finished, found, count, out.stat().st_size, time.perf_counter() - start, table)


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


def verify(
    model: Any, exported: ModelProto, specs: Mapping[str, TaskSpec], batches: Iterator[tuple[str, NDArray[np.uint8]]]
) -> tuple[dict[str, float], int]:
    """(largest difference of each output, batches compared). Raises `parity.Disagreement`.

    Besides the batches, every task with scores decodes raw outputs that hold nothing, a crowd, and one class only.
    """
    run = runner(exported.SerializeToString(), torch.get_num_threads())
    comparison, count, raws = parity.Comparison(specs, _iou_thresholds(model)), 0, None
    for where, images in batches:
        with torch.inference_mode():
            raw = model(torch.from_numpy(images), list(specs))
            wanted = {**flat_raw(raw), **model.decode(raw, images.shape[-2:])}
        comparison.add(where, {name: value.numpy() for name, value in wanted.items()}, run(images))
        raws = raws or (raw, images)
        count += 1
    if raws is not None:
        for name, spec in specs.items():
            if spec.shape == "instances" and "logits" in raws[0][name]._fields:
                _verify_scenes(model, exported, name, spec, raws[0][name], raws[1], comparison)
    return comparison.finish(), count


def _verify_scenes(
    model: Any,
    exported: ModelProto,
    name: str,
    spec: TaskSpec,
    raw: Any,
    images: NDArray[np.uint8],
    comparison: parity.Comparison,
) -> None:
    """Decode made-up scores by torch and by the piece of the graph that decodes them."""
    ends = {entry.name: entry for entry in exported.graph.output}
    flat = {key: value.numpy() for key, value in flat_raw({name: raw}).items()}
    outputs = [f"{name}.{output}" for output in spec.outputs]
    piece = passes.cut(exported, [ends[key] for key in flat], outputs)
    session = open_session(piece.SerializeToString(), torch.get_num_threads())
    read = {entry.name for entry in session.get_inputs()}
    for where, logits in parity.scenes(flat[f"{name}.raw.logits"]):
        with torch.inference_mode():
            wanted = model.decode({name: raw._replace(logits=torch.from_numpy(logits))}, images.shape[-2:])
        feeds = {**flat, f"{name}.raw.logits": logits, "images": images}
        answer: Any = session.run(outputs, {key: value for key, value in feeds.items() if key in read})
        sides = {key: value.numpy() for key, value in wanted.items()}, dict(zip(outputs, answer, strict=True))
        comparison.add(f"{name} with {where}", *sides, tasks=[name])


def flat_raw(raws: Mapping[str, Any]) -> dict[str, Tensor]:
    """``"<task>.raw.<field>"`` -> tensor, of the raw outputs of heads."""
    found = {}
    for name, raw in raws.items():
        for key, value in zip(raw._fields, raw, strict=True):
            found |= _flat(f"{name}.raw.{key}", value)
    return found


def _flat(key: str, value: Any) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {key: value}
    items = value if isinstance(value, tuple | list) else ()
    return {name: tensor for i, item in enumerate(items) for name, tensor in _flat(f"{key}.{i}", item).items()}


class _Graph(nn.Module):
    """Decoded outputs in the manifest's order, then the raw ones, as a tuple."""

    def __init__(self, model: Any, names: list[str], tasks: list[str]) -> None:
        super().__init__()
        self.model, self.names, self.tasks = model, names, tasks

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raw = self.model(images, self.tasks)
        outputs = self.model.decode(raw, images.shape[-2:])
        return *(outputs[name] for name in self.names), *flat_raw(raw).values()


def translate(
    model: Any, specs: Mapping[str, TaskSpec], size: tuple[int, int] | None, opset: int = OPSET
) -> ModelProto:
    """The graph of ``specs``, with the raw outputs of the heads beside the decoded ones, BatchNorm folded.

    size: the only (height, width) that it takes; None = any multiples of 32. Raises PerceptionError where the exporter
    cannot follow the network's code.
    """
    ready = simplified(model)
    height, width = size or (8 * MULTIPLE, 10 * MULTIPLE)
    example = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    with torch.inference_mode():
        raw_names = list(flat_raw(ready(example[:1, :, : 2 * MULTIPLE, : 2 * MULTIPLE], list(specs))))
    names = [f"{name}.{output}" for name, spec in specs.items() for output in spec.outputs]
    shape: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if size is None:
        shape |= {2: MULTIPLE * torch.export.Dim("rows", min=1), 3: MULTIPLE * torch.export.Dim("columns", min=1)}
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                _Graph(ready, names, list(specs)).eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=(shape,),
                input_names=["images"],
                output_names=[*names, *raw_names],
                opset_version=opset,
                custom_translation_table=onnx_translations(),
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever a model's own code meets under tracing
            raise PerceptionError(f"The network cannot be exported to ONNX: {error}") from error
    assert program is not None
    found = program.model_proto
    passes.name_nodes(found)
    passes.forget_origins(found)
    passes.hold_constants(found)
    passes.cast_input_first(found)
    passes.fold_batchnorm(found)
    _name_sizes(found)
    found.ir_version = IR_VERSION
    return found


def simplified(model: nn.Module) -> nn.Module:
    """A copy that computes the same in fewer and plainer layers, which the exporter follows faster."""
    ready = _with_static_padding(reparameterize(copy.deepcopy(model)))
    for layer in ready.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False  # type: ignore[assignment]
    return ready


def _with_static_padding(network: nn.Module) -> nn.Module:
    """``network`` with the padding of TensorFlow-style convolutions written out.

    They compute it from the size of their input, which makes symbolic sizes explode. Where the stride divides that size
    (pictures are multiples of 32) it is a constant: kernel - stride, the larger half right and below.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _padded(child))
    return network


def _padded(convolution: Any) -> nn.Module:
    sizes = zip(convolution.kernel_size, convolution.dilation, convolution.stride, strict=True)
    tall, wide = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, dilation, stride in sizes)
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        0,
        convolution.dilation,
        convolution.groups,
        convolution.bias is not None,
    )
    plain.load_state_dict(convolution.state_dict())
    return nn.Sequential(nn.ZeroPad2d((wide // 2, wide - wide // 2, tall // 2, tall - tall // 2)), plain)


def _name_sizes(model: ModelProto) -> None:
    """Call the dynamic sizes of inputs and outputs by what they are."""
    plain = {f"{MULTIPLE}*rows": "height", f"{MULTIPLE}*columns": "width"}
    for entry in [*model.graph.input, *model.graph.output]:
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_param in plain:
                dim.dim_param = plain[dim.dim_param]


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
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress, and warnings about its own and its libraries' code."""
    level, sink = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


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


def _iou_thresholds(model: Any) -> dict[str, float]:
    configs = {name: task.config for name, task in model.tasks.items()}
    return {name: config.iou_threshold for name, config in configs.items() if hasattr(config, "iou_threshold")}


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names, kinds, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
