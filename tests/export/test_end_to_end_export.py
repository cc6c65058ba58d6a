"""The file that leaves for the vehicle predicts what the run predicts, and says early what cannot be written."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest
from command_line import python_path, run_perception

from perception.export import from_run
from perception.types import ConfigError


def test_the_exported_file_predicts_what_torch_predicts_without_torch(demo_run, demo_street, tmp_path):
    onnx = tmp_path / "model.onnx"
    run_perception("export", demo_run, "--out", onnx)
    pictures = demo_street / "leftImg8bit" / "val" / "street"
    run_perception("predict", demo_run, pictures, "--out", tmp_path / "torch", "--maps")
    blocker = tmp_path / "blocked"
    blocker.mkdir()
    for name in ("torch", "torchvision", "timm", "pydantic", "rich", "matplotlib", "albumentations", "onnx"):
        (blocker / f"{name}.py").write_text("raise ImportError('not on the vehicle')")
    without = {**os.environ, "PYTHONPATH": python_path(blocker)}
    run_perception("predict", onnx, pictures, "--out", tmp_path / "onnx", "--maps", env=without)
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


class Looked(Exception):
    """At the image of this shape."""


@pytest.mark.fault("X2")
def test_a_file_of_a_size_of_its_own_is_judged_at_that_size(demo_run, monkeypatch, tmp_path):
    def look(images):
        raise Looked(images.shape)

    asked = {}
    monkeypatch.setattr(from_run, "write", lambda model, out, **options: asked.update(options))
    from_run.export(
        demo_run, tmp_path / "x.onnx", precision="int8", size=(32, 64), calibration_images=1, validation_images=1
    )
    assert asked["reduction"].calibration_batches[0].shape == (1, 3, 32, 64)
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
        from_run.export(tmp_path / "no run", **options)
