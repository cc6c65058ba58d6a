"""INT8: static quantisation by calibration pictures, with whatever is too sensitive kept in float32.

Convolutions and matrix products get whole-number weights (one scale a channel) and activations; the layers that make
the raw outputs, and all that comes after them, stay in float32. Where a task still loses more than its budget, blocks
of layers go back to float32, those that hurt this task most first, until it does not.

Weights take 7 of the 8 bits: the products of pairs then fit into the 16 bits in which processors without VNNI add them.

Activations are bytes with a zero point of their own, which ONNX Runtime computes fastest on processors: it takes ReLU
into them. TensorRT reads symmetric int8 alone, and no quantised biases: that form is slower than float32 on processors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from perception.export import graph as passes
from perception.export.precision_gate import Judge, Reduction
from perception.runtime.session import runner

QUANTISED = ("Conv", "MatMul", "Gemm")
ACTIVATIONS = ("Relu", "Clip")
MAX_BLOCKS = 24
PROBES = 4
"""Pictures on which the sensitivity of each block is measured."""

Ranges = Mapping[str, tuple[float, float]]


def quantised(core: ModelProto, reduction: Reduction, judge: Judge) -> tuple[ModelProto, dict[str, float], list[str]]:
    """(graph, each task's metric with it, notes for the table). ``core`` has raw outputs."""
    ready = shape_inference.infer_shapes(core)
    blocks = blocks_of(ready)
    limits = ranges(ready, reduction.pictures)
    everything = [name for names in blocks.values() for name in names]
    symmetric = reduction.symmetric
    model, released = quantise(ready, everything, limits, symmetric), []
    after = judge.measure(model)
    harms: dict[str, dict[str, float]] = {}
    step = 1
    while (over := judge.over_budget(after)) and len(released) < len(blocks):
        reduction.say(f"{', '.join(over)}: over the budget with {len(released)} blocks in float32")
        harms = harms or sensitivity(ready, blocks, limits, reduction.pictures[:PROBES], symmetric)
        rest = [block for block in blocks if block not in released]
        released += sorted(rest, key=lambda block: -harms[block].get(over[0], 0.0))[:step]
        step *= 2
        kept = [name for block, names in blocks.items() if block not in released for name in names]
        model = quantise(ready, kept, limits, symmetric)
        after = judge.measure(model)
    counts = f"{len(blocks) - len(released)} of {len(blocks)} blocks in int8"
    return model, after, [counts + (f"; back in float32: {', '.join(released)}" if released else "")]


def plainly_quantised(core: ModelProto, pictures: Iterable[NDArray[np.uint8]]) -> ModelProto:
    """All that can be, without a look at any metric."""
    ready = shape_inference.infer_shapes(core)
    return quantise(ready, [name for names in blocks_of(ready).values() for name in names], ranges(ready, pictures))


def blocks_of(model: ModelProto) -> dict[str, list[str]]:
    """Block -> names of its nodes that can be quantised: by the modules they come from, at most `MAX_BLOCKS`.

    Left out are the last such nodes before the raw outputs, and everything after them.
    """
    known, graph = passes.constants(model), model.graph
    raws = {entry.name for entry in graph.output if ".raw." in entry.name}
    late = passes.after(model, raws)
    chosen = [n for n in graph.node if n.op_type in QUANTISED and n.input[1] in known and n.name not in late]
    chosen = [node for node in chosen if _feeds_another(model, node, chosen)]
    found = {"": [node.name for node in chosen]} if chosen else {}
    while True:
        finer = [(block, parts) for block in found if len(parts := _parts(block, found[block])) > 1]
        block, parts = max(finer, key=lambda item: len(found[item[0]]), default=("", {}))
        if not parts or len(found) - 1 + len(parts) > MAX_BLOCKS:
            return found
        del found[block]
        found |= parts


def _parts(block: str, names: Sequence[str]) -> dict[str, list[str]]:
    """The nodes of a block by the first parts of their modules' paths that tell them apart."""
    paths = {name: name.rpartition("/")[0].split(".") for name in names}
    known = block.count(".") + bool(block)
    for depth in range(known + 1, max(map(len, paths.values())) + 1):
        parts: dict[str, list[str]] = {}
        for name, path in paths.items():
            parts.setdefault(".".join(path[:depth]), []).append(name)
        if len(parts) > 1:
            return parts
    return {}


def _feeds_another(model: ModelProto, node: NodeProto, others: Sequence[NodeProto]) -> bool:
    return bool(passes.after(model, set(node.output)) & {other.name for other in others})


def ranges(model: ModelProto, pictures: Iterable[NDArray[np.uint8]]) -> dict[str, tuple[float, float]]:
    """Value -> (lowest, highest) of what quantised nodes and activations read and write: means over the pictures.

    A picture's extremes are its own; their means leave out what a single odd picture brings.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    kinds = (*QUANTISED, *ACTIVATIONS)
    values = {v for node in model.graph.node if node.op_type in kinds for v in (node.input[0], node.output[0])}
    floats = {e.name for e in (*model.graph.value_info, *model.graph.output) if e.type.tensor_type.elem_type == 1}
    names = sorted(values & floats)
    del probe.graph.output[:]
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            probe.graph.node.append(helper.make_node(kind, [name], [f"{name}/{kind}"], f"{name}/{kind}", keepdims=0))
            probe.graph.output.append(helper.make_tensor_value_info(f"{name}/{kind}", TensorProto.FLOAT, []))
    run, sums, count = runner(probe.SerializeToString()), np.zeros((len(names), 2)), 0
    for batch in pictures:
        for picture in batch:
            found = run(picture[None])
            sums += [[float(found[f"{name}/{kind}"]) for kind in ("ReduceMin", "ReduceMax")] for name in names]
            count += 1
    means = sums / max(count, 1)
    return {name: (float(low), float(high)) for name, (low, high) in zip(names, means, strict=True)}


def quantise(model: ModelProto, nodes: Sequence[str], limits: Ranges, symmetric: bool = False) -> ModelProto:
    """A copy with the named nodes between QuantizeLinear and DequantizeLinear. symmetric: as TensorRT reads it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    if not nodes:
        return copy
    data: Any = {name: (np.float32(low), np.float32(high)) for name, (low, high) in limits.items()}
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        quantizer = QDQQuantizer(
            copy,
            True,  # one scale a channel
            True,  # 7 bits of weights
            QuantType.QInt8,
            QuantType.QInt8 if symmetric else QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, data),
            list(nodes),
            [],
            list(QUANTISED),
            {"DedicatedQDQPair": False, "ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
        )
        quantizer.quantize_model()
    finally:
        logging.disable(level)
    found: Any = quantizer.model
    found.topological_sort()
    result: ModelProto = found.model
    del result.graph.value_info[:]
    passes.drop_unused(result)
    return result


def sensitivity(
    model: ModelProto,
    blocks: Mapping[str, Sequence[str]],
    limits: Ranges,
    pictures: Sequence[NDArray[np.uint8]],
    symmetric: bool = False,
) -> dict[str, dict[str, float]]:
    """Block -> task -> how far its raw outputs move when this block alone is quantised, relative to their spread."""
    raws = [entry.name for entry in model.graph.output if ".raw." in entry.name]
    probes = [batch[:1] for batch in pictures]
    bare = runner(model.SerializeToString(), names=raws)
    wanted = [bare(picture) for picture in probes]
    found: dict[str, dict[str, float]] = {}
    for block, nodes in blocks.items():
        run = runner(quantise(model, nodes, limits, symmetric).SerializeToString(), names=raws)
        harm: dict[str, float] = {}
        for picture, true in zip(probes, wanted, strict=True):
            for name, values in run(picture).items():
                spread = float(np.var(true[name])) or 1.0
                task = name.partition(".")[0]
                error = float(np.mean((values.astype(np.float64) - true[name]) ** 2)) / spread
                harm[task] = max(harm.get(task, 0.0), error)
        found[block] = harm
    return found
