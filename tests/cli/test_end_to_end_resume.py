"""A training that is killed goes on as if nothing had happened; one under another recipe does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from command_line import run_perception, training_arguments
from safetensors.torch import load_file


@pytest.mark.fault("T1")
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_steps_equal_ten_a_kill_and_ten(workers, demo_run, demo_street, tmp_path):
    """Bit for bit: weights, optimizer, moving average, and the losses in the log."""
    broken = tmp_path / "broken"
    command = [
        sys.executable,
        "-m",
        "perception.cli",
        *map(str, training_arguments(demo_street)),
        f"data.workers={workers}",
        "--out",
        str(broken),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (broken / "checkpoints" / "last").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert (broken / "checkpoints" / "last").resolve().name == "step_00000010"
    run_perception("train", "--resume", broken)
    ends = [folder / "checkpoints" / "last" for folder in (demo_run, broken)]
    weights = [load_file(end / "model.safetensors") for end in ends]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    states = [torch.load(end / "train_state.pt", weights_only=True) for end in ends]
    _require_equal(states[0], states[1], "state")
    logs = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (demo_run, broken)]
    timeless = [
        [{k: v for k, v in event.items() if k not in ("time", "images_per_second")} for event in log] for log in logs
    ]
    assert timeless[0] == timeless[1]


def _require_equal(first, second, where: str) -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            if key not in ("seconds", "seconds_per_step"):
                _require_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        for i, pair in enumerate(zip(first, second, strict=True)):
            _require_equal(*pair, f"{where}.{i}")
    else:
        assert first == second, where


@pytest.mark.fault("T5")
def test_a_resume_with_another_recipe_shows_the_difference(demo_run):
    done = run_perception("train", "--resume", demo_run, "train.lr=0.5", check=False)
    assert done.returncode == 2
    assert "+  lr: 0.5" in done.stderr
