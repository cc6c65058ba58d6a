"""Bare ONNX Runtime sessions for measuring and comparing models that are not files yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnxruntime
from numpy.typing import NDArray

ModelRunner = Callable[[NDArray], dict[str, NDArray]]
"""The graph's input to its outputs by name."""


def open_session(model: bytes, threads: int = 1, optimize: bool = True) -> onnxruntime.InferenceSession:
    """A session on the CPU, where denormal numbers count as zero. optimize: False runs the graph node by node."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def make_runner(model: bytes, threads: int = 1, output_names: Sequence[str] | None = None) -> ModelRunner:
    """A function that runs ``model``, which has one input, and gives the outputs ``output_names`` (all by default)."""
    session = open_session(model, threads)
    wanted = list(output_names or (entry.name for entry in session.get_outputs()))
    given = session.get_inputs()[0].name
    return lambda images: dict(zip(wanted, session.run(wanted, {given: images}), strict=True))  # type: ignore[arg-type]
