"""What TensorRT 10 would refuse of a graph, told before anyone stands before its parser. Needs the onnx package.

Sources: docs/operators.md of onnx-tensorrt (10.0 to 10.15); its ModelImporter.cpp and onnxOpImporters.cpp, for bytes
and Q/DQ; NvInferRuntimeBase.h, for what bytes are cast from and to. No TensorRT is needed or run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

OPSETS = range(9, 21)
"""Operator sets that every TensorRT 10 reads."""

TOPK_LIMIT = 3840
"""TopK takes fewer than this."""

MOST_DIMENSIONS = 8

UNKNOWN = frozenset((
    "AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det",
    "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix",
    "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement",
    "QLinearConv", "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
    "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss",
    "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer", "Unique",
))  # fmt: skip
"""Operators with an N in the table of 10.15."""

RESIZE = {
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

BYTES, FLOATS = TensorProto.UINT8, (TensorProto.FLOAT, TensorProto.FLOAT16)


def problems(model: ModelProto) -> list[str]:
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
        for problem in (*_types(node, kinds, outputs), *_limits(node, held, kinds)):
            found.setdefault(problem, []).append(node.name or node.op_type)
        if any(ranks.get(name, 0) > MOST_DIMENSIONS for name in node.output):
            found.setdefault(f"tensors of more than {MOST_DIMENSIONS} dimensions", []).append(node.name)
    return [
        f"{problem} ({names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)})" for problem, names in found.items()
    ]


def _types(node: NodeProto, kinds: Mapping[str, int], outputs: set[str]) -> Iterator[str]:
    """Bytes are for the ends alone, where they are cast from and to floats; doubles are for nobody."""
    if any(kinds.get(name) == TensorProto.DOUBLE for name in (*node.input, *node.output)):
        yield "float64"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return
    read = [kinds.get(name) for name in node.input if name]
    for name in node.output:
        if kinds.get(name) == BYTES and name not in outputs:
            yield "bytes (uint8) between operators: it has them at its inputs and outputs alone"
        elif kinds.get(name) == BYTES and (node.op_type != "Cast" or read[0] not in FLOATS):
            yield "an output of bytes (uint8) that is not cast from float32 or float16"
    if BYTES in read and (node.op_type != "Cast" or kinds.get(node.output[0]) not in FLOATS):
        yield "an input of bytes (uint8) that is read by something else than a cast to float32 or float16"


def _limits(node: NodeProto, held: Mapping[str, TensorProto], kinds: Mapping[str, int]) -> Iterator[str]:
    """What it lays down for single operators."""
    settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    kind = node.op_type
    if node.domain not in ("", "ai.onnx"):
        yield f"operators of {node.domain}"
    if kind in UNKNOWN:
        yield f"the operator {kind}"
    if kind == "TopK":
        count = _value(node, 1, held)
        if count is None or count.size != 1 or count.item() >= TOPK_LIMIT or not settings.get("sorted", 1):
            shown = "computed" if count is None else count.item()
            yield f"TopK of {shown}: it takes a fixed number under {TOPK_LIMIT}, sorted"
    if kind == "Resize":
        for name, allowed in RESIZE.items():
            value = settings.get(name)
            value = value.decode() if isinstance(value, bytes) else value
            if value is not None and value not in allowed:
                yield f"Resize with {name} {value}"
    if kind == "ScatterND" and settings.get("reduction", b"none") != b"none":
        yield "ScatterND with a reduction"
    if kind.startswith("Reduce") and len(node.input) > 1 and node.input[1] not in held:
        yield "a reduction over computed axes"
    if kind == "NonMaxSuppression" and any(name and name not in held for name in node.input[2:]):
        yield "NonMaxSuppression with computed limits"
    if kind in ("QuantizeLinear", "DequantizeLinear"):
        zero = _value(node, 2, held)
        whole = kinds.get(node.input[2]) if len(node.input) > 2 else BYTES
        if whole != TensorProto.INT8 or zero is None or np.any(zero):
            yield "quantisation that is not symmetric in int8: export int8 with --target tensorrt"


def _value(node: NodeProto, place: int, held: Mapping[str, TensorProto]) -> Any:
    tensor = held.get(node.input[place]) if len(node.input) > place else None
    return None if tensor is None else numpy_helper.to_array(tensor)
