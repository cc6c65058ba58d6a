"""What TensorRT 10 would refuse of a graph, told before anyone stands before its parser. Needs the onnx package.

Sources: docs/operators.md of onnx-tensorrt (10.0 to 10.15); its ModelImporter.cpp and onnxOpImporters.cpp, for bytes
and Q/DQ; NvInferRuntimeBase.h, for what bytes are cast from and to. No TensorRT is needed or run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

OPSETS = range(9, 21)
"""Operator sets that every TensorRT 10 reads."""

TOPK_LIMIT = 3840
"""TopK takes fewer than this."""

MAX_DIMENSIONS = 8

UNSUPPORTED_OPS = frozenset((
    "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det",
    "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix",
    "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement",
    "QLinearConv", "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
    "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss",
    "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Unique",
))  # fmt: skip
"""Operators with an N in the table of 10.15."""

RESIZE_ATTRIBUTES = {
    "mode": {"nearest", "linear"},
    "coordinate_transformation_mode": {
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "asymmetric",
        "align_corners",
    },
    "keep_aspect_ratio_policy": {"stretch"},
    "antialias": {0},
}

UINT8, FLOATS = TensorProto.UINT8, (TensorProto.FLOAT, TensorProto.FLOAT16)


def find_problems(model: ModelProto) -> list[str]:
    """What TensorRT's parser would refuse, one line for each kind; [] where nothing known stands in its way."""
    known = shape_inference.infer_shapes(model, data_prop=True)
    graph = known.graph
    entries = [*graph.value_info, *graph.input, *graph.output]
    kinds = {entry.name: entry.type.tensor_type.elem_type for entry in entries}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    ranks = {entry.name: len(entry.type.tensor_type.shape.dim) for entry in entries}
    held = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {entry.name for entry in graph.output}
    found: dict[str, list[str]] = {}
    for opset in model.opset_import:
        if not opset.domain and opset.version not in OPSETS:
            found[f"operator set {opset.version}: it reads {OPSETS[0]} to {OPSETS[-1]}"] = [graph.name]
    for node in graph.node:
        for problem in (*_check_dtypes(node, kinds, outputs), *_check_operator(node, held, kinds)):
            found.setdefault(problem, []).append(node.name or node.op_type)
        if any(ranks.get(name, 0) > MAX_DIMENSIONS for name in node.output):
            found.setdefault(f"tensors of more than {MAX_DIMENSIONS} dimensions", []).append(node.name)
    return [
        f"{problem} ({names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)})" for problem, names in found.items()
    ]


def _check_dtypes(node: NodeProto, dtypes: Mapping[str, int], outputs: set[str]) -> Iterator[str]:
    """Bytes are for the ends alone, where they are cast from and to floats; doubles are for nobody."""
    if any(dtypes.get(name) == TensorProto.DOUBLE for name in (*node.input, *node.output)):
        yield "float64"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return
    read = [dtypes.get(name) for name in node.input if name]
    for name in node.output:
        if dtypes.get(name) == UINT8 and name not in outputs:
            yield "bytes (uint8) between operators: it has them at its inputs and outputs alone"
        elif dtypes.get(name) == UINT8 and (node.op_type != "Cast" or read[0] not in FLOATS):
            yield "an output of bytes (uint8) that is not cast from float32 or float16"
    if UINT8 in read and (node.op_type != "Cast" or dtypes.get(node.output[0]) not in FLOATS):
        yield "an input of bytes (uint8) that is read by something else than a cast to float32 or float16"


def _check_operator(
    node: NodeProto, initializers: Mapping[str, TensorProto], dtypes: Mapping[str, int]
) -> Iterator[str]:
    """What it lays down for single operators."""
    settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    kind = node.op_type
    if node.domain not in ("", "ai.onnx"):
        yield f"operators of {node.domain}"
    if kind in UNSUPPORTED_OPS:
        yield f"the operator {kind}"
    if kind == "TopK":
        count = _constant_input(node, 1, initializers)
        if count is None or count.size != 1 or count.item() >= TOPK_LIMIT or not settings.get("sorted", 1):
            shown = "computed" if count is None else count.item()
            yield f"TopK of {shown}: it takes a fixed number under {TOPK_LIMIT}, sorted"
    if kind == "Resize":
        for name, allowed in RESIZE_ATTRIBUTES.items():
            value = settings.get(name)
            value = value.decode() if isinstance(value, bytes) else value
            if value is not None and value not in allowed:
                yield f"Resize with {name} {value}"
    if kind == "ScatterND" and settings.get("reduction", b"none") != b"none":
        yield "ScatterND with a reduction"
    if kind.startswith("Reduce") and len(node.input) > 1 and node.input[1] not in initializers:
        yield "a reduction over computed axes"
    if kind == "NonMaxSuppression" and any(name and name not in initializers for name in node.input[2:]):
        yield "NonMaxSuppression with computed limits"
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        zero = _constant_input(node, 2, initializers)
        whole = dtypes.get(node.input[2]) if len(node.input) > 2 else UINT8
        if whole != TensorProto.INT8 or zero is None or np.any(zero):
            yield "quantization that is not symmetric in int8: export int8 with --target tensorrt"


def _constant_input(node: NodeProto, index: int, initializers: Mapping[str, TensorProto]) -> NDArray | None:
    tensor = initializers.get(node.input[index]) if len(node.input) > index else None
    return None if tensor is None else numpy_helper.to_array(tensor)
