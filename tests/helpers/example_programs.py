"""The programs of examples/, run as their users run them, and the comparison of what they write (X1)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from perception.export.parity import BOX_TOLERANCE, PIXEL_TOLERANCE, SCORE_TOLERANCE
from perception.runtime.predictor import Predictor
from perception.types import DenseMap, Instances

EXAMPLES = Path(__file__).parents[2] / "examples"
Program = Callable[[Path, Path, list[Path]], None]
"""(model, folder to write to, images)"""


def run_command(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | (environment or {})
    )
    assert done.returncode == 0, done.stderr


def run_python(model: Path, out: Path, pictures: list[Path]) -> None:
    run_command([sys.executable, str(EXAMPLES / "bare_python/run.py"), *map(str, (model, out, *pictures))])


def run_node(model: Path, out: Path, pictures: list[Path]) -> None:
    folder = EXAMPLES / "onnxruntime_node"
    if shutil.which("node") is None or not (folder / "node_modules").is_dir():
        pytest.skip("no node, or no `npm install --ignore-scripts` in examples/onnxruntime_node")
    run_command(["node", str(folder / "run.mjs"), *map(str, (model, out, *pictures))])


def build_cpp(build: Path) -> Program:
    """Builds the example with the Python package's library and the headers of the system or ONNXRUNTIME_INCLUDE."""
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # the names that a system package would bring
        (build / name).symlink_to(library)
    options = [f"-DONNXRUNTIME_LIBRARY={build / 'libonnxruntime.so'}"]
    if include := os.environ.get("ONNXRUNTIME_INCLUDE"):
        options.append(f"-DONNXRUNTIME_INCLUDE_DIR={include}")
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    configured = subprocess.run(
        ["cmake", "-S", str(EXAMPLES / "cpp"), "-B", str(build), *options], capture_output=True, text=True, check=False
    )
    if configured.returncode:
        missing = [line for line in configured.stderr.splitlines() if "Could not find" in line]
        pytest.skip(f"C++ libraries are missing: {missing[0].strip() if missing else configured.stderr[-200:]}")
    run_command(["cmake", "--build", str(build)])

    def perceive(model: Path, out: Path, pictures: list[Path]) -> None:
        run_command([str(build / "perceive"), *map(str, (model, out, *pictures))])

    return perceive


class Differences:
    """The largest differences between what an example wrote and what the package says; and how many boxes there were.

    Every box over the threshold has its one counterpart: only one whose score is the threshold to the last digits may
    be on one side alone.
    """

    def __init__(self, model: Path, out: Path) -> None:
        self.predictor, self.out, self.boxes = Predictor(model, threads=1), out, 0
        self.largest: dict[str, float] = {}

    def compare(self, pictures: Iterable[Path]) -> Differences:
        for path in pictures:
            image = np.ascontiguousarray(cv2.imread(str(path))[:, :, ::-1])
            wanted = self.predictor(image)
            record = json.loads((self.out / f"{path.stem}.json").read_text("utf-8"))
            assert record["size"] == list(image.shape[:2])
            for name, annotation in wanted.annotations.items():
                if isinstance(annotation, Instances):
                    self._compare_boxes(name, path, annotation, record[name])
                elif isinstance(annotation, DenseMap):
                    self._compare_map(name, path, annotation)
                else:
                    assert list(record[name]) == list(self.predictor.specs[name].classes)
                    self._check_difference(
                        name, np.abs(list(record[name].values()) - annotation.values), SCORE_TOLERANCE
                    )
        return self

    def _compare_boxes(self, name: str, path: Path, expected: Instances, entries: list[dict[str, Any]]) -> None:
        spec = self.predictor.specs[name]
        scores = np.array([entry["score"] for entry in entries])
        boxes = np.array([entry["box"] for entry in entries]).reshape(-1, 4)
        labels = np.array([spec.classes.index(entry["label"]) for entry in entries], int)
        away = np.abs(expected.boxes[:, None] - boxes[None]).max(2, initial=0) / BOX_TOLERANCE
        gaps = np.abs(expected.scores[:, None] - scores[None]) / SCORE_TOLERANCE
        same = (np.maximum(away, gaps) <= 1) & (expected.labels[:, None] == labels[None])
        for sure, counts in ((expected.scores, same.sum(1)), (scores, same.sum(0))):
            assert (counts[sure > spec.score_threshold + SCORE_TOLERANCE] == 1).all(), f"{path.name}: boxes of {name}"
        self._check_difference(f"{name} boxes, px", away[same] * BOX_TOLERANCE, BOX_TOLERANCE)
        self._check_difference(f"{name} scores", gaps[same] * SCORE_TOLERANCE, SCORE_TOLERANCE)
        self.boxes += int(same.sum())

    def _compare_map(self, name: str, path: Path, expected: DenseMap) -> None:
        spec, shape = self.predictor.specs[name], expected.values.shape
        file = self.out / f"{path.stem}.{name}.bin"
        if spec.classes:
            found = np.fromfile(file, np.uint8).reshape(shape)
            self._check_difference(f"{name}, share of pixels", (found != expected.values).mean(), PIXEL_TOLERANCE)
        else:
            found = np.fromfile(file, "<f4").reshape(shape)
            assert expected.valid.all()
            self._check_difference(
                f"{name}, logarithm", np.abs(np.log(found) - np.log(expected.values)), SCORE_TOLERANCE
            )

    def _check_difference(self, key: str, values: Any, tolerance: float) -> None:
        worst = float(np.max(values, initial=0))
        assert worst <= tolerance, f"{key} differs by {worst:.3g}, tolerance {tolerance:g}"
        self.largest[key] = max(self.largest.get(key, 0.0), worst)

    def __str__(self) -> str:
        return f"{self.boxes} boxes; largest differences: " + ", ".join(f"{k} {v:.1e}" for k, v in self.largest.items())
