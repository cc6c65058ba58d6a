"""The forms that a run folder can be measured in: torch, compiled, and ONNX in float32 and in whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from perception.bench.latency import Form
from perception.bench.variants import CompiledForm, OnnxForm, TorchForm, from_file
from perception.export.export import weights_digest
from perception.export.trace import translate
from perception.runtime import onnx_file
from perception.runtime.manifest import Precision, extract
from perception.types import PerceptionError

KINDS = ("torch", "compiled", "onnx", "int8")


def candidates(
    run: Path, model: Any, size: tuple[int, int], kinds: Sequence[str], notes: dict[str, str], prefix: str = ""
) -> list[Form]:
    """A form of each kind, called ``prefix`` + kind, for inputs of ``size``. notes: what each is, or why it is missing.

    Exported files in the run folder are taken where they hold these weights; otherwise the graph is made here.
    """
    graphs = _Graphs(run, model, size)
    shown = np.zeros((1, 3, *size), np.uint8)
    found: list[Form] = []
    for kind in kinds:
        name = prefix + kind
        try:
            if kind == "torch":
                found.append(TorchForm(name, model))
            elif kind == "compiled":
                found.append(CompiledForm(name, model, shown))
            else:
                form, notes[name] = graphs.form(name, "fp32" if kind == "onnx" else "int8")
                found.append(form)
        except RuntimeError as error:
            notes[name] = str(error)
    return found


class _Graphs:
    def __init__(self, run: Path, model: Any, size: tuple[int, int]) -> None:
        self.run, self.model, self.size = run, model, size
        self._core: ModelProto | None = None

    def form(self, name: str, precision: Precision) -> tuple[OnnxForm, str]:
        for path in sorted(self.run.glob("*.onnx")) if self.run.is_dir() else []:
            if self._fits(path, precision):
                return from_file(name, path)[0], str(path)
        self._core = self._core or translate(self.model, self.model.specs, self.size)
        if precision == "fp32":
            return OnnxForm(name, self._core, list(self.model.tasks)), "translated here, not verified"
        from perception.export.int8 import plainly_quantised

        noise = torch.randint(0, 256, (1, 3, *self.size), dtype=torch.uint8).numpy()
        graph = plainly_quantised(self._core, [noise])
        return OnnxForm(name, graph, list(self.model.tasks)), "quantised here on noise, for its speed alone"

    def _fits(self, path: Path, precision: Precision) -> bool:
        try:
            manifest = extract(onnx_file.read_file(path), str(path))
        except PerceptionError:
            return False
        rules = manifest.input
        alike = manifest.precision == precision and list(manifest.tasks) == list(self.model.tasks) and not rules.inside
        return alike and (rules.dynamic or rules.size == self.size) and manifest.weights == weights_digest(self.model)
