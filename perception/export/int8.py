"""INT8: static quantization by calibration images, with whatever is too sensitive kept in float32.

Convolutions and matrix products get whole-number weights (one scale a channel) and activations; the layers that make
the raw outputs, and all that comes after them, stay in float32. Where a task still loses more than its budget, blocks
of layers go back to float32, those that hurt this task most first, until it does not.

Weights take 7 of the 8 bits: the products of pairs then fit into the 16 bits in which processors without VNNI add them.

Activations are bytes with a zero point of their own, which ONNX Runtime computes fastest on processors: it takes ReLU
into them. TensorRT reads symmetric int8 alone, and no quantized biases: that form is slower than float32 on processors.
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
from perception.export.precision_gate import PrecisionGate, PrecisionSettings
from perception.runtime.session import make_runner

QUANTIZED_OPS = ("Conv", "MatMul", "Gemm")
ACTIVATION_OPS = ("Relu", "Clip")
MAX_BLOCKS = 24
NUM_SENSITIVITY_BATCHES = 4
"""Images on which the sensitivity of each block is measured."""

ActivationRanges = Mapping[str, tuple[float, float]]


def quantize_within_budget(
    core: ModelProto, settings: PrecisionSettings, gate: PrecisionGate
) -> tuple[ModelProto, dict[str, float], list[str]]:
    """(graph, each task's metric with it, notes for the table). ``core`` has raw outputs."""
    ready = shape_inference.infer_shapes(core)
    blocks = find_blocks(ready)
    limits = calibrate_ranges(ready, settings.calibration_batches)
    everything = [name for names in blocks.values() for name in names]
    symmetric = settings.symmetric
    model, released = quantize(ready, everything, limits, symmetric), []
    after = gate.evaluate(model)
    harms: dict[str, dict[str, float]] = {}
    step = 1
    while (over := gate.tasks_over_budget(after)) and len(released) < len(blocks):
        settings.report_progress(f"{', '.join(over)}: over the budget with {len(released)} blocks in float32")
        harms = harms or measure_sensitivity(
            ready, blocks, limits, settings.calibration_batches[:NUM_SENSITIVITY_BATCHES], symmetric
        )
        rest = [block for block in blocks if block not in released]
        released += sorted(rest, key=lambda block: -harms[block].get(over[0], 0.0))[:step]
        step *= 2
        kept = [name for block, names in blocks.items() if block not in released for name in names]
        model = quantize(ready, kept, limits, symmetric)
        after = gate.evaluate(model)
    counts = f"{len(blocks) - len(released)} of {len(blocks)} blocks in int8"
    return model, after, [counts + (f"; back in float32: {', '.join(released)}" if released else "")]


def quantize_all(core: ModelProto, batches: Iterable[NDArray[np.uint8]]) -> ModelProto:
    """All that can be, without a look at any metric."""
    ready = shape_inference.infer_shapes(core)
    return quantize(
        ready, [name for names in find_blocks(ready).values() for name in names], calibrate_ranges(ready, batches)
    )


def find_blocks(model: ModelProto) -> dict[str, list[str]]:
    """Block -> names of its nodes that can be quantized: by the modules they come from, at most `MAX_BLOCKS`.

    Left out are the last such nodes before the raw outputs, and everything after them.
    """
    known, graph = passes.initializers(model), model.graph
    raws = {entry.name for entry in graph.output if ".raw." in entry.name}
    late = passes.find_downstream_nodes(model, raws)
    chosen = [n for n in graph.node if n.op_type in QUANTIZED_OPS and n.input[1] in known and n.name not in late]
    chosen = [node for node in chosen if _has_successor(model, node, chosen)]
    found = {"": [node.name for node in chosen]} if chosen else {}
    while True:
        finer = [(block, parts) for block in found if len(parts := _split_block(block, found[block])) > 1]
        block, parts = max(finer, key=lambda item: len(found[item[0]]), default=("", {}))
        if not parts or len(found) - 1 + len(parts) > MAX_BLOCKS:
            return found
        del found[block]
        found |= parts


def _split_block(block: str, names: Sequence[str]) -> dict[str, list[str]]:
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


def _has_successor(model: ModelProto, node: NodeProto, others: Sequence[NodeProto]) -> bool:
    return bool(passes.find_downstream_nodes(model, set(node.output)) & {other.name for other in others})


def calibrate_ranges(model: ModelProto, batches: Iterable[NDArray[np.uint8]]) -> dict[str, tuple[float, float]]:
    """Value -> (lowest, highest) of what quantized nodes and activations read and write: means over the images.

    An image's extremes are its own; their means leave out what a single odd image brings.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    kinds = (*QUANTIZED_OPS, *ACTIVATION_OPS)
    values = {v for node in model.graph.node if node.op_type in kinds for v in (node.input[0], node.output[0])}
    floats = {e.name for e in (*model.graph.value_info, *model.graph.output) if e.type.tensor_type.elem_type == 1}
    names = sorted(values & floats)
    del probe.graph.output[:]
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            probe.graph.node.append(helper.make_node(kind, [name], [f"{name}/{kind}"], f"{name}/{kind}", keepdims=0))
            probe.graph.output.append(helper.make_tensor_value_info(f"{name}/{kind}", TensorProto.FLOAT, []))
    run, sums, count = make_runner(probe.SerializeToString()), np.zeros((len(names), 2)), 0
    for batch in batches:
        for picture in batch:
            found = run(picture[None])
            sums += [[float(found[f"{name}/{kind}"]) for kind in ("ReduceMin", "ReduceMax")] for name in names]
            count += 1
    means = sums / max(count, 1)
    return {name: (float(low), float(high)) for name, (low, high) in zip(names, means, strict=True)}


def quantize(
    model: ModelProto, node_names: Sequence[str], ranges: ActivationRanges, symmetric: bool = False
) -> ModelProto:
    """A copy with the named nodes between QuantizeLinear and DequantizeLinear. symmetric: as TensorRT reads it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    if not node_names:
        return copy
    data: Any = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
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
            list(node_names),
            [],
            list(QUANTIZED_OPS),
            {"DedicatedQDQPair": False, "ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
        )
        quantizer.quantize_model()
    finally:
        logging.disable(level)
    found: Any = quantizer.model
    found.topological_sort()
    result: ModelProto = found.model
    del result.graph.value_info[:]
    passes.remove_unused(result)
    return result


def measure_sensitivity(
    model: ModelProto,
    blocks: Mapping[str, Sequence[str]],
    ranges: ActivationRanges,
    batches: Sequence[NDArray[np.uint8]],
    symmetric: bool = False,
) -> dict[str, dict[str, float]]:
    """Block -> task -> how far its raw outputs move when this block alone is quantized, relative to their spread."""
    raws = [entry.name for entry in model.graph.output if ".raw." in entry.name]
    probes = [batch[:1] for batch in batches]
    bare = make_runner(model.SerializeToString(), output_names=raws)
    wanted = [bare(picture) for picture in probes]
    found: dict[str, dict[str, float]] = {}
    for block, nodes in blocks.items():
        run = make_runner(quantize(model, nodes, ranges, symmetric).SerializeToString(), output_names=raws)
        harm: dict[str, float] = {}
        for picture, true in zip(probes, wanted, strict=True):
            for name, values in run(picture).items():
                spread = float(np.var(true[name])) or 1.0
                task = name.partition(".")[0]
                error = float(np.mean((values.astype(np.float64) - true[name]) ** 2)) / spread
                harm[task] = max(harm.get(task, 0.0), error)
        found[block] = harm
    return found
