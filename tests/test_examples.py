"""The examples, which know only the manifest, say what `perception predict` says (X1).

The Python one always runs. Node needs `npm install` in examples/onnxruntime_node, C++ the headers of ONNX Runtime,
nlohmann/json and stb: they are skipped, visibly, where those are missing. `make test-examples` gets what it can.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from perception import cli
from perception.deploy.parity import shapes
from perception.deploy.runtime import Perceiver

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZES = ((96, 160), (61, 97), (240, 320), (500, 40))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    paths = [folder / f"p{i}.png" for i in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        image = cv2.GaussianBlur(shapes(generator, *size), (0, 0), 1.5)
        assert cv2.imwrite(str(path), image)
    return paths


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | (environment or {})
    )
    assert done.returncode == 0, done.stderr


def python(model: Path, out: Path, pictures: list[Path]) -> None:
    run([sys.executable, str(EXAMPLES / "bare_python/run.py"), *map(str, (model, out, *pictures))])


def node(model: Path, out: Path, pictures: list[Path]) -> None:
    folder = EXAMPLES / "onnxruntime_node"
    if shutil.which("node") is None or not (folder / "node_modules").is_dir():
        pytest.skip("no node, or no `npm install --ignore-scripts` in examples/onnxruntime_node")
    run(["node", str(folder / "run.mjs"), *map(str, (model, out, *pictures))])


@pytest.fixture(scope="module")
def cpp(tmp_path_factory) -> Callable:
    """Builds the example with the Python package's library and the headers of the system or ONNXRUNTIME_INCLUDE."""
    build = tmp_path_factory.mktemp("build")
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
    run(["cmake", "--build", str(build)])

    def perceive(model: Path, out: Path, pictures: list[Path]) -> None:
        run([str(build / "perceive"), *map(str, (model, out, *pictures))])

    return perceive


CPP = pytest.param("cpp", marks=pytest.mark.slow)  # it compiles


@pytest.mark.parametrize("program", ["python", "node", CPP])
def test_x1_an_example_says_what_the_package_says(program, exported_inside, pictures, tmp_path, request):
    example = request.getfixturevalue("cpp") if program == "cpp" else {"python": python, "node": node}[program]
    example(exported_inside, tmp_path / "out", pictures)
    same_as_the_package(exported_inside, tmp_path / "out", pictures)


def test_x1_the_python_example_letterboxes_as_the_package_does(exported, pictures, tmp_path):
    python(exported, tmp_path / "out", pictures)
    same_as_the_package(exported, tmp_path / "out", pictures)


def same_as_the_package(model: Path, out: Path, pictures: list[Path]) -> None:
    perceiver = Perceiver(model, threads=1)
    boxes = 0
    for path in pictures:
        image = np.ascontiguousarray(cv2.imread(str(path))[:, :, ::-1])
        wanted = perceiver(image)
        record = json.loads((out / f"{path.stem}.json").read_text("utf-8"))
        assert record["size"] == list(image.shape[:2])
        detection, spec = wanted.annotations["detection"], perceiver.specs["detection"]
        shown = detection.scores >= spec.threshold
        assert len(record["detection"]) == shown.sum()
        boxes += int(shown.sum())
        found = np.array([entry["box"] for entry in record["detection"]]).reshape(-1, 4)
        np.testing.assert_allclose(found, detection.boxes[shown], atol=1e-2)
        np.testing.assert_allclose([e["score"] for e in record["detection"]], detection.scores[shown], atol=1e-4)
        assert [e["label"] for e in record["detection"]] == [spec.classes[k] for k in detection.labels[shown]]
        labels = wanted.annotations["classification"].values
        np.testing.assert_allclose(list(record["classification"].values()), labels, atol=1e-4)
        label_map = np.fromfile(out / f"{path.stem}.segmentation.bin", np.uint8).reshape(image.shape[:2])
        assert (label_map != wanted.annotations["segmentation"].values).mean() <= 1e-4
        depth = np.fromfile(out / f"{path.stem}.depth.bin", "<f4").reshape(image.shape[:2])
        np.testing.assert_allclose(np.log(depth), np.log(wanted.annotations["depth"].values), atol=1e-4)
    assert boxes > 20


def test_x1_an_example_says_what_the_command_predict_writes(exported_inside, pictures, tmp_path):
    python(exported_inside, tmp_path / "out", pictures)
    assert (
        cli.main(["predict", str(exported_inside), str(pictures[0].parent), "--out", str(tmp_path / "predicted")]) == 0
    )
    lines = (tmp_path / "predicted/predictions.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == len(pictures)
    for line in map(json.loads, lines):
        mine = json.loads((tmp_path / "out" / Path(line["id"]).with_suffix(".json").name).read_text("utf-8"))
        assert [box["label"] for box in line["detection"]] == [box["label"] for box in mine["detection"]]
        pairs = zip(line["detection"], mine["detection"], strict=True)
        assert all(np.allclose(a["box"], b["box"], atol=1.6e-2) for a, b in pairs)  # two decimals are written


@pytest.mark.parametrize("program", ["node", CPP])
def test_a_file_that_wants_letterboxed_pictures_is_refused(program, exported, pictures, tmp_path, request):
    example = request.getfixturevalue("cpp") if program == "cpp" else node
    with pytest.raises(AssertionError, match="--preprocess inside"):
        example(exported, tmp_path / "out", pictures)
