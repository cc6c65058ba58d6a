"""The error that a depth map expects, from the network's output to files: restored, sanitised, told and drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from perception.ops.draw import draw_annotations
from perception.ops.image import compute_letterbox
from perception.ops.postprocess import build_prediction, restore_annotations, to_json
from perception.runtime.predictor import sanitize_outputs
from perception.runtime.result import Result
from perception.types import Camera, DenseMap, Prediction, TaskSpec
from perception.video.predict import PredictOptions, predict
from perception.video.writers.maps import ERROR_SCALE, map_scale

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
    frame = compute_letterbox(SOURCE, INPUT)
    for focal in (50.0, 100.0):
        found = restore_annotations(
            outputs(), SPECS, frame, Camera(focal / frame.scale[0], focal / frame.scale[0], 60, 30)
        )["depth"]
        assert isinstance(found, DenseMap)
        assert found.relative_error is not None
        assert found.values.shape == found.relative_error.shape == SOURCE
        assert found.relative_error.dtype == np.float32
        assert found.values[30, 20] == pytest.approx(10 * focal / 50)
        assert found.relative_error[30, 20] == pytest.approx(0.04)
        assert found.relative_error[30, 100] == pytest.approx(0.2)


@pytest.mark.fault("M4")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_a_pixel_without_a_sound_error_is_not_valid(bad):
    spoilt = outputs()
    spoilt["depth.error"][:4, :4] = bad
    before = {name: value.copy() for name, value in spoilt.items()}
    sound, flags = sanitize_outputs(spoilt, SPECS)
    assert flags == ["depth: 16 of 2048 pixels are not positive and finite"]
    found = restore_annotations(sound, SPECS, compute_letterbox(INPUT, INPUT), None)["depth"]
    assert isinstance(found, DenseMap)
    assert found.relative_error is not None
    assert not found.valid[:4, :4].any()
    assert found.valid.sum() == 2048 - 16
    assert np.isfinite(found.relative_error).all()
    assert all(np.array_equal(spoilt[name], before[name], equal_nan=True) for name in before), (
        "inputs stay as they were"
    )


def test_a_network_that_tells_no_error_has_none():
    spec = TaskSpec("depth", "dense", ("depth",), unit="m")
    found = restore_annotations(outputs(), {"depth": spec}, compute_letterbox(INPUT, INPUT), None)["depth"]
    assert isinstance(found, DenseMap)
    assert found.relative_error is None
    prediction = Prediction({"depth": found}, INPUT)
    assert Result(prediction, {"depth": spec}, np.zeros((*INPUT, 3), np.uint8)).depth_error is None


def test_boxes_and_results_tell_metres():
    camera = Camera(50, 50, 32, 16)
    prediction = build_prediction(outputs(), SPECS, compute_letterbox(INPUT, INPUT), camera)
    (box,) = to_json(prediction, SPECS)["detection"]
    assert box["distance"] == pytest.approx(10)
    assert box["distance_error"] == pytest.approx(0.4)
    result = Result(prediction, SPECS, np.zeros((*INPUT, 3), np.uint8), camera)
    assert result.depth_error is not None
    assert result.depth_error[10, 50] == pytest.approx(8)
    assert draw_annotations(
        np.zeros((*INPUT, 3), np.uint8), {"depth": prediction.annotations["depth"]}, SPECS
    ).shape == (*INPUT, 3)


def test_maps_are_saved_with_their_error(tmp_path):
    class Network:
        specs, size, size_divisor = SPECS, INPUT, 32

        def letterbox_size(self, size):
            return size or self.size

        def run(self, images):
            return {name: np.stack([value] * len(images)) for name, value in outputs().items()}

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((*INPUT, 3), np.uint8))
    options = PredictOptions(camera=Camera(50, 50, 32, 16), save=("jsonl", "maps"))
    predict(Network(), tmp_path / "a.png", tmp_path / "out", options, quiet=True)
    depth, error = (cv2.imread(str(tmp_path / "out/maps" / name), -1) for name in ("a.depth.png", "a.depth_error.png"))
    assert depth is not None
    assert error is not None
    assert depth[10, 50] * map_scale(SPECS["depth"]) == pytest.approx(40)
    assert error[10, 50] * ERROR_SCALE == pytest.approx(0.2)
    text = (tmp_path / "out/predictions.jsonl").read_text()
    assert '"error": {"file": "maps/a.depth_error.png", "scale": 0.0001}' in text
