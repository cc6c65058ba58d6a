"""Partition of an exported graph into subgraphs for timing: letterbox, trunk, and each task's head and decoding."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, shape_inference

from perception.export import graph as passes

LETTERBOX, TRUNK, HEAD, DECODING = "letterbox", "trunk", "head", "decoding"


@dataclass(frozen=True, slots=True)
class Subgraph:
    """A part of a graph as a separate model. Its inputs are values of the whole graph, by name.

    Attributes:
        stage: "letterbox", "trunk", "head" or "decoding".
        task: name of the task; "" if shared by all tasks.
        model: the part as an ONNX model.
    """

    stage: str
    task: str
    model: ModelProto

    @property
    def label(self) -> str:
        """Task and stage, for example "depth head"."""
        return f"{self.task} {self.stage}".strip()


def partition_graph(model: ModelProto, tasks: Collection[str]) -> list[Subgraph]:
    """Split a graph into subgraphs, in an order in which they can run.

    The module in a node's name determines its stage. Without such names (files of other programs) all nodes belong to
    the trunk, and the subgraphs still add up to the whole graph.

    Args:
        model: the exported graph.
        tasks: names of its tasks.

    Returns:
        The non-empty subgraphs.
    """
    known = shape_inference.infer_shapes(model)
    kinds = {
        entry.name: entry.type
        for entry in (*known.graph.value_info, *known.graph.input, *known.graph.output)
        if entry.type.tensor_type.elem_type
    }
    places = _assign_stages(model, tasks)
    order = [(LETTERBOX, ""), (TRUNK, ""), *((stage, task) for stage in (HEAD, DECODING) for task in tasks)]
    parts = {
        place: _add_dequantizers(model, [n for n in model.graph.node if places[n.name] == place]) for place in order
    }
    ends = {entry.name for entry in model.graph.output}
    found = []
    for (stage, task), nodes in parts.items():
        elsewhere = {value for other in parts.values() if other is not nodes for n in other for value in n.input}
        if nodes:
            found.append(Subgraph(stage, task, _build_subgraph(model, nodes, elsewhere | ends, kinds)))
    return found


def _assign_stages(model: ModelProto, tasks: Collection[str]) -> dict[str, tuple[str, str]]:
    """Node -> (stage, task)."""
    users = _tasks_by_node(model, tasks)
    makers = {value: node for node in model.graph.node for value in node.output}
    found: dict[str, tuple[str, str]] = {}
    for node in model.graph.node:
        path, _, _ = node.name.partition("/")
        before = [found[makers[value].name] for value in node.input if value in makers and makers[value].name in found]
        task = next(iter(users[node.name])) if len(users[node.name]) == 1 else ""
        if path == "place":
            found[node.name] = (LETTERBOX, "")
        elif path.startswith("tasks."):
            # The exporter merges identical nodes of two heads under the first head's name, which may be missing here.
            owner = path.split(".")[1]
            owners = [name for name in tasks if name in users[node.name]]
            found[node.name] = (HEAD, owner if owner in owners or not owners else owners[0])
        elif path in ("graph", "restore") and task and _is_after_head(task, before):
            found[node.name] = (DECODING, task)
        elif path in ("graph", "restore") or "." in path:
            found[node.name] = (TRUNK, "")
        else:  # inserted by a later pass: belongs to the producer of its inputs
            found[node.name] = max(before, key=lambda place: bool(place[1]), default=(TRUNK, ""))
    return _make_runnable(model, makers, found)


def _is_after_head(task: str, predecessors: Iterable[tuple[str, str]]) -> bool:
    return any(place in ((HEAD, task), (DECODING, task)) for place in predecessors)


def _make_runnable(
    model: ModelProto, makers: Mapping[str, NodeProto], stages: dict[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """Move trunk nodes that need a task's values to this task, so that the subgraphs can run one after the other."""
    for node in model.graph.node:
        stage, task = stages[node.name]
        for value in node.input:
            above = stages[makers[value].name] if value in makers else (LETTERBOX, "")
            if above[1] and not task:
                stage, task = DECODING, above[1]
            elif above == (DECODING, task) and stage == HEAD:
                stage = DECODING
        stages[node.name] = (stage, task)
    return stages


def _tasks_by_node(model: ModelProto, tasks: Collection[str]) -> dict[str, set[str]]:
    """Node -> the tasks whose outputs need it."""
    needed: dict[str, set[str]] = {}
    for entry in model.graph.output:
        task = entry.name.partition(".")[0]
        needed.setdefault(entry.name, set()).update({task} & set(tasks))
    found = {}
    for node in reversed(model.graph.node):
        found[node.name] = set().union(*(needed.get(value, set()) for value in node.output))
        for value in node.input:
            needed.setdefault(value, set()).update(found[node.name])
    return found


def _add_dequantizers(model: ModelProto, nodes: list[NodeProto]) -> list[NodeProto]:
    """A subgraph's nodes with each DequantizeLinear that they read, which then fuses as in the whole graph."""
    restoring = {n.output[0]: n for n in model.graph.node if n.op_type == "DequantizeLinear"}
    ends = {entry.name for entry in model.graph.output}
    own = [n for n in nodes if n.op_type != "DequantizeLinear" or n.output[0] in ends]
    found, there = [], set()
    for node in own:
        for value in node.input:
            if value in restoring and value not in there:
                there.add(value)
                found.append(restoring[value])
        found.append(node)
    return found


def _build_subgraph(
    model: ModelProto, nodes: list[NodeProto], external_values: Collection[str], types: Mapping[str, TypeProto]
) -> ModelProto:
    known = passes.initializers(model)
    made = {value for node in nodes for value in node.output}
    read = dict.fromkeys(value for node in nodes for value in node.input if value and value not in made)
    found = ModelProto()
    found.ir_version = model.ir_version
    found.opset_import.extend(model.opset_import)
    found.graph.name = "piece"
    found.graph.node.extend(nodes)
    found.graph.initializer.extend(known[value] for value in read if value in known)
    found.graph.input.extend(_declare_value(value, types) for value in read if value not in known)
    found.graph.output.extend(
        _declare_value(value, types) for node in nodes for value in node.output if value in external_values
    )
    return found


def _declare_value(name: str, types: Mapping[str, TypeProto]) -> ValueInfoProto:
    """Declare a value with dynamic sizes. Int64 values (lists of sizes) keep their size, which operators need."""
    entry = ValueInfoProto()
    entry.name = name
    if name in types:
        entry.type.CopyFrom(types[name])
        if entry.type.tensor_type.HasField("shape") and entry.type.tensor_type.elem_type != TensorProto.INT64:
            for i, dim in enumerate(entry.type.tensor_type.shape.dim):
                dim.dim_param = f"{name}:{i}"
    return entry
