"""One network, one ONNX file: dynamic batch, height and width; argmax and NMS inside; kept only if it proves equal."""

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import Conv2dSame  # type: ignore[attr-defined]
from torch import Tensor, nn

from perception.deploy import parity
from perception.deploy.manifest import InputRules, Manifest, embed
from perception.deploy.runtime import Perceiver, choose
from perception.ops.nms import onnx_translations
from perception.types import PerceptionError, TaskSpec

MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What `export` wrote. parity: output -> largest difference between torch and ONNX Runtime."""

    path: Path
    manifest: Manifest
    parity: dict[str, float]
    batches: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in self.parity.items())
        return (
            f"{self.path}: {self.bytes / 1e6:.1f} MB in {self.seconds:.0f} s. Torch and ONNX Runtime agree on "
            f"{self.batches} batches; largest differences: {differences}"
        )


def export(
    model: Any,
    out: str | Path,
    *,
    size: tuple[int, int],
    tasks: Sequence[str] | None = None,
    sizes: Sequence[tuple[int, int]] = parity.SIZES,
    batches: Sequence[int] = parity.BATCHES,
    images: Sequence[NDArray[np.uint8]] = (),
    opset: int = 20,
) -> ExportReport:
    """Write ``model`` (a `perception.model.Perception`) as one ONNX file whose graph is ``model.predict``.

    size:    recommended (height, width) of the input, that of training
    tasks:   the only tasks in the file; None = all
    sizes, batches, images: what parity is checked with: every size and batch, noise and pictures
    opset:   version of the ONNX operator set

    The model itself is not touched. The file appears at ``out`` only after torch and ONNX Runtime agreed on every
    output of every batch (`perception.deploy.parity`); otherwise raises `parity.Disagreement` and leaves
    ``out`` as it was.
    """
    start, out = time.perf_counter(), Path(out)
    specs = choose(model.specs, tasks)
    network = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    rules = InputRules(size, *_normalisation(network), multiple=MULTIPLE)
    data = _translate(_with_static_padding(copy.deepcopy(network)), specs, opset)
    manifest = Manifest(specs, rules, weights=_weights_digest(network))
    out.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(out) as path:
        path.write_bytes(embed(data, manifest))
        found, count = verify(network, path, specs, parity.batches(sizes, batches, images))
        path.write_bytes(embed(data, replace(manifest, parity=found)))
        finished = Perceiver(path).manifest
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.replace(out)
    return ExportReport(out, finished, found, count, out.stat().st_size, time.perf_counter() - start)


def verify(
    model: Any, path: str | Path, specs: Mapping[str, TaskSpec], batches: Iterator[tuple[str, NDArray[np.uint8]]]
) -> tuple[dict[str, float], int]:
    """(largest difference of each output, batches compared). Raises `parity.Disagreement`."""
    perceiver = Perceiver(path, threads=torch.get_num_threads(), tasks=list(specs))
    comparison, count = parity.Comparison(specs, _iou_thresholds(model)), 0
    for where, images in batches:
        with torch.inference_mode():
            wanted = model.predict(torch.from_numpy(images), list(specs))
        comparison.add(where, {name: value.numpy() for name, value in wanted.items()}, perceiver.run(images))
        count += 1
    return comparison.finish(), count


class _Graph(nn.Module):
    """`predict` with its outputs as a tuple in the manifest's order."""

    def __init__(self, model: Any, names: list[str], tasks: list[str]) -> None:
        super().__init__()
        self.model, self.names, self.tasks = model, names, tasks

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model.predict(images, self.tasks)
        return tuple(outputs[name] for name in self.names)


def _translate(model: Any, specs: Mapping[str, TaskSpec], opset: int) -> bytes:
    names = [f"{name}.{output}" for name, spec in specs.items() for output in spec.outputs]
    example = torch.randint(0, 256, (2, 3, 8 * MULTIPLE, 10 * MULTIPLE), dtype=torch.uint8)
    height, width = torch.export.Dim("rows", min=1), torch.export.Dim("columns", min=1)
    dynamic = {0: torch.export.Dim("batch", min=1), 2: MULTIPLE * height, 3: MULTIPLE * width}
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                _Graph(model, names, list(specs)).eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=({**dynamic},),
                input_names=["images"],
                output_names=names,
                opset_version=opset,
                custom_translation_table=onnx_translations(),
                verbose=False,
            )
        except Exception as error:  # the exporter raises whatever a model's own code meets under tracing
            raise PerceptionError(f"The network cannot be exported to ONNX: {error}") from error
    assert program is not None
    proto = program.model_proto
    _clean(proto)
    return proto.SerializeToString()


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


def _clean(proto: Any) -> None:
    """Drop what the exporter notes for debugging (paths of source files among it) and name the dynamic sizes."""
    graph = proto.graph
    for entry in [proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del entry.metadata_props[:]
    for entry in graph.node:
        entry.ClearField("doc_string")
    del graph.value_info[:]
    plain = {f"{MULTIPLE}*rows": "height", f"{MULTIPLE}*columns": "width"}
    for entry in [*graph.input, *graph.output]:
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_param in plain:
                dim.dim_param = plain[dim.dim_param]


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
    handle, name = tempfile.mkstemp(suffix=".onnx", prefix=f".{out.stem}-", dir=out.parent)
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


def _weights_digest(model: nn.Module) -> str:
    """SHA-256 of names, kinds, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
