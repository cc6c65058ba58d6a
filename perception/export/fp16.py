"""Half precision: the trunk and the heads in float16, what is sensitive in float32.

Normalization stays in float32 (levels up to 255 minus their mean), and so does everything after the raw outputs: the
geometry of boxes, their suppression, exponentials, argmax. Weights take half the room.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from perception.export import graph as passes

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
FLOAT32_INPUTS = {"Resize": (1, 2)}
"""Operator -> inputs that are float32 by its definition (region of interest, scales)."""


def convert_to_fp16(core: ModelProto) -> ModelProto:
    """``core``, which has raw outputs, in float16 from its first convolution to its raw outputs."""
    model = shape_inference.infer_shapes(core)
    floats = _float_values(model)
    del model.graph.value_info[:]
    region = _find_fp16_nodes(model)
    return _Fp16Converter(model, floats, region).model


def _float_values(model: ModelProto) -> set[str]:
    graph = model.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    found = {entry.name for entry in values if entry.type.tensor_type.elem_type == FLOAT}
    return found | {tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT}


def _find_fp16_nodes(model: ModelProto) -> set[str]:
    """Names of the nodes from the first convolution to the raw outputs, but for what only counts pixels."""
    raws = {entry.name for entry in model.graph.output if ".raw." in entry.name}
    first = next(node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm"))
    sizes = {name for node in model.graph.node if node.op_type == "Shape" for name in node.output}
    return passes.find_downstream_nodes(model, {first.input[0]}, sizes) - passes.find_downstream_nodes(model, raws)


class _Fp16Converter:
    """Walks over the nodes in their order and changes the type of values where the region begins and ends."""

    def __init__(self, model: ModelProto, float_values: set[str], fp16_nodes: set[str]) -> None:
        self.model, self.float_values = model, float_values
        self.constants = passes.initializers(model)
        self.output_names = {entry.name for entry in model.graph.output}
        self.fp16_names: dict[str, str] = {}  # float32 value -> its float16 twin
        self.fp32_names: set[str] = set()  # values that exist in float32 too
        self.nodes: list[NodeProto] = []
        for node in model.graph.node:
            (self._convert_node if node.name in fp16_nodes else self._keep_node)(node)
        del model.graph.node[:]
        model.graph.node.extend(self.nodes)
        passes.remove_unused(model)

    def _convert_node(self, node: NodeProto) -> None:
        kept = FLOAT32_INPUTS.get(node.op_type, ())
        for i, name in enumerate(node.input):
            if name in self.float_values and i not in kept:
                node.input[i] = self._to_fp16(name)
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = FLOAT16
        self.nodes.append(node)
        for i, name in enumerate(node.output):
            if name in self.float_values:
                self.fp16_names[name] = node.output[i] = f"{name}/half"
                if name in self.output_names:
                    self._append_cast(f"{name}/half", name, FLOAT)
                    self.fp32_names.add(name)

    def _keep_node(self, node: NodeProto) -> None:
        for name in node.input:
            if name in self.fp16_names and name not in self.fp32_names and name not in self.constants:
                self._append_cast(self.fp16_names[name], name, FLOAT)
                self.fp32_names.add(name)
        self.fp32_names |= set(node.output)
        self.nodes.append(node)

    def _to_fp16(self, name: str) -> str:
        if name not in self.fp16_names:
            self.fp16_names[name] = f"{name}/half"
            if name in self.constants:
                values: Any = numpy_helper.to_array(self.constants[name])
                limit = float(np.finfo(np.float16).max)
                narrow = np.clip(values, -limit, limit).astype(np.float16)
                self.model.graph.initializer.append(numpy_helper.from_array(narrow, self.fp16_names[name]))
            else:
                self._append_cast(name, self.fp16_names[name], FLOAT16)
        return self.fp16_names[name]

    def _append_cast(self, source: str, target: str, to: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to))
