"""The commands, as a user runs them, on made street data: train, kill, resume, evaluate, predict, export."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from perception import exporting
from perception.data.street import write
from perception.types import ConfigError

DEMO = Path(__file__).parents[1] / "perception" / "demo.yaml"
SMALL = (
    "model.backbone={name: test_efficientnet, weights: none}",
    "data.size=[64,128]",
    "train={steps: 20, batch_size: 4, warmup_steps: 4, checkpoint_every: 10, threads: 1, tensorboard: false}",
)


def perception(*arguments: object, check: bool = True, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "perception.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "street"
    write(folder, 24, seed=3, size=(128, 256), validation=0.25)
    return folder


@pytest.fixture(scope="module")
def recipe(street) -> tuple:
    return ("train", DEMO, *SMALL, f"data.root={street}")


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> Path:
    """A run of 20 steps that nothing disturbed, without loader workers."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    perception(*recipe, "data.workers=0", "--out", folder)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_t1_twenty_steps_equal_ten_a_kill_and_ten(workers, run, recipe, tmp_path):
    """Bit for bit: weights, optimiser, moving average, and the losses in the log."""
    broken = tmp_path / "broken"
    command = [
        sys.executable,
        "-m",
        "perception.cli",
        *map(str, recipe),
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
    perception("train", "--resume", broken)
    ends = [folder / "checkpoints" / "last" for folder in (run, broken)]
    weights = [load_file(end / "model.safetensors") for end in ends]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    states = [torch.load(end / "train_state.pt", weights_only=True) for end in ends]
    _require_equal(states[0], states[1], "state")
    logs = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (run, broken)]
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


def _require_close(first: dict, second: dict) -> None:
    """Metrics equal but for the last bits of float32 networks; null (nothing to measure) on both sides."""
    assert first.keys() == second.keys()
    assert {key for key in first if first[key] is None} == {key for key in second if second[key] is None}
    for key, value in second.items():
        assert value is None or first[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key


def test_t5_a_resume_with_another_recipe_shows_the_difference(run):
    done = perception("train", "--resume", run, "train.lr=0.5", check=False)
    assert done.returncode == 2
    assert "+  lr: 0.5" in done.stderr


def test_a_run_holds_what_the_contract_promises(run):
    metrics = json.loads((run / "metrics.json").read_text())
    for key in ("detection/ap50", "segmentation/miou", "depth/abs_rel", "classification/top1"):
        assert isinstance(metrics[key], float)
    assert (run / "report.html").stat().st_size > 10_000
    assert {"recipe.yaml", "metrics.jsonl"} <= {path.name for path in run.iterdir()}
    assert (run / "checkpoints" / "best" / "manifest.json").is_file()


def test_evaluation_does_not_depend_on_the_batch_size_and_takes_other_data(run, street, tmp_path):
    mine = json.loads((run / "metrics.json").read_text())
    other = tmp_path / "other.yaml"
    other.write_text(
        f"root: {street}\nvalidation:\n  - name: s\n    labels:\n"
        "      - {format: cityscapes, root: ., split: val, ignore: rest}\n"
    )
    perception("evaluate", run, "--out", tmp_path / "one", "--batch-size", 1, "data.workers=0")
    again = json.loads((tmp_path / "one" / "metrics.json").read_text())
    _require_close(again, mine)
    perception("evaluate", run, "--data", other, "--tasks", "segmentation", "--out", tmp_path / "two")
    alone = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert alone["segmentation/miou"] == pytest.approx(mine["segmentation/miou"], abs=1e-3)
    assert not [key for key in alone if key.startswith(("depth", "detection"))]


def test_the_exported_file_predicts_what_torch_predicts_without_torch(run, street, tmp_path):
    onnx = tmp_path / "model.onnx"
    perception("export", run, "--out", onnx)
    pictures = street / "leftImg8bit" / "val" / "street"
    perception("predict", run, pictures, "--out", tmp_path / "torch", "--maps")
    blocker = tmp_path / "blocked"
    blocker.mkdir()
    for name in ("torch", "torchvision", "timm", "pydantic", "rich", "matplotlib", "albumentations", "onnx"):
        (blocker / f"{name}.py").write_text("raise ImportError('not on the vehicle')")
    without = {**os.environ, "PYTHONPATH": str(blocker)}
    perception("predict", onnx, pictures, "--out", tmp_path / "onnx", "--maps", env=without)
    records = [
        [json.loads(line) for line in (tmp_path / kind / "predictions.jsonl").read_text().splitlines()]
        for kind in ("torch", "onnx")
    ]
    assert len(records[0]) == len(records[1]) == 6
    for ours, theirs in zip(*records, strict=True):
        assert ours["classification"]["label"] == theirs["classification"]["label"]
        assert len(ours["detection"]) == len(theirs["detection"])
        for box, twin in zip(ours["detection"], theirs["detection"], strict=True):
            assert box["label"] == twin["label"]
            np.testing.assert_allclose(box["box"], twin["box"], atol=2e-2)
            assert box["distance"] == pytest.approx(twin["distance"], rel=1e-2)
    for path in sorted((tmp_path / "torch" / "maps").rglob("*.png")):
        twin = tmp_path / "onnx" / path.relative_to(tmp_path / "torch")
        first, second = (cv2.imread(str(p), cv2.IMREAD_UNCHANGED).astype(int) for p in (path, twin))
        assert np.mean(np.abs(first - second) > 1) < 1e-3


def test_s5_no_command_attempts_a_connection(run, street, tmp_path):
    """With every internet socket refused and recorded. (Worker processes talk through local sockets.)"""
    log = tmp_path / "connections.txt"
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "connect = socket.socket.connect\n"
        "def refuse(self, address):\n"
        "    if self.family == socket.AF_UNIX:\n"
        "        return connect(self, address)\n"
        f"    open({str(log)!r}, 'a').write(f'{{address}}\\n')\n"
        "    raise OSError('no network')\n"
        "socket.socket.connect = socket.socket.connect_ex = refuse\n"
        "def resolve(*address, **options):\n"
        f"    open({str(log)!r}, 'a').write(f'{{address}}\\n')\n"
        "    raise OSError('no network')\n"
        "socket.getaddrinfo = resolve\n"
    )
    alone = {**os.environ, "PYTHONPATH": str(tmp_path)}
    short = "train={steps: 2, batch_size: 2, threads: 1}"
    perception("train", DEMO, *SMALL[:2], short, f"data.root={street}", "--out", tmp_path / "run", env=alone)
    perception("evaluate", tmp_path / "run", env=alone)
    perception("predict", run, street / "leftImg8bit" / "val" / "street", "--out", tmp_path / "out", env=alone)
    assert not log.exists(), log.read_text()


def test_two_ranks_train_and_evaluate_the_whole_network(recipe, tmp_path):
    """A rank's batch may lack a task, pictures do not divide evenly: nothing hangs, one set of numbers comes out."""
    tools = Path(__file__).parents[1] / "tools"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folder = tmp_path / "run"
    options = ("train={steps: 3, batch_size: 2, threads: 1}", "data.workers=0", "--out", str(folder))
    train = [*torchrun, str(tools / "train.py"), *map(str, recipe[1:]), *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(train, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "metrics.json").read_text())
    perception("evaluate", folder, "--out", tmp_path / "alone", "data.workers=0")
    alone = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    _require_close(alone, metrics)


def test_errors_name_the_mend(run, tmp_path):
    done = perception("train", check=False)
    assert done.returncode == 2
    assert "configs/street.yaml" in done.stderr
    done = perception("train", DEMO, "data.root=/nowhere", "--out", tmp_path / "x", check=False)
    assert done.returncode == 2
    assert "/nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    done = perception("predict", run, tmp_path / "absent.jpg", check=False)
    assert done.returncode != 0
    assert "absent.jpg" in done.stderr
    done = perception("evaluate", tmp_path / "no_run", check=False)
    assert done.returncode == 2
    assert "no_run" in done.stderr


def test_help_is_instant():
    start = time.perf_counter()
    perception("--help")
    assert time.perf_counter() - start < 1.5
    code = "import sys, perception, perception.cli; print([m for m in ('torch', 'cv2', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Looked(Exception):
    """At the picture of this shape."""


def test_x2_a_file_of_a_size_of_its_own_is_judged_at_that_size(run, monkeypatch, tmp_path):
    def look(images):
        raise Looked(images.shape)

    asked = {}
    monkeypatch.setattr(exporting, "write", lambda model, out, **options: asked.update(options))
    exporting.export(run, tmp_path / "x.onnx", precision="int8", size=(32, 64), calibration=1, pictures=1)
    assert asked["reduction"].pictures[0].shape == (1, 3, 32, 64)
    with pytest.raises(Looked, match=r"\(1, 3, 32, 64\)"):
        asked["reduction"].evaluate(look)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "model.json"}, r"ends in \.onnx"),
        ({"out": "runs.onnx"}, r"ends in \.onnx"),
        ({"budget": -1}, "0 or more"),
    ],
)
def test_what_cannot_be_exported_is_told_before_the_network_is_opened(tmp_path, options, words):
    (tmp_path / "runs.onnx").mkdir()
    options = {**options, "out": tmp_path / options.get("out", "model.onnx")}
    with pytest.raises(ConfigError, match=words):
        exporting.export(tmp_path / "no run", **options)
