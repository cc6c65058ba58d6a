"""Reducing the precision of an exported graph: FP16 or INT8, kept only where the gate lets it pass."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from perception.export.fp16 import convert_to_fp16
from perception.export.int8 import quantize_within_budget
from perception.export.precision_gate import PrecisionGate, PrecisionReport, PrecisionSettings
from perception.model import MultiTaskModel
from perception.types import TaskSpec


def reduce_precision(
    settings: PrecisionSettings, network: MultiTaskModel, core: ModelProto, specs: Mapping[str, TaskSpec]
) -> PrecisionReport:
    """The reduced graph of ``core``, a graph with raw outputs. Raises Refused where it does not pay."""
    judge = PrecisionGate(settings, network, core, specs)
    if settings.precision == "fp16":
        model, notes = (
            convert_to_fp16(core),
            ["the CPU of ONNX Runtime computes in float32 where it has no half precision"],
        )
        return judge.decide(model, judge.evaluate(model), notes)
    return judge.decide(*quantize_within_budget(core, settings, judge))
