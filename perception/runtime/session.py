"""Bare ONNX Runtime sessions for measuring and comparing models that are not files yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnxruntime
from numpy.typing import NDArray

Run = Callable[[NDArray], dict[str, NDArray]]
"""The graph's input to its outputs by name."""


def open_session(model: bytes, threads: int = 1, optimised: bool = True) -> onnxruntime.InferenceSession:
    """A session on the CPU, where denormal numbers count as zero. optimised: False runs the graph node by node."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def runner(model: bytes, threads: int = 1, names: Sequence[str] | None = None) -> Run:
    """A function that runs ``model``, which has one input, and gives the outputs ``names`` (all by default)."""
    session = open_session(model, threads)
    wanted = list(names or (entry.name for entry in session.get_outputs()))
    given = session.get_inputs()[0].name
    return lambda images: dict(zip(wanted, session.run(wanted, {given: images}), strict=True))  # type: ignore[arg-type]
