"""Backends for measuring a run folder: torch, compiled, ONNX in float32, and ONNX in int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto

from perception.bench.latency import Variant
from perception.bench.variants import CompiledVariant, OnnxVariant, TorchVariant, load_variant
from perception.export.export import hash_weights
from perception.export.trace import trace_to_onnx
from perception.model import MultiTaskModel
from perception.runtime import onnx_file
from perception.runtime.manifest import Precision, extract_manifest
from perception.types import PerceptionError

BACKENDS = ("torch", "compiled", "onnx", "int8")


def build_variants(
    run_folder: Path,
    model: MultiTaskModel,
    size: tuple[int, int],
    backends: Sequence[str],
    notes: dict[str, str],
    prefix: str = "",
) -> list[Variant]:
    """Build one variant per backend, named ``prefix`` + backend.

    Exported files in the run folder are used if they hold the same weights. Otherwise the graph is exported here.

    Args:
        run_folder: folder of the run.
        model: the network.
        size: (height, width) of the input.
        backends: names from `BACKENDS`.
        notes: receives variant -> what it is, or why it is missing.
        prefix: prefix of the variants' names.

    Returns:
        The variants that could be built.
    """
    graphs = _OnnxVariants(run_folder, model, size)
    shown = np.zeros((1, 3, *size), np.uint8)
    found: list[Variant] = []
    for kind in backends:
        name = prefix + kind
        try:
            if kind == "torch":
                found.append(TorchVariant(name, model))
            elif kind == "compiled":
                found.append(CompiledVariant(name, model, shown))
            else:
                form, notes[name] = graphs.build(name, "fp32" if kind == "onnx" else "int8")
                found.append(form)
        except RuntimeError as error:
            notes[name] = str(error)
    return found


class _OnnxVariants:
    def __init__(self, run_folder: Path, model: MultiTaskModel, size: tuple[int, int]) -> None:
        self.run_folder, self.model, self.size = run_folder, model, size
        self._graph: ModelProto | None = None

    def build(self, name: str, precision: Precision) -> tuple[OnnxVariant, str]:
        for path in sorted(self.run_folder.glob("*.onnx")) if self.run_folder.is_dir() else []:
            if self._matches(path, precision):
                return load_variant(name, path)[0], str(path)
        self._graph = self._graph or trace_to_onnx(self.model, self.model.specs, self.size)
        if precision == "fp32":
            return OnnxVariant(name, self._graph, list(self.model.tasks)), "exported here, not verified"
        from perception.export.int8 import quantize_all

        noise = torch.randint(0, 256, (1, 3, *self.size), dtype=torch.uint8).numpy()
        graph = quantize_all(self._graph, [noise])
        return OnnxVariant(
            name, graph, list(self.model.tasks)
        ), "quantized here with noise, for speed measurements only"

    def _matches(self, path: Path, precision: Precision) -> bool:
        try:
            manifest = extract_manifest(onnx_file.read_model(path), str(path))
        except PerceptionError:
            return False
        rules = manifest.input
        alike = (
            manifest.precision == precision
            and list(manifest.tasks) == list(self.model.tasks)
            and not rules.embeds_preprocessing
        )
        return (
            alike and (rules.dynamic or rules.size == self.size) and manifest.weights_sha256 == hash_weights(self.model)
        )
