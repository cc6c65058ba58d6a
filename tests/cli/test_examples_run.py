"""The examples on images of real roads with a trained network (X1): `make test-examples RUN=runs/demo`.

Skipped, visibly, without a run folder in PERCEPTION_TEST_RUN and real images in PERCEPTION_TEST_DATA.
"""

import json
import os
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from example_programs import Differences, build_cpp, run_node, run_python

from perception import cli
from perception.export import from_run
from perception.runtime.predictor import Predictor
from perception.types import DenseMap

RUN, DATA = os.environ.get("PERCEPTION_TEST_RUN", ""), Path(os.environ.get("PERCEPTION_TEST_DATA", ""))
FRAMES = 25
"""Of the drive on a highway, and as many of CamVid's towns."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not RUN or not (DATA / "video").is_dir(),
        reason="no trained run in PERCEPTION_TEST_RUN, or no real images in PERCEPTION_TEST_DATA",
    ),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("frames")
    video = cv2.VideoCapture(str(DATA / "video" / "solidWhiteRight.mp4"))
    drive = [video.read()[1] for _ in range(8 * FRAMES)][::8]
    towns = sorted((DATA / "camvid" / "images" / "val").glob("*.*"))
    found = {f"highway{i:02d}": image for i, image in enumerate(drive)}
    found |= {path.stem: cv2.imread(str(path)) for path in islice(towns, 0, None, max(1, len(towns) // FRAMES))}
    paths = [folder / f"{name}.png" for name in list(found)[: 2 * FRAMES]]
    for path in paths:
        assert cv2.imwrite(str(path), found[path.stem])
    assert len(paths) == 2 * FRAMES
    return paths


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    kinds = ("embedded", "external")
    for kind in kinds:
        from_run.export(Path(RUN), folder / f"{kind}.onnx", preprocess=kind)
    return {kind: folder / f"{kind}.onnx" for kind in kinds}


@pytest.mark.fault("X1")
@pytest.mark.parametrize(
    ("program", "preprocess"),
    [("python", "embedded"), ("python", "external"), ("node", "embedded"), ("cpp", "embedded")],
)
def test_an_example_says_what_the_package_says(program, preprocess, models, pictures, tmp_path, capsys):
    example = build_cpp(tmp_path) if program == "cpp" else {"python": run_python, "node": run_node}[program]
    example(models[preprocess], tmp_path / "out", pictures)
    found = Differences(models[preprocess], tmp_path / "out").compare(pictures)
    with capsys.disabled():
        print(f"\n{program}, letterbox {preprocess}, {len(pictures)} images: {found}")
    assert found.boxes > 0


@pytest.mark.fault("X1")
@pytest.mark.parametrize("preprocess", ["embedded", "external"])
def test_the_command_predict_writes_what_the_package_says(preprocess, models, pictures, tmp_path):
    """Rounded as the files are: boxes to 0.01 px, scores to 1e-4, depth to the step that its record names."""
    out = tmp_path / "out"
    arguments = ["predict", str(models[preprocess]), str(pictures[0].parent), "--out", str(out), "--threads", "1"]
    assert cli.main([*arguments, "--save", "jsonl", "--maps"]) == 0
    perceiver = Predictor(models[preprocess], threads=1)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == len(pictures)
    for line in lines:
        path = pictures[0].parent / line["id"]
        wanted = perceiver(np.ascontiguousarray(cv2.imread(str(path))[:, :, ::-1]))
        record = wanted.to_dict()
        for name, annotation in wanted.annotations.items():
            if isinstance(annotation, DenseMap):
                written = cv2.imread(str(out / line[name]["file"]), cv2.IMREAD_UNCHANGED)
                step = line[name].get("scale", 1)
                assert np.abs(written * step - annotation.values).max() <= (0 if step == 1 else 0.51 * step)
            else:
                assert line[name] == record[name]
