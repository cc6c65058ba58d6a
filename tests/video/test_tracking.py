"""Tracks that last, and how their objects come nearer: against made drives that know every identity and distance."""

import dataclasses
import math
import sys
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from perception.ops.draw import format_distances
from perception.ops.postprocess import to_json
from perception.runtime.sources import Frame
from perception.synthetic.street_image import OBJECT_CLASSES
from perception.synthetic.video import render_frames
from perception.types import DenseMap, Instances, PerceptionError, Prediction, TaskSpec
from perception.video.time_to_contact import TimeToContactFilter
from perception.video.tracking import Tracker

FPS = 12.0
SPECS = {
    "detection": TaskSpec("detection", "instances", ("boxes", "scores", "labels"), ("car", "truck", "person")),
    "depth": TaskSpec("depth", "dense", ("depth",), (), "m", (0.5, 200.0)),
}
IMAGE = np.zeros((120, 160, 3), np.uint8)


def seen(boxes, labels=None, scores=None, distances=None) -> Prediction:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), np.int64) if labels is None else np.array(labels, np.int64)
    scores = np.full(len(boxes), 0.9, np.float32) if scores is None else np.array(scores, np.float32)
    measured = None if distances is None else np.array(distances, np.float32)
    return Prediction({"detection": Instances(boxes, labels, scores)}, (120, 160), distances=measured)


def tracks_of(prediction: Prediction) -> list[int]:
    return prediction.annotations["detection"].track_ids.tolist()


@pytest.fixture
def tracker() -> Tracker:
    pytest.importorskip("trackers")
    return Tracker(SPECS, 10.0)


def test_two_objects_that_move_keep_their_numbers_whatever_their_order(tracker):
    found = []
    for i in range(12):
        left, right = (10 + 2 * i, 40, 40 + 2 * i, 70), (110 - 2 * i, 80, 140 - 2 * i, 110)
        boxes = [left, right] if i % 2 else [right, left]
        numbers = tracks_of(tracker(Frame(IMAGE, i / 10), seen(boxes)))
        found.append(numbers if i % 2 else numbers[::-1])
    assert found[0] == [-1, -1]  # seen once is not known yet
    assert len({tuple(numbers) for numbers in found[1:]}) == 1
    assert len(set(found[-1])) == 2


def test_a_track_outlives_frames_in_which_it_is_not_seen_and_the_gap_in_time(tracker):
    box = (40, 40, 80, 80)
    for i in range(4):
        before = tracks_of(tracker(Frame(IMAGE, i / 10), seen([box])))
    for i in range(4, 8):
        assert tracks_of(tracker(Frame(IMAGE, i / 10), seen([]))) == []
    assert tracks_of(tracker(Frame(IMAGE, 0.8), seen([box]))) == before
    tracks_of(tracker(Frame(IMAGE, 9.0), seen([])))
    after = [tracks_of(tracker(Frame(IMAGE, 9.1 + i / 10), seen([box]))) for i in range(3)]
    assert after[-1] != before  # nine seconds later it is another


def test_a_low_score_keeps_a_track_and_begins_none(tracker):
    box = (40, 40, 80, 80)
    for i in range(3):
        before = tracks_of(tracker(Frame(IMAGE, i / 10), seen([box])))
    found = tracks_of(tracker(Frame(IMAGE, 0.3), seen([box, (100, 10, 120, 30)], scores=[0.15, 0.15])))
    assert found == [before[0], -1]


def test_classes_of_one_kind_share_a_track_and_others_do_not(tracker):
    box = (40, 40, 80, 80)
    same = [tracks_of(tracker(Frame(IMAGE, i / 10), seen([box], labels=[i % 2])))[0] for i in range(6)]
    assert len(set(same[1:])) == 1
    person = [tracks_of(tracker(Frame(IMAGE, i / 10), seen([box], labels=[2])))[0] for i in range(6, 9)]
    assert person[-1] not in (-1, same[-1])


def test_nothing_is_tracked_on_images_that_are_not_valid_or_stand_alone(tracker):
    for shot, prediction in (
        (Frame(IMAGE, 0.0), dataclasses.replace(seen([(1, 1, 9, 9)]), valid=False)),
        (Frame(IMAGE, None), seen([(1, 1, 9, 9)])),
        (Frame(IMAGE, 0.0), Prediction({}, (120, 160))),
    ):
        assert tracker(shot, prediction) is prediction


def test_what_is_known_of_tracks_is_written_and_drawn(tracker):
    for i in range(15):
        distance = 30 - i
        half = 300 / distance
        box = (80 - half, 60 - half, 80 + half, 60 + half)
        found = tracker(Frame(IMAGE, i / 10), seen([box], distances=[distance]))
    (item,) = to_json(found, SPECS)["detection"]
    assert item["track"] == 0
    assert item["distance"] == pytest.approx(16, rel=0.05)
    assert item["closing_speed"] == pytest.approx(10, rel=0.1)
    assert item["time_to_contact"] == pytest.approx(1.6, rel=0.1)
    assert format_distances(found)[0].startswith("16 m +")
    assert format_distances(found)[0].endswith(" s")


def test_without_the_packages_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(PerceptionError, match="pip install --no-deps trackers supervision"):
        Tracker(SPECS, 10.0)


@pytest.mark.parametrize("speed", [-8.0, 0.0, 4.0, 15.0])
def test_speed_and_time_to_contact_of_what_goes_on_at_its_speed(speed):
    generator, begin, focal = np.random.default_rng(3), 45.0, 900.0
    found, errors = None, []
    for i in range(25):
        time = i / 12
        distance = begin - speed * time
        depth = distance * math.exp(generator.normal(0, 0.1))
        height = focal * 1.6 / distance + generator.normal(0, 1.0)
        if found is None:
            found = TimeToContactFilter(time, depth, height)
        else:
            found.update(time, depth, height)
        errors.append(math.log(found.distance / distance))
    assert found.closing_speed == pytest.approx(speed, abs=max(1.5, 0.2 * abs(speed)))
    assert np.std(errors[8:]) < 0.06  # calmer than what is measured
    if speed > 3:
        assert found.time_to_contact == pytest.approx(distance / speed, rel=0.25)
    else:
        assert math.isnan(found.time_to_contact)


def test_speed_is_unknown_at_first_and_where_nothing_is_measured():
    found = TimeToContactFilter(0.0, 30.0, math.nan)
    assert math.isnan(found.closing_speed)
    for i in range(3):
        found.update(0.1 * (i + 1), math.nan, math.nan)
    assert math.isnan(found.closing_speed)
    assert math.isnan(found.time_to_contact)
    assert found.distance == pytest.approx(30.0)


def test_one_wild_depth_does_not_throw_the_distance_away():
    found = TimeToContactFilter(0.0, 20.0, 50.0)
    for i in range(1, 20):
        found.update(i / 12, 20.0, 50.0)
    found.update(20 / 12, 2.0, 50.0)
    assert found.distance == pytest.approx(20.0, rel=0.2)


@cache
def drive(seed: int, count: int = 48):
    return list(render_frames(seed, count, (128, 256), FPS))


@pytest.mark.parametrize("seed", [1, 4])
def test_identities_of_a_drive_are_kept(seed):
    """True boxes with their edges shaken and one in ten missing: nearly all pairs of frames agree on who is who."""
    pytest.importorskip("trackers")
    generator = np.random.default_rng(seed)
    specs = {"detection": TaskSpec("detection", "instances", ("boxes", "scores", "labels"), OBJECT_CLASSES)}
    tracker, history = Tracker(specs, FPS), {}
    for number, made in enumerate(drive(seed)):
        sides = (made.boxes[:, 2:] - made.boxes[:, :2]).min(1, initial=99)
        shown = np.flatnonzero(~made.ignore & (sides >= 8) & (generator.random(len(made.boxes)) > 0.1))
        boxes = made.boxes[shown] + generator.normal(0, 0.5, (len(shown), 4))
        found = Instances(boxes.astype(np.float32), made.labels[shown], np.full(len(shown), 0.8, np.float32))
        tracked = tracker(Frame(IMAGE, number / FPS), Prediction({"detection": found}, (128, 256)))
        for identity, track in zip(made.track_ids[shown].tolist(), tracks_of(tracked), strict=True):
            if track >= 0:
                history.setdefault(identity, []).append(track)
    pairs = [(a == b) for tracks in history.values() for a, b in combinations(tracks, 2)]
    owners = {}
    for identity, tracks in history.items():
        for track in tracks:
            owners.setdefault(track, []).append(identity)
    mixed = [a != b for found in owners.values() for a, b in combinations(found, 2)]
    assert len(pairs) > 200
    assert np.mean(pairs) > 0.85
    assert np.mean(mixed) < 0.1


def test_standing_things_of_a_drive_come_nearer_at_our_speed():
    """The truth is the drive's own depth: signs and lights stand, so all of them come nearer at one speed."""
    pytest.importorskip("trackers")
    generator = np.random.default_rng(0)
    specs = {
        "detection": TaskSpec("detection", "instances", ("boxes", "scores", "labels"), OBJECT_CLASSES),
        "depth": SPECS["depth"],
    }
    tracker, errors, told = Tracker(specs, FPS), [], 0
    truth: dict[int, list[tuple[float, float]]] = {}
    standing = [k for k, name in enumerate(OBJECT_CLASSES) if name in ("traffic light", "traffic sign")]
    for number, made in enumerate(drive(1)):
        keep = np.flatnonzero(~made.ignore & np.isin(made.labels, standing))
        distances = [
            float(np.median(made.depth[made.instance_map == 1 + i])) if (made.instance_map == 1 + i).any() else np.nan
            for i in keep
        ]
        noisy = np.array(distances) * np.exp(generator.normal(0, 0.08, len(keep)))
        found = Instances(made.boxes[keep], made.labels[keep], np.full(len(keep), 0.8, np.float32))
        after = tracker(
            Frame(IMAGE, number / FPS),
            Prediction(
                {"detection": found, "depth": DenseMap(made.depth, made.depth > 0)},
                (128, 256),
                distances=noisy.astype(np.float32),
            ),
        )
        for i, distance, speed in zip(made.track_ids[keep].tolist(), distances, after.closing_speeds, strict=True):
            truth.setdefault(i, []).append((number / FPS, distance))
            known = [point for point in truth[i] if np.isfinite(point[1])]
            if np.isfinite(speed) and len(known) > 8:
                (t0, d0), (t1, d1) = known[-8], known[-1]
                errors.append(float(speed) - (d0 - d1) / (t1 - t0))
                told += 1
    assert told > 30
    assert np.median(np.abs(errors)) < 2.0
