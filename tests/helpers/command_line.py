"""What the tests of whole runs share: the commands as a user gives them, and the demo's recipe cut short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "perception" / "demo.yaml"
SMALL_OVERRIDES = (
    "model.backbone={name: test_efficientnet, weights: none}",
    "data.size=[64,128]",
    "train={steps: 20, batch_size: 4, warmup_steps: 4, checkpoint_every: 10, evaluate_every: 0, threads: 1, "
    "tensorboard: false}",
)


def python_path(folder: object) -> str:
    """PYTHONPATH for a process that a test starts: a folder, then where the test itself finds things (this checkout,
    and what lets no connection pass)."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def run_perception(*arguments: object, check: bool = True, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "perception.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


def training_arguments(street: Path) -> tuple:
    """The arguments that train on a tree of street scenes."""
    return ("train", DEMO, *SMALL_OVERRIDES, f"data.root={street}")
