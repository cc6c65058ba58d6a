"""The commands, as a user runs them, on made street data: train, evaluate, on two ranks, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import DEMO, run_perception, training_arguments


def _require_close(first: dict, second: dict) -> None:
    """Metrics equal but for the last bits of float32 networks; null (nothing to measure) on both sides."""
    assert first.keys() == second.keys()
    assert {key for key in first if first[key] is None} == {key for key in second if second[key] is None}
    for key, value in second.items():
        assert value is None or first[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key


def test_a_run_holds_what_the_contract_promises(demo_run):
    metrics = json.loads((demo_run / "metrics.json").read_text())
    for key in ("detection/ap50", "segmentation/miou", "depth/abs_rel", "classification/top1"):
        assert isinstance(metrics[key], float)
    assert (demo_run / "report.html").stat().st_size > 10_000
    assert {"recipe.yaml", "metrics.jsonl"} <= {path.name for path in demo_run.iterdir()}
    assert (demo_run / "checkpoints" / "best" / "manifest.json").is_file()


def test_evaluation_does_not_depend_on_the_batch_size_and_takes_other_data(demo_run, demo_street, tmp_path):
    mine = json.loads((demo_run / "metrics.json").read_text())
    other = tmp_path / "other.yaml"
    other.write_text(
        f"root: {demo_street}\nvalidation:\n  - name: s\n    labels:\n"
        "      - {format: cityscapes, root: ., split: val, ignore: rest}\n"
    )
    run_perception("evaluate", demo_run, "--out", tmp_path / "one", "--batch-size", 1, "data.workers=0")
    again = json.loads((tmp_path / "one" / "metrics.json").read_text())
    _require_close(again, mine)
    run_perception("evaluate", demo_run, "--data", other, "--tasks", "segmentation", "--out", tmp_path / "two")
    alone = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert alone["segmentation/miou"] == pytest.approx(mine["segmentation/miou"], abs=1e-3)
    assert not [key for key in alone if key.startswith(("depth", "detection"))]


def test_two_ranks_train_and_evaluate_the_whole_network(demo_street, tmp_path):
    """A rank's batch may lack a task, images do not divide evenly: nothing hangs, one set of numbers comes out."""
    tools = Path(__file__).parents[2] / "tools"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folder = tmp_path / "run"
    options = ("train={steps: 3, batch_size: 2, threads: 1}", "data.workers=0", "--out", str(folder))
    train = [*torchrun, str(tools / "train.py"), *map(str, training_arguments(demo_street)[1:]), *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(train, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "metrics.json").read_text())
    run_perception("evaluate", folder, "--out", tmp_path / "alone", "data.workers=0")
    alone = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    _require_close(alone, metrics)


def test_errors_name_the_mend(demo_run, tmp_path):
    done = run_perception("train", check=False)
    assert done.returncode == 2
    assert "configs/street.yaml" in done.stderr
    done = run_perception("train", DEMO, "data.root=/nowhere", "--out", tmp_path / "x", check=False)
    assert done.returncode == 2
    assert "/nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_perception("predict", demo_run, tmp_path / "absent.jpg", check=False)
    assert done.returncode != 0
    assert "absent.jpg" in done.stderr
    done = run_perception("evaluate", tmp_path / "no_run", check=False)
    assert done.returncode == 2
    assert "no_run" in done.stderr


def test_help_is_instant():
    start = time.perf_counter()
    run_perception("--help")
    assert time.perf_counter() - start < 1.5
    code = "import sys, perception, perception.cli; print([m for m in ('torch', 'cv2', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
