"""From a network to the ONNX graph that computes the same: traced, with BatchNorm folded and every output in it."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from onnx import ModelProto
from onnxscript.optimizer import optimize
from timm.layers import Conv2dSame  # type: ignore[attr-defined]
from torch import Tensor, nn

from perception.export import graph as passes
from perception.model import MultiTaskModel
from perception.nn.backbone import reparameterize
from perception.ops.nms import onnx_translations
from perception.types import PerceptionError, TaskSpec

SIZE_DIVISOR = 32
OPSET, IR_VERSION = 18, 8
"""The oldest that hold what the graphs need: ONNX Runtime from 1.14 and TensorRT from 10.0 read them."""
CONSTANT_LIMIT = 1 << 24
"""Bytes of a constant that is computed beforehand where the size of the images is fixed."""


def flatten_raw(raws: Mapping[str, Any]) -> dict[str, Tensor]:
    """``"<task>.raw.<field>"`` -> tensor, of the raw outputs of heads."""
    found = {}
    for name, raw in raws.items():
        for key, value in zip(raw._fields, raw, strict=True):
            found |= _flatten(f"{name}.raw.{key}", value)
    return found


def _flatten(key: str, value: object) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {key: value}
    items = value if isinstance(value, tuple | list) else ()
    return {name: tensor for i, item in enumerate(items) for name, tensor in _flatten(f"{key}.{i}", item).items()}


class _ExportWrapper(nn.Module):
    """Decoded outputs in the manifest's order, then the raw ones, as a tuple."""

    def __init__(self, model: nn.Module, names: list[str], tasks: list[str]) -> None:
        super().__init__()
        self.model, self.names, self.tasks = model, names, tasks

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        raw = self.model(images, self.tasks)
        outputs = self.model.decode(raw, images.shape[-2:])  # type: ignore[operator]
        return *(outputs[name] for name in self.names), *flatten_raw(raw).values()


def trace_to_onnx(
    model: MultiTaskModel, specs: Mapping[str, TaskSpec], size: tuple[int, int] | None, opset: int = OPSET
) -> ModelProto:
    """The graph of ``specs``, with the raw outputs of the heads beside the decoded ones, BatchNorm folded.

    size: the only (height, width) that it takes; None = any multiples of 32. Raises PerceptionError where the exporter
    cannot follow the network's code.
    """
    ready = simplify(model)
    height, width = size or (8 * SIZE_DIVISOR, 10 * SIZE_DIVISOR)
    example = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    with torch.inference_mode():
        raw_names = list(flatten_raw(ready(example[:1, :, : 2 * SIZE_DIVISOR, : 2 * SIZE_DIVISOR], list(specs))))
    names = [f"{name}.{output}" for name, spec in specs.items() for output in spec.outputs]
    shape: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if size is None:
        shape |= {
            2: SIZE_DIVISOR * torch.export.Dim("rows", min=1),
            3: SIZE_DIVISOR * torch.export.Dim("columns", min=1),
        }
    with _silence(), torch.no_grad():
        try:
            program = torch.onnx.export(
                _ExportWrapper(ready, names, list(specs)).eval(),
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
    if size is not None:  # what is computed from it alone is a constant, as the resized positions of a ViT
        found = optimize(found, input_size_limit=CONSTANT_LIMIT, output_size_limit=CONSTANT_LIMIT)
        assert isinstance(found, ModelProto)
    passes.name_nodes(found)
    passes.strip_metadata(found)
    passes.lift_constants(found)
    passes.cast_input_first(found)
    passes.fold_batchnorm(found)
    _name_dimensions(found)
    found.ir_version = IR_VERSION
    return found


def simplify(model: nn.Module) -> nn.Module:
    """A copy that computes the same in fewer and plainer layers, which the exporter follows faster."""
    ready = _use_static_padding(reparameterize(copy.deepcopy(model)))
    for layer in ready.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False  # type: ignore[assignment]
    return ready


def _use_static_padding(network: nn.Module) -> nn.Module:
    """``network`` with the padding of TensorFlow-style convolutions written out.

    They compute it from the size of their input, which makes symbolic sizes explode. Where the stride divides that size
    (images are multiples of 32) it is a constant: kernel - stride, the larger half right and below.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv2dSame) and isinstance(child, nn.Conv2d):
                setattr(parent, name, _pad_statically(child))
    return network


def _pad_statically(convolution: nn.Conv2d) -> nn.Module:
    sizes = zip(convolution.kernel_size, convolution.dilation, convolution.stride, strict=True)
    tall, wide = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, dilation, stride in sizes)
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        (convolution.kernel_size[0], convolution.kernel_size[1]),
        (convolution.stride[0], convolution.stride[1]),
        0,
        (convolution.dilation[0], convolution.dilation[1]),
        convolution.groups,
        convolution.bias is not None,
    )
    plain.load_state_dict(convolution.state_dict())
    return nn.Sequential(nn.ZeroPad2d((wide // 2, wide - wide // 2, tall // 2, tall - tall // 2)), plain)


def _name_dimensions(model: ModelProto) -> None:
    """Call the dynamic sizes of inputs and outputs by what they are."""
    plain = {f"{SIZE_DIVISOR}*rows": "height", f"{SIZE_DIVISOR}*columns": "width"}
    for entry in [*model.graph.input, *model.graph.output]:
        for dim in entry.type.tensor_type.shape.dim:
            if dim.dim_param in plain:
                dim.dim_param = plain[dim.dim_param]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence the exporter's progress, and warnings about its own and its libraries' code."""
    level, sink = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
