"""The examples, which know only the manifest, say what `perception predict` says (X1).

The Python one always runs. Node needs `npm install` in examples/onnxruntime_node, C++ the headers of ONNX Runtime,
nlohmann/json and stb: they are skipped, visibly, where those are missing. `make test-examples` gets what it can.
"""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from example_programs import Differences, build_cpp, run_node, run_python

from perception import cli
from perception.export.parity import draw_rectangles

SIZES = ((96, 160), (61, 97), (240, 320), (500, 40))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    paths = [folder / f"p{i}.png" for i in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        image = cv2.GaussianBlur(draw_rectangles(generator, *size), (0, 0), 1.5)
        assert cv2.imwrite(str(path), image)
    return paths


@pytest.fixture(scope="module")
def cpp(tmp_path_factory) -> Callable:
    return build_cpp(tmp_path_factory.mktemp("build"))


CPP = pytest.param("cpp", marks=pytest.mark.slow)  # it compiles


@pytest.mark.fault("X1")
@pytest.mark.parametrize("program", ["python", "node", CPP])
def test_an_example_says_what_the_package_says(program, exported_with_preprocessing, pictures, tmp_path, request):
    example = request.getfixturevalue("cpp") if program == "cpp" else {"python": run_python, "node": run_node}[program]
    example(exported_with_preprocessing, tmp_path / "out", pictures)
    same_as_the_package(exported_with_preprocessing, tmp_path / "out", pictures)


@pytest.mark.fault("X1")
def test_the_python_example_letterboxes_as_the_package_does(exported, pictures, tmp_path):
    run_python(exported, tmp_path / "out", pictures)
    same_as_the_package(exported, tmp_path / "out", pictures)


def same_as_the_package(model: Path, out: Path, pictures: list[Path]) -> None:
    found = Differences(model, out).compare(pictures)
    assert found.boxes > 20
    assert len(found.largest) == 5


@pytest.mark.fault("X1")
def test_an_example_says_what_the_command_predict_writes(exported_with_preprocessing, pictures, tmp_path):
    run_python(exported_with_preprocessing, tmp_path / "out", pictures)
    assert (
        cli.main(
            ["predict", str(exported_with_preprocessing), str(pictures[0].parent), "--out", str(tmp_path / "predicted")]
        )
        == 0
    )
    lines = (tmp_path / "predicted/predictions.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == len(pictures)
    for line in map(json.loads, lines):
        mine = json.loads((tmp_path / "out" / Path(line["id"]).with_suffix(".json").name).read_text("utf-8"))
        assert [box["label"] for box in line["detection"]] == [box["label"] for box in mine["detection"]]
        pairs = zip(line["detection"], mine["detection"], strict=True)
        assert all(np.allclose(a["box"], b["box"], atol=1.6e-2) for a, b in pairs)  # two decimals are written


@pytest.mark.parametrize("program", ["node", CPP])
def test_a_file_that_wants_letterboxed_images_is_refused(program, exported, pictures, tmp_path, request):
    example = request.getfixturevalue("cpp") if program == "cpp" else run_node
    with pytest.raises(AssertionError, match="--preprocess embedded"):
        example(exported, tmp_path / "out", pictures)
