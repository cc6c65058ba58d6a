"""Comparing the tasks' gradients costs little beside the step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from perception.bench.step_cost import measure_steps

LIMITS = {"features": 1.2, "late": 1.25}
"""Times the summed loss: generous, for a busy machine. The benchmark's own numbers are in docs/balancers.md."""


@pytest.fixture(scope="module")
def benchmark() -> Any:
    tool = Path(__file__).parents[2] / "tools/benchmark_balancer_cost.py"
    spec = importlib.util.spec_from_file_location("benchmark_balance", tool)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("space", LIMITS)
def test_comparing_gradients_costs_little(benchmark, space):
    """Four tasks on the default network; the least of a few ratios, each the median of turns taken one by one."""
    model, batch = benchmark.build_model(), benchmark.make_batch((128, 192))
    steps = {
        "static": benchmark.balancer_step("static", model, batch),
        space: benchmark.balancer_step("upgrad", model, batch, space=space),
    }
    ratios: list[float] = []
    while len(ratios) < 5 and (not ratios or min(ratios) > LIMITS[space]):
        found = measure_steps(steps, 3)
        ratios.append(found[space].ratio_to(found["static"]))
    assert min(ratios) <= LIMITS[space], ratios
