"""M1-M3: images no one should act on, frames unlike what is known, tasks that disagree, results that are late."""

import dataclasses
import json
import os
import time
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from street_samples import render_sample

from perception.files.images import read_image
from perception.runtime.sources import Frame
from perception.synthetic.render import render_image
from perception.synthetic.street_image import OBJECT_CLASSES, SCENE_CLASSES
from perception.synthetic.video import render_frames
from perception.types import DenseMap, Instances, PerceptionError, Prediction, TaskSpec
from perception.video.consistency import class_groups, find_contradictions
from perception.video.image_monitor import MIN_FAULT_FRAMES, ImageMonitor, find_faults, to_small_gray
from perception.video.latency_monitor import LatencyMonitor
from perception.video.ood import OOD_THRESHOLD, FeatureCollector, OodMonitor, fit_features, load_ood_model
from perception.video.ood_features import compute_features, feature_names
from perception.video.stage_times import DurationHistogram, Timings

DATA = Path(os.environ.get("PERCEPTION_TEST_DATA", ""))
REAL = pytest.mark.skipif(not (DATA / "video").is_dir(), reason="PERCEPTION_TEST_DATA is not set")
NOTHING = Prediction({}, (96, 160))


def textured(seed: int = 0, size: tuple[int, int] = (180, 320)) -> np.ndarray:
    """Something to see everywhere."""
    generator = np.random.default_rng(seed)
    return generator.integers(40, 215, (*size, 3), np.uint8)


def covered(image: np.ndarray, side: str, value: int | None) -> np.ndarray:
    """Half of it hidden by one color, or smeared (None)."""
    height, width = image.shape[:2]
    half = {
        "left": np.s_[:, : width // 2],
        "right": np.s_[:, width // 2 :],
        "top": np.s_[: height // 2],
        "bottom": np.s_[height // 2 :],
    }[side]
    changed = image.copy()
    changed[half] = cv2.GaussianBlur(image, (0, 0), width / 25)[half] if value is None else value
    return changed


def blurred(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), image.shape[1] / 150)


def shaken(image: np.ndarray) -> np.ndarray:
    return cv2.blur(image, (max(3, image.shape[1] // 30), 1))


def flags_of(images: list[np.ndarray]) -> list[tuple[str, ...]]:
    monitor = ImageMonitor()
    return [monitor(Frame(image, i / 25), NOTHING).flags for i, image in enumerate(images)]


BAD = {
    "black": lambda image: image // 32,
    "white": lambda image: 255 - image // 32,
    "blank": lambda image: np.full_like(image, 120),
    "blurred": blurred,
    "covered": lambda image: covered(image, "left", 0),
}


@pytest.mark.fault("M1")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_flagged_within_its_patience_and_a_good_one_ends_it(name):
    images = [textured(i) for i in range(3)] + [BAD[name](textured(i)) for i in range(3, 12)] + [textured(12)]
    found = flags_of(images)
    first = next(i for i, flags in enumerate(found) if flags)
    assert first == 3 + MIN_FAULT_FRAMES[name] - 1
    assert all(f"image: {name}" in flags for flags in found[first:-1])
    assert found[first] == (f"image: {name}",)
    assert found[-1] == ()


@pytest.mark.fault("M1")
def test_a_frozen_image_is_flagged_and_one_with_noise_is_not():
    still = textured()
    found = flags_of([textured(1), *[still] * 8])
    assert found[: MIN_FAULT_FRAMES["frozen"] + 1] == [()] * (MIN_FAULT_FRAMES["frozen"] + 1)
    assert found[-1] == ("image: frozen",)
    generator = np.random.default_rng(0)
    noisy = [np.clip(still + generator.normal(0, 1, still.shape), 0, 255).astype(np.uint8) for _ in range(12)]
    assert flags_of(noisy) == [()] * 12


@pytest.mark.fault("M1")
def test_what_is_flagged_is_not_valid_and_an_image_on_its_own_is_flagged_at_once():
    found = ImageMonitor()(Frame(np.zeros((96, 160, 3), np.uint8)), NOTHING)
    assert (found.valid, found.flags) == (False, ("image: black",))
    good = ImageMonitor()(Frame(textured()), NOTHING)
    assert good is NOTHING


@pytest.mark.fault("M1")
def test_a_new_size_begins_anew():
    monitor, still = ImageMonitor(), textured()
    for i in range(4):
        monitor(Frame(still, i / 25), NOTHING)
    assert monitor(Frame(textured(0, (120, 160)), 0.2), NOTHING).valid


@cache
def clean(kind: str) -> list[np.ndarray]:
    """Images with nothing wrong: made streets of every weather and time of day, or real ones."""
    if kind == "made":
        return [render_image(5, index, (256, 512)).image for index in range(150)]
    if kind in SCENE_CLASSES:
        return [picture.image for picture in render_frames(3, 10, (256, 512), scene_class=kind)]
    if kind == "highway":
        video = cv2.VideoCapture(str(DATA / "video" / "solidWhiteRight.mp4"))
        return [np.ascontiguousarray(video.read()[1][:, :, ::-1]) for _ in range(120)][::3]
    folder = {"carla": DATA / "carla", "camvid": DATA / "camvid" / "images"}[kind]
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png"))
    return [read_image(p) for p in paths[:: max(1, len(paths) // 40)]]


VIDEOS = ("highway", *SCENE_CLASSES)


@pytest.mark.fault("M1")
@pytest.mark.parametrize(
    "kind", ["made", *SCENE_CLASSES, *(pytest.param(kind, marks=REAL) for kind in ("highway", "carla", "camvid"))]
)
def test_no_false_alarm_on_clean_images_and_every_bad_one_is_found(kind):
    images = clean(kind)
    assert [find_faults(to_small_gray(image)) for image in images] == [[]] * len(images)
    if kind in VIDEOS:
        assert flags_of(images) == [()] * len(images)
    for image in images[::15]:
        assert "blurred" in find_faults(to_small_gray(blurred(image)))
        assert "blurred" in find_faults(to_small_gray(shaken(image)))
        for side in ("left", "right", "top", "bottom"):
            for value in (0, 120):
                assert "covered" in find_faults(to_small_gray(covered(image, side, value))), (side, value)
        assert "covered" in find_faults(to_small_gray(covered(image, "bottom", None)))


STREET = {
    "detection": TaskSpec("detection", "instances", ("boxes", "scores", "labels"), OBJECT_CLASSES),
    "segmentation": TaskSpec("segmentation", "dense", ("mask",), tuple(f"id {k}" for k in range(34))),
    "depth": TaskSpec("depth", "dense", ("depth",), (), "m", (0.5, 200.0)),
}


@cache
def truth(index: int) -> tuple[np.ndarray, Prediction, dict[str, TaskSpec]]:
    """A made street whose tasks agree: the segmentation mask shows each object's class where it is, 'other'
    elsewhere."""
    stored, sample = render_sample(index)
    boxes, owners, depth = (sample.annotations[name] for name in ("detection", "owners", "depth"))
    sides = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).min(1, initial=99)
    keep = np.flatnonzero(~boxes.ignore & (sides >= 6))
    label_map = np.full(owners.values.shape, len(OBJECT_CLASSES), np.uint8)
    for row in keep:
        label_map[owners.values == row + 1] = boxes.labels[row]
    specs = {
        "detection": STREET["detection"],
        "segmentation": TaskSpec("segmentation", "dense", ("mask",), (*OBJECT_CLASSES, "other")),
        "depth": STREET["depth"],
    }
    found = Instances(boxes.boxes[keep], boxes.labels[keep], np.full(len(keep), 0.8, np.float32))
    parts = {"detection": found, "segmentation": DenseMap(label_map, np.ones(label_map.shape, bool)), "depth": depth}
    return np.asarray(stored._decoded), Prediction(parts, label_map.shape), specs


def disagreement(prediction: Prediction, specs) -> float:
    found = find_contradictions(prediction, specs)
    return (found.unsupported + found.depth_jumps) / max(1, found.num_boxes) + found.unboxed


@pytest.mark.fault("M2")
def test_tasks_that_disagree_score_higher_than_tasks_that_agree():
    """The truth agrees with itself; boxes moved elsewhere, boxes left out and a mirrored segmentation mask do not."""
    clean, wrong = [], []
    for index in range(8):
        _, prediction, specs = truth(index)
        found = prediction.annotations["detection"]
        if not len(found.boxes):
            continue
        clean.append(disagreement(prediction, specs))
        labels = prediction.annotations["segmentation"]
        moved = dataclasses.replace(found, boxes=found.boxes - np.array([0, 60, 0, 60], np.float32))
        none = Instances(found.boxes[:0], found.labels[:0], found.scores[:0])
        for change in (
            {"detection": moved},
            {"detection": none},
            {"segmentation": DenseMap(labels.values[:, ::-1].copy(), labels.valid)},
        ):
            parts = {**prediction.annotations, **change}
            wrong.append(disagreement(dataclasses.replace(prediction, annotations=parts), specs))
    assert len(clean) >= 5
    assert roc_auc_score([0] * len(clean) + [1] * len(wrong), clean + wrong) > 0.9


@pytest.mark.fault("M2")
def test_a_depth_jump_inside_a_box_is_counted():
    specs = {name: STREET[name] for name in ("detection", "depth")}
    depth = np.full((96, 160), 10, np.float32)
    box = Instances(np.array([[20, 20, 80, 80]], np.float32), np.array([0]), np.array([0.9], np.float32))
    whole = Prediction({"detection": box, "depth": DenseMap(depth, depth > 0)}, (96, 160))
    assert find_contradictions(whole, specs).depth_jumps == 0
    torn = depth.copy()
    torn[:, 50:] = 40
    parts = {**whole.annotations, "depth": DenseMap(torn, torn > 0)}
    assert find_contradictions(dataclasses.replace(whole, annotations=parts), specs).depth_jumps == 1


@pytest.mark.fault("M2")
def test_names_that_mean_the_same_are_one_kind():
    assert class_groups("Traffic_Light") == {"light"}
    assert class_groups("car") == class_groups("vehicle") == {"vehicle"}
    assert class_groups("cyclist") == {"person", "two-wheeler"}
    assert class_groups("road") == frozenset()


@pytest.mark.fault("M2")
def test_the_doubt_about_good_images_is_the_share_that_are_less_odd():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(6, 6))
    draw = lambda count: generator.normal(size=(count, 6)) @ mixing  # noqa: E731
    calibration = fit_features(draw(800), [f"f{i}" for i in range(6)])
    doubts = np.sort([calibration.score(row) for row in draw(600)])
    assert np.abs(doubts - np.linspace(0, 1, 600)).max() < 0.08
    assert (doubts > OOD_THRESHOLD).mean() < 0.03
    assert calibration.score(np.full(6, 50.0)) > 0.998
    assert calibration.outlier_features(calibration.mean + np.eye(6)[3] * 100, 1) == ["f3"]


def of_other_places(kind: str) -> list[np.ndarray]:
    """Images of no street: real ones of anything, or made: patterns, color fields, a street from too near."""
    if kind == "camvid":
        return [read_image(path) for path in sorted((DATA / "coco128").rglob("*.jpg"))[:30]]
    patterns = [
        np.kron(textured(i, (256 // n, 512 // n)), np.ones((n, n, 1), np.uint8)) for i, n in enumerate((2, 8, 32))
    ]
    fields = [cv2.resize(textured(i, (3, 4)), (512, 256), interpolation=cv2.INTER_CUBIC) for i in range(6)]
    near = [cv2.resize(image[100:132, 200:264], (512, 256)) for image in clean("made")[3::24]]
    return [*patterns, *fields, *near]


@pytest.mark.fault("M2")
@pytest.mark.parametrize("kind", ["made", pytest.param("camvid", marks=REAL)])
def test_corrupted_and_foreign_images_are_told_from_good_ones(kind):
    """By the features of the image alone: what the network adds needs one that has been trained."""
    specs: dict[str, TaskSpec] = {}
    images = clean(kind)
    if kind == "camvid":
        paths = sorted(p for p in (DATA / "camvid" / "images").rglob("*") if p.suffix in (".jpg", ".png"))
        images = [read_image(path) for path in paths[:: max(1, len(paths) // 120)]]
    rows = [compute_features(image, Prediction({}, image.shape[:2]), specs) for image in images]
    known, held = rows[::2] + rows[1::4], rows[3::4]
    calibration = fit_features(np.array(known), feature_names(specs))
    generator = np.random.default_rng(0)
    changes = (
        lambda x: np.clip(x + generator.normal(0, 25, x.shape), 0, 255).astype(np.uint8),
        blurred,
        lambda x: (x * 0.25).astype(np.uint8),
        lambda x: (x * 0.4 + 140).astype(np.uint8),
        lambda x: 255 - x,
    )
    odd = [
        compute_features(change(image), Prediction({}, image.shape[:2]), specs)
        for change in changes
        for image in images[3::8]
    ]
    odd += [compute_features(image, Prediction({}, image.shape[:2]), specs) for image in of_other_places(kind)]
    scores = [calibration.score(row) for row in held + odd]
    assert roc_auc_score([0] * len(held) + [1] * len(odd), scores) > 0.9


@pytest.mark.fault("M2")
def test_predictions_that_cannot_be_are_told_from_good_ones_by_the_calibrated_score():
    """All features: made streets with their truth as predictions, and the same with a task that saw something else."""
    found = [truth(index) for index in range(120)]
    rows = [compute_features(image, prediction, specs) for image, prediction, specs in found]
    known, held = rows[::2] + rows[1::4], rows[3::4]
    calibration = fit_features(np.array(known), feature_names(found[0][2]))
    odd = []
    for image, prediction, specs in found[3::4]:
        parts = prediction.annotations
        for name in ("segmentation", "depth"):
            turned = DenseMap(parts[name].values[::-1].copy(), parts[name].valid[::-1].copy())
            odd.append(
                compute_features(image, dataclasses.replace(prediction, annotations={**parts, name: turned}), specs)
            )
        boxes = dataclasses.replace(parts["detection"], boxes=parts["detection"].boxes * np.float32(0.5))
        if len(boxes.boxes):
            odd.append(
                compute_features(
                    image, dataclasses.replace(prediction, annotations={**parts, "detection": boxes}), specs
                )
            )
    scores = [calibration.score(row) for row in held + odd]
    assert roc_auc_score([0] * len(held) + [1] * len(odd), scores) > 0.9


@pytest.mark.fault("M2")
def test_a_calibration_is_kept_in_a_file_and_fits_one_network(tmp_path):
    _, _, specs = truth(0)
    collect = FeatureCollector(specs)
    for index in range(4):
        image, prediction, _ = truth(index)
        collect(Frame(image), prediction)
        collect(Frame(image), dataclasses.replace(prediction, valid=False))
    assert len(collect.values) == 4
    names = feature_names(specs)
    assert len(names) == len(collect.values[0])
    rows = np.random.default_rng(0).normal(np.mean(collect.values, 0), 0.1, (60, len(names)))
    calibration = fit_features(rows, names, "abc")
    path = tmp_path / "model.ood.json"
    calibration.save(path)
    again = load_ood_model(path, specs, "abc")
    assert again.score(rows[7]) == calibration.score(rows[7])
    image, prediction, _ = truth(0)
    told = OodMonitor(again, specs)(Frame(image), prediction)
    assert 0 <= told.ood_score <= 1
    assert bool(told.flags) == (told.ood_score > OOD_THRESHOLD)
    unsound = dataclasses.replace(prediction, valid=False)
    assert OodMonitor(again, specs)(Frame(image), unsound) is unsound
    for message, change, model in (
        ("for another network", {}, "xyz"),
        ("for other tasks", {"depth": None}, "abc"),
    ):
        with pytest.raises(PerceptionError, match=message):
            load_ood_model(path, {k: v for k, v in specs.items() if k not in change}, model)
    path.write_text('{"format": 1, "feature_names": 3}')
    with pytest.raises(PerceptionError, match="is not a valid ood model"):
        load_ood_model(path, specs)
    with pytest.raises(PerceptionError, match=r"10 good images\. The fit needs at least 50"):
        fit_features(rows[:10], names)


CALIBRATION = {
    "format": 1,
    "feature_names": ["a", "b"],
    "mean": [0, 0],
    "scale": [1, 1],
    "inverse_correlation": [[1, 0], [0, 1]],
}
CALIBRATION |= {"distances": [0, 1], "num_images": 60, "network_sha256": ""}


@pytest.mark.fault("M2")
@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "[]", "null", "{", "[" * 100_000, '{"format": 1}', "\x00"),
        *(
            json.dumps(CALIBRATION | {key: value})
            for key, values in {
                "format": (2, None, "1"),
                "feature_names": ([], ["a"], 3, [1, 2], "ab"),
                "mean": ([0], [0, "x"], [[0, 0]], {}, None, [0, 10**400]),
                "scale": ([1], [1, 0], [1, -1], [1, float("nan")]),
                "inverse_correlation": ([[1, 0]], [[1, 0], [0]], [[1, 0], [0, -1]], [[float("inf"), 0], [0, 1]], 5),
                "distances": ([], [1, 0], None, [0] * 5000, "01"),
                "num_images": (0, -1, "60", 1.5, True, None, 10**400),
                "network_sha256": (None, 5),
            }.items()
            for value in values
        ),
    ],
)
def test_a_damaged_calibration_is_refused_by_a_sentence(tmp_path, text):
    path = tmp_path / "ood.json"
    path.write_text(text, "utf-8")
    with pytest.raises(PerceptionError, match="is not a valid ood model"):
        load_ood_model(path, {})
    path.write_text(json.dumps(CALIBRATION), "utf-8")
    with pytest.raises(PerceptionError, match="for other tasks"):
        load_ood_model(path, {})


@pytest.mark.fault("M3")
def test_late_results_are_flagged_and_counted():
    timings = Timings()
    watch = LatencyMonitor(timings, deadline=0.1)
    now = time.monotonic()
    flags = [watch(Frame(textured(), 0.0, now - age), NOTHING).flags for age in (0.0, 0.5, 0.0)]
    assert [bool(found) for found in flags] == [False, True, False]
    assert flags[1][0].startswith("late: 5")
    assert flags[1][0].endswith("deadline 100 ms")
    assert watch.deadline_misses == 1
    assert timings.to_json()["latency"]["count"] == 3
    free = LatencyMonitor(timings)
    assert free(Frame(textured(), 0.0, now - 100), NOTHING) is NOTHING
    assert free.deadline_misses == 0


@pytest.mark.fault("M3")
def test_percentiles_are_those_of_numpy_in_memory_that_does_not_grow():
    seconds = np.random.default_rng(0).lognormal(-4, 1, 5000)
    found = DurationHistogram()
    for value in seconds:
        found.add(float(value))
    for share in (0.01, 0.5, 0.99):
        assert found.quantile(share) == pytest.approx(np.quantile(seconds, share), rel=0.05)
    assert found.longest == seconds.max()
    assert found.total == pytest.approx(seconds.sum())
    assert found._bins.size < 1000
    assert DurationHistogram().quantile(0.5) == 0
