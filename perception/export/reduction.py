"""Reducing the precision of an exported graph: FP16 or INT8, kept only where the gate lets it pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import ModelProto

from perception.export.fp16 import halved
from perception.export.int8 import quantised
from perception.export.precision_gate import Judge, Outcome, Reduction
from perception.types import TaskSpec


def reduce_precision(reduction: Reduction, network: Any, core: ModelProto, specs: Mapping[str, TaskSpec]) -> Outcome:
    """The reduced graph of ``core``, a graph with raw outputs. Raises Refused where it does not pay."""
    judge = Judge(reduction, network, core, specs)
    if reduction.precision == "fp16":
        model, notes = halved(core), ["the CPU of ONNX Runtime computes in float32 where it has no half precision"]
        return judge.outcome(model, judge.measure(model), notes)
    return judge.outcome(*quantised(core, reduction, judge))
