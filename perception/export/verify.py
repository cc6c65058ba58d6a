"""Is a graph its network? Both run on the same batches, before a file is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from perception.export import graph as passes
from perception.export import parity
from perception.export.deviation import Deviation
from perception.export.trace import flatten_raw
from perception.model import MultiTaskModel
from perception.runtime.session import make_runner, open_session
from perception.types import TaskSpec


def verify_parity(
    model: MultiTaskModel,
    graph: ModelProto,
    specs: Mapping[str, TaskSpec],
    batches: Iterator[tuple[str, NDArray[np.uint8]]],
) -> tuple[dict[str, float], int]:
    """(largest difference of each output, batches compared). Raises `parity.Disagreement`.

    Besides the batches, every task with scores decodes raw outputs that hold nothing, a crowd, and one class only.
    """
    run = make_runner(graph.SerializeToString(), torch.get_num_threads())
    comparison, count, raws = parity.ParityCheck(specs, iou_thresholds(model)), 0, None
    for where, images in batches:
        raw, wanted = _predict(model, specs, images)
        comparison.update(where, wanted, run(images))
        raws = raws or (raw, images)
        count += 1
    if raws is not None:
        for name, spec in specs.items():
            if spec.annotation_type == "instances" and "logits" in raws[0][name]._fields:
                _verify_edge_cases(model, graph, name, spec, raws[0][name], raws[1], comparison)
    return comparison.compute(), count


def measure_deviation(
    model: MultiTaskModel,
    graph: ModelProto,
    specs: Mapping[str, TaskSpec],
    batches: Iterable[tuple[str, NDArray[np.uint8]]],
) -> tuple[dict[str, float], int]:
    """As `verify`, of a graph of less precision: how far it is from torch, whatever that is (`Deviation`).

    Raises `parity.Disagreement` where it gives no numbers.
    """
    run, found, count = make_runner(graph.SerializeToString(), torch.get_num_threads()), Deviation(specs), 0
    for where, images in batches:
        found.update(where, _predict(model, specs, images)[1], run(images))
        count += 1
    return found.compute(), count


def _predict(
    model: MultiTaskModel, specs: Mapping[str, TaskSpec], images: NDArray[np.uint8]
) -> tuple[Mapping[str, Any], dict[str, NDArray]]:
    """Raw outputs as torch gives them; raw and decoded ones by name."""
    with torch.inference_mode():
        raw = model(torch.from_numpy(images), list(specs))
        found = {**flatten_raw(raw), **model.decode(raw, images.shape[-2:])}
    return raw, {name: value.numpy() for name, value in found.items()}


def _verify_edge_cases(
    model: MultiTaskModel,
    graph: ModelProto,
    name: str,
    spec: TaskSpec,
    raw: Any,
    images: NDArray[np.uint8],
    comparison: parity.ParityCheck,
) -> None:
    """Decode made-up scores by torch and by the piece of the graph that decodes them."""
    ends = {entry.name: entry for entry in graph.graph.output}
    flat = {key: value.numpy() for key, value in flatten_raw({name: raw}).items()}
    outputs = [f"{name}.{output}" for output in spec.outputs]
    piece = passes.extract_subgraph(graph, [ends[key] for key in flat], outputs)
    session = open_session(piece.SerializeToString(), torch.get_num_threads())
    read = {entry.name for entry in session.get_inputs()}
    for where, logits in parity.generate_edge_cases(flat[f"{name}.raw.logits"]):
        with torch.inference_mode():
            wanted = model.decode({name: raw._replace(logits=torch.from_numpy(logits))}, images.shape[-2:])
        feeds = {**flat, f"{name}.raw.logits": logits, "images": images}
        answer: Any = session.run(outputs, {key: value for key, value in feeds.items() if key in read})
        sides = {key: value.numpy() for key, value in wanted.items()}, dict(zip(outputs, answer, strict=True))
        comparison.update(f"{name} with {where}", *sides, tasks=[name])


def iou_thresholds(model: MultiTaskModel) -> dict[str, float]:
    configs = {name: task.config for name, task in model.tasks.items()}
    return {name: config.iou_threshold for name, config in configs.items() if hasattr(config, "iou_threshold")}
