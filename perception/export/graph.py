"""Passes over an ONNX graph: folding, names, pieces. Needs the onnx package, which training brings."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

NAME_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def initializers(model: ModelProto) -> dict[str, TensorProto]:
    """The tensors that the graph holds, by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def count_uses(model: ModelProto) -> Counter[str]:
    """How often each value is read: by nodes, and as an output of the graph."""
    return Counter([*(name for node in model.graph.node for name in node.input), *(o.name for o in model.graph.output)])


def name_nodes(model: ModelProto) -> None:
    """Call each node by the module that it comes from: ``backbone.body.blocks.1.0.conv/Conv_17``."""
    for number, node in enumerate(model.graph.node):
        scopes = next((entry.value for entry in node.metadata_props if entry.key == NAME_SCOPES_KEY), "[]")
        path = next((scope for scope in ast.literal_eval(scopes)[-2::-1] if "." in scope or scope == "model"), "")
        node.name = f"{path.removeprefix('model').removeprefix('.') or 'graph'}/{node.op_type}_{number}"


def strip_metadata(model: ModelProto) -> None:
    """Drop what the exporter notes for debugging, paths of source files among it."""
    graph = model.graph
    for entry in [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del entry.metadata_props[:]
    for entry in graph.node:
        entry.ClearField("doc_string")
    del graph.value_info[:]


def fold_batchnorm(model: ModelProto) -> int:
    """Fold each BatchNormalization into the convolution before it; returns how many were folded.

    One that follows anything else (a sum of convolutions) becomes a product and a sum.

    A convolution whose weights several nodes share (towers over the levels of a pyramid, each with statistics of its
    own) gets weights of its own. Arithmetic in float64.
    """
    graph, known = model.graph, initializers(model)
    makers = {name: node for node in graph.node for name in node.output}
    folded = []
    for norm in graph.node:
        conv = makers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or conv.input[1] not in known:
            continue
        others = [node for node in graph.node if conv.output[0] in node.input and node is not norm]
        if any(node.op_type != "Shape" for node in others) or any(o.name == conv.output[0] for o in graph.output):
            continue
        if not all(name in known for name in [*norm.input[1:], *conv.input[2:]]):
            continue
        scale, shift, mean, variance = (_to_float64(known[name]) for name in norm.input[1:5])
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        weight = _to_float64(known[conv.input[1]]) * factor[:, None, None, None]
        bias = _to_float64(known[conv.input[2]]) if len(conv.input) > 2 else 0.0
        names = [f"{conv.name}.weight", f"{conv.name}.bias"]
        for name, values in zip(names, (weight, (bias - mean) * factor + shift), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        for node in others:  # the shape stays as it was
            node.input[0] = norm.output[0]
        conv.input[:] = [conv.input[0], *names]
        conv.output[0] = norm.output[0]
        folded.append(norm)
    for norm in folded:
        graph.node.remove(norm)
    _decompose_batchnorm(model)
    remove_unused(model)
    return len(folded)


def _decompose_batchnorm(model: ModelProto) -> None:
    """Write what is left of BatchNormalization over [B, C, H, W] as a product and a sum with constants."""
    graph, known = model.graph, initializers(model)
    for place, norm in reversed(list(enumerate(graph.node))):
        if norm.op_type != "BatchNormalization" or not all(name in known for name in norm.input[1:]):
            continue
        scale, shift, mean, variance = (_to_float64(known[name])[:, None, None] for name in norm.input[1:5])
        factor = scale / np.sqrt(variance + next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5))
        scaled, names = f"{norm.name}.scaled", [f"{norm.name}.factor", f"{norm.name}.shift"]
        for name, values in zip(names, (factor, shift - mean * factor), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        product = helper.make_node("Mul", [norm.input[0], names[0]], [scaled], f"{norm.name}.product")
        addition = helper.make_node("Add", [scaled, names[1]], [norm.output[0]], norm.name)
        del graph.node[place]
        graph.node.insert(place, addition)
        graph.node.insert(place, product)


def _to_float64(tensor: TensorProto) -> NDArray[np.float64]:
    return np.asarray(numpy_helper.to_array(tensor), np.float64)


def lift_constants(model: ModelProto) -> None:
    """Make every Constant node a tensor that the graph holds: some runtimes ask for those by name."""
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        (attribute,) = node.attribute
        value = helper.get_attribute_value(attribute)
        floats = attribute.name in ("value_float", "value_floats")
        kept = (
            numpy_helper.from_array(np.asarray(value, np.float32 if floats else np.int64))
            if (attribute.name != "value")
            else value
        )
        kept.name = node.output[0]
        graph.initializer.append(kept)
        graph.node.remove(node)


def cast_input_first(model: ModelProto) -> None:
    """Let one cast to float32 be all that reads the input; whoever asked the input for its shape asks the cast's.

    TensorRT takes bytes at its ends alone.
    """
    graph, name = model.graph, model.graph.input[0].name
    casts = [n for n in graph.node if n.op_type == "Cast" and name in n.input and n.attribute[0].i == TensorProto.FLOAT]
    if not casts:
        return
    first = casts[0]
    graph.node.remove(first)
    for node in graph.node:
        node.input[:] = [first.output[0] if value == name else value for value in node.input]
    graph.node.insert(0, first)


def remove_unused(model: ModelProto) -> None:
    """Drop the nodes whose results nobody reads, and the tensors that no node reads."""
    graph = model.graph
    while True:
        used = count_uses(model)
        idle = [node for node in graph.node if not any(used[name] for name in node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    kept = [tensor for tensor in graph.initializer if used[tensor.name]]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def keep_outputs(model: ModelProto, names: Collection[str]) -> ModelProto:
    """A copy that gives only the outputs ``names``, in the graph's order, with what they need."""
    found = ModelProto()
    found.CopyFrom(model)
    kept = [entry for entry in found.graph.output if entry.name in names]
    del found.graph.output[:]
    found.graph.output.extend(kept)
    remove_unused(found)
    return found


def extract_subgraph(model: ModelProto, inputs: Iterable[ValueInfoProto], outputs: Collection[str]) -> ModelProto:
    """The piece of the graph from the values ``inputs`` to the outputs ``outputs``: a copy.

    The graph's own inputs stay inputs where the piece reads them.
    """
    found = keep_outputs(model, outputs)
    given = {entry.name: entry for entry in inputs}
    for node in list(found.graph.node):
        if given.keys() & set(node.output):
            found.graph.node.remove(node)
    remove_unused(found)
    used = count_uses(found)
    own = [entry for entry in found.graph.input if used[entry.name]]
    del found.graph.input[:]
    found.graph.input.extend([*own, *(entry for name, entry in given.items() if used[name])])
    return found


def find_downstream_nodes(model: ModelProto, values: Collection[str], stop_values: Collection[str] = ()) -> set[str]:
    """The names of the nodes that need any of the values ``values``; the values ``stop_values`` lead no further."""
    reached, found = set(values), set()
    for node in model.graph.node:
        if reached & set(node.input):
            reached |= set(node.output) - set(stop_values)
            found.add(node.name)
    return found


def add_prefix(model: ModelProto, prefix: str, renames: Mapping[str, str]) -> ModelProto:
    """A copy in which values, tensors and nodes are called ``prefix`` + name, those in ``renames`` by another name."""
    found = ModelProto()
    found.CopyFrom(model)

    def rename(name: str) -> str:
        return renames.get(name, f"{prefix}{name}") if name else ""

    for number, node in enumerate(found.graph.node):
        node.name = f"{prefix}{node.name or f'{node.op_type}_{number}'}"
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
    for entry in [*found.graph.input, *found.graph.output, *found.graph.initializer]:
        entry.name = rename(entry.name)
    return found


def shape_of(entry: ValueInfoProto) -> tuple[int | str, ...]:
    """The shape of an input or output: numbers and names."""
    return tuple(dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim)


def dtype_of(entry: ValueInfoProto) -> str:
    """The type of an input's or output's elements, as numpy calls it."""
    return str(helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type))


def set_shape(entry: ValueInfoProto, shape: Iterable[Any]) -> None:
    """Name or number the dimensions of an input or output."""
    dims = entry.type.tensor_type.shape
    del dims.dim[:]
    for size in shape:
        dim = dims.dim.add()
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = int(size)
