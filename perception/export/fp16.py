"""Half precision: the trunk and the heads in float16, what is sensitive in float32.

Normalisation stays in float32 (levels up to 255 minus their mean), and so does everything after the raw outputs: the
geometry of boxes, their suppression, exponentials, argmax. Weights take half the room.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from perception.export import graph as passes

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
KEPT_INPUTS = {"Resize": (1, 2)}
"""Operator -> inputs that are float32 by its definition (region of interest, scales)."""


def halved(core: ModelProto) -> ModelProto:
    """``core``, which has raw outputs, in float16 from its first convolution to its raw outputs."""
    model = shape_inference.infer_shapes(core)
    floats = _float_values(model)
    del model.graph.value_info[:]
    region = _region(model)
    return _Halving(model, floats, region).model


def _float_values(model: ModelProto) -> set[str]:
    graph = model.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    found = {entry.name for entry in values if entry.type.tensor_type.elem_type == FLOAT}
    return found | {tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT}


def _region(model: ModelProto) -> set[str]:
    """Names of the nodes from the first convolution to the raw outputs, but for what only counts pixels."""
    raws = {entry.name for entry in model.graph.output if ".raw." in entry.name}
    first = next(node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm"))
    sizes = {name for node in model.graph.node if node.op_type == "Shape" for name in node.output}
    return passes.after(model, {first.input[0]}, sizes) - passes.after(model, raws)


class _Halving:
    """Walks over the nodes in their order and changes the type of values where the region begins and ends."""

    def __init__(self, model: ModelProto, floats: set[str], region: set[str]) -> None:
        self.model, self.floats = model, floats
        self.constants = passes.constants(model)
        self.ends = {entry.name for entry in model.graph.output}
        self.half: dict[str, str] = {}  # float32 value -> its float16 twin
        self.full: set[str] = set()  # values that exist in float32 too
        self.nodes: list[NodeProto] = []
        for node in model.graph.node:
            (self._halve if node.name in region else self._keep)(node)
        del model.graph.node[:]
        model.graph.node.extend(self.nodes)
        passes.drop_unused(model)

    def _halve(self, node: NodeProto) -> None:
        kept = KEPT_INPUTS.get(node.op_type, ())
        for i, name in enumerate(node.input):
            if name in self.floats and i not in kept:
                node.input[i] = self._twin(name)
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = HALF
        self.nodes.append(node)
        for i, name in enumerate(node.output):
            if name in self.floats:
                self.half[name] = node.output[i] = f"{name}/half"
                if name in self.ends:
                    self._cast(f"{name}/half", name, FLOAT)
                    self.full.add(name)

    def _keep(self, node: NodeProto) -> None:
        for name in node.input:
            if name in self.half and name not in self.full and name not in self.constants:
                self._cast(self.half[name], name, FLOAT)
                self.full.add(name)
        self.full |= set(node.output)
        self.nodes.append(node)

    def _twin(self, name: str) -> str:
        if name not in self.half:
            self.half[name] = f"{name}/half"
            if name in self.constants:
                values: Any = numpy_helper.to_array(self.constants[name])
                limit = float(np.finfo(np.float16).max)
                narrow = np.clip(values, -limit, limit).astype(np.float16)
                self.model.graph.initializer.append(numpy_helper.from_array(narrow, self.half[name]))
            else:
                self._cast(name, self.half[name], HALF)
        return self.half[name]

    def _cast(self, source: str, target: str, to: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to))
