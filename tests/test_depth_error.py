"""The error that a depth map expects, from the network's output to files: restored, sanitised, told and drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from perception.ops.draw import draw
from perception.ops.image import letterbox_frame
from perception.ops.restore import assemble, restore, to_json
from perception.runtime.predictor import sanitise
from perception.runtime.result import Result
from perception.types import Camera, DenseMap, Prediction, TaskSpec
from perception.video.predict import Options, predict
from perception.video.writers.maps import ERROR_SCALE, step

SPECS = {
    "detection": TaskSpec("detection", "instances", ("boxes", "scores", "labels"), ("car",)),
    "depth": TaskSpec("depth", "dense", ("depth", "error"), unit="m", limits=(0.5, 80.0), canonical_focal=50.0),
}
INPUT, SOURCE = (32, 64), (60, 120)


def outputs():
    """One box over the left half, which is 10 m away +- 4 %; the right half is 40 m away +- 20 %."""
    depth, error = np.full(INPUT, 10.0, np.float32), np.full(INPUT, 0.04, np.float32)
    depth[:, 32:], error[:, 32:] = 40.0, 0.2
    return {
        "detection.boxes": np.array([[2, 2, 28, 28], [0, 0, 0, 0]], np.float32),
        "detection.scores": np.array([0.9, 0], np.float32),
        "detection.labels": np.array([0, 0]),
        "depth.depth": depth,
        "depth.error": error,
    }


def test_the_error_is_a_share_so_no_lens_changes_it():
    frame = letterbox_frame(SOURCE, INPUT)
    for focal in (50.0, 100.0):
        found = restore(outputs(), SPECS, frame, Camera(focal / frame.scale[0], focal / frame.scale[0], 60, 30))[
            "depth"
        ]
        assert isinstance(found, DenseMap)
        assert found.error is not None
        assert found.values.shape == found.error.shape == SOURCE
        assert found.error.dtype == np.float32
        assert found.values[30, 20] == pytest.approx(10 * focal / 50)
        assert found.error[30, 20] == pytest.approx(0.04)
        assert found.error[30, 100] == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_M4_a_pixel_without_a_sound_error_is_not_valid(bad):
    spoilt = outputs()
    spoilt["depth.error"][:4, :4] = bad
    before = {name: value.copy() for name, value in spoilt.items()}
    sound, flags = sanitise(spoilt, SPECS)
    assert flags == ["depth: 16 of 2048 pixels are not positive and finite"]
    found = restore(sound, SPECS, letterbox_frame(INPUT, INPUT), None)["depth"]
    assert isinstance(found, DenseMap)
    assert found.error is not None
    assert not found.valid[:4, :4].any()
    assert found.valid.sum() == 2048 - 16
    assert np.isfinite(found.error).all()
    assert all(np.array_equal(spoilt[name], before[name], equal_nan=True) for name in before), (
        "inputs stay as they were"
    )


def test_a_network_that_tells_no_error_has_none():
    spec = TaskSpec("depth", "dense", ("depth",), unit="m")
    found = restore(outputs(), {"depth": spec}, letterbox_frame(INPUT, INPUT), None)["depth"]
    assert isinstance(found, DenseMap)
    assert found.error is None
    prediction = Prediction({"depth": found}, INPUT)
    assert Result(prediction, {"depth": spec}, np.zeros((*INPUT, 3), np.uint8)).depth_error is None


def test_boxes_and_results_tell_metres():
    camera = Camera(50, 50, 32, 16)
    prediction = assemble(outputs(), SPECS, letterbox_frame(INPUT, INPUT), camera)
    (box,) = to_json(prediction, SPECS)["detection"]
    assert box["distance"] == pytest.approx(10)
    assert box["distance_error"] == pytest.approx(0.4)
    result = Result(prediction, SPECS, np.zeros((*INPUT, 3), np.uint8), camera)
    assert result.depth_error is not None
    assert result.depth_error[10, 50] == pytest.approx(8)
    assert draw(np.zeros((*INPUT, 3), np.uint8), {"depth": prediction.annotations["depth"]}, SPECS).shape == (*INPUT, 3)


def test_maps_are_saved_with_their_error(tmp_path):
    class Network:
        specs, size, multiple = SPECS, INPUT, 32

        def placed(self, size):
            return size or self.size

        def run(self, images):
            return {name: np.stack([value] * len(images)) for name, value in outputs().items()}

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((*INPUT, 3), np.uint8))
    options = Options(camera=Camera(50, 50, 32, 16), save=("jsonl", "maps"))
    predict(Network(), tmp_path / "a.png", tmp_path / "out", options, quiet=True)
    depth, error = (cv2.imread(str(tmp_path / "out/maps" / name), -1) for name in ("a.depth.png", "a.depth_error.png"))
    assert depth is not None
    assert error is not None
    assert depth[10, 50] * step(SPECS["depth"]) == pytest.approx(40)
    assert error[10, 50] * ERROR_SCALE == pytest.approx(0.2)
    text = (tmp_path / "out/predictions.jsonl").read_text()
    assert '"error": {"file": "maps/a.depth_error.png", "scale": 0.0001}' in text
