"""Parts of the doctor: workers that die, images that look the same, sums that add up, words that can be printed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_trees import noise_image
from hypothesis import given, settings
from hypothesis import strategies as some

from perception.data import SourceConfig
from perception.data.formats.depth_maps import DepthMapsConfig
from perception.doctor import leakage
from perception.doctor.accumulators import SourceState
from perception.doctor.camera_checks import find_camera_issue
from perception.doctor.data_plan import PlannedSource
from perception.doctor.findings import ISSUE_KINDS, Issue, IssueCounter, format_percent, sanitize_text
from perception.doctor.image_properties import compute_hash, find_image_issues
from perception.doctor.statistics import LogHistogram, compute_statistics, merge_statistics
from perception.doctor.worker_pool import JobFailure, WorkerPool
from perception.ops.image import compute_letterbox
from perception.types import Camera, DenseMap, Instances


def work(state: int, job: str) -> int:
    """A worker's task that may go wrong in every way."""
    if job == "broken":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "quits":
        os._exit(0)
    if job == "hangs":
        time.sleep(600)
    if job == "greedy":
        bytearray(8 << 30)
    if job == "raises":
        raise ValueError("no")
    return state + len(job)


def test_every_job_is_answered_whatever_becomes_of_its_worker():
    jobs = ["a", "bb", "broken", "quits", "hangs", "greedy", "raises", "ccc"]
    with WorkerPool(2, memory_limit=1 << 30) as crew:
        answers = dict(crew.run(work, 10, jobs, timeout=5))
        again = dict(crew.run(work, 20, ["dd"], timeout=5))
    assert set(answers) == set(jobs)
    assert (answers["a"], answers["bb"], answers["ccc"], again["dd"]) == (11, 12, 13, 22)
    found = {job: answer.code for job, answer in answers.items() if isinstance(answer, JobFailure)}
    assert found == {
        "broken": "crashed",
        "quits": "crashed",
        "hangs": "timeout",
        "greedy": "out_of_memory",
        "raises": "internal_error",
    }
    assert "SIGSEGV" in answers["broken"].text
    assert "ValueError in test_parts.py" in answers["raises"].text
    assert all(answer.code in ISSUE_KINDS for answer in answers.values() if isinstance(answer, JobFailure))


def test_without_workers_everything_runs_here():
    with WorkerPool(0) as crew:
        answers = dict(crew.run(work, 1, ["a", "raises"], timeout=1))
    assert answers["a"] == 2
    assert answers["raises"].code == "internal_error"


def differing(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.bitwise_count(compute_hash(first).hash_bits ^ compute_hash(second).hash_bits).sum())


@settings(max_examples=25, deadline=None)
@given(some.integers(0, 10_000), some.integers(40, 95), some.floats(0.5, 2))
def test_an_image_looks_like_itself_after_compression_and_resizing(seed, quality, scale):
    original = noise_image(seed, (96, 128))
    resized = cv2.resize(original, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    again = cv2.imdecode(cv2.imencode(".jpg", resized, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    assert differing(original, again) <= leakage.MAX_HASH_DISTANCE
    assert differing(original, noise_image(seed + 1, (96, 128))) > 2 * leakage.MAX_HASH_DISTANCE


def state(part: str, name: str, images: list[np.ndarray]) -> SourceState:
    """A state that has looked at some images."""
    labels = DepthMapsConfig(images="a", depths="b", scale=1)
    found = SourceState(PlannedSource(part, SourceConfig(name=name, labels=(labels,))))
    found.selected_indices = list(range(len(images)))
    found.readable = np.ones(len(images), bool)
    looks = [compute_hash(image) for image in images]
    found.textureless = np.array([one.textureless for one in looks], bool)
    found.hash_bits = np.array([one.hash_bits for one in looks])
    found.thumbnails = np.array([one.thumbnail for one in looks])
    found.digests = np.array([[int(image.astype(np.uint64).sum()), image.size] for image in images], np.uint64)
    return found


def noisy(image: np.ndarray, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-4, 5, image.shape)
    return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)


def test_copies_and_near_copies_between_training_and_validation():
    train = [noise_image(k, (96, 128)) for k in range(60)]
    others = [noise_image(1000 + k, (96, 128)) for k in range(30)]
    validation = [*others, train[7], noisy(train[9]), noisy(train[11])]
    found = leakage.find_leakage([state("train", "a", train), state("validation", "a", validation)])
    assert found.counts == {1: (1, 2)}
    same, *near = [(pair.validation[1], pair.training[1], pair.is_same_file) for pair in found.pairs]
    assert same == (30, 7, True)
    assert sorted(near) == [(31, 9, False), (32, 11, False)]
    severities = {finding.code: finding.severity for finding in found.findings}
    assert severities == {"leaked_images": "error", "leaked_near_duplicates": "warning"}


def test_half_of_a_validation_source_leaking_must_be_mended():
    train = [noise_image(k, (96, 128)) for k in range(10)]
    found = leakage.find_leakage(
        [state("train", "a", train), state("validation", "a", [noisy(image) for image in train])]
    )
    assert [(f.code, f.severity, f.count) for f in found.findings] == [("leaked_near_duplicates", "error", 10)]


def test_images_without_texture_are_not_taken_for_each_other():
    train = [np.full((96, 128, 3), value, np.uint8) for value in (10, 100)]
    found = leakage.find_leakage([state("train", "a", train), state("validation", "a", [noisy(train[0]) // 2])])
    assert found.pairs == []


def test_odd_images():
    good = noise_image(3)
    cut = good.copy()
    cut[30:] = 128
    kinds = [[t.code for t in find_image_issues(Path("a.jpg"), image)] for image in (good, cut, good * 0)]
    assert kinds == [[], ["half_gray_image"], ["blank_image"]]


@settings(max_examples=50, deadline=None)
@given(some.lists(some.floats(1e-3, 1e4), min_size=1, max_size=200), some.floats(0.01, 0.99))
def test_quantiles_of_a_histogram_are_near_those_of_the_numbers(values, share):
    histogram = LogHistogram.empty(1e-6, 1e6)
    histogram.add(np.array(values))
    exact = np.quantile(values, share, method="inverted_cdf")
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.03)
    assert histogram.fraction_between(1e-4, 1e5) == 1


@settings(max_examples=25, deadline=None)
@given(
    some.lists(
        some.lists(some.tuples(*[some.integers(0, 60)] * 2, *[some.integers(1, 40)] * 2), max_size=5), max_size=6
    )
)
def test_statistics_of_parts_add_up(pictures):
    frame = compute_letterbox((100, 100), (64, 64))
    whole = compute_statistics(Instances(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)), 3, frame)
    for rows in pictures:
        corners = np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32).reshape(-1, 4)
        merge_statistics(whole, compute_statistics(Instances(corners, np.arange(len(rows)) % 3), 3, frame))
    assert whole.num_images == len(pictures) + 1
    assert whole.boxes_per_class.sum() == sum(map(len, pictures)) == whole.sides.counts.sum()
    assert whole.num_empty == 1 + sum(not rows for rows in pictures)
    assert (whole.images_per_class <= whole.boxes_per_class).all()
    areas = [w * h for rows in pictures for _, _, w, h in rows]
    assert whole.small_per_class.sum() == sum(area * 0.64**2 < 64 for area in areas)


def test_statistics_of_depth():
    values = np.full((40, 50), 2.0, np.float32)
    values[:10], values[10:20] = 0, 4
    found = compute_statistics(DenseMap(values, values > 0), 0, compute_letterbox((40, 50), (32, 32)))
    assert (found.min_depth, found.max_depth, found.num_invalid_pixels, found.num_constant) == (2, 4, 500, 0)
    assert found.depths.quantile(0.5) == pytest.approx(2, rel=0.03)
    assert found.depths.fraction_between(3, 5) == pytest.approx(1 / 3, abs=0.01)


@settings(max_examples=200)
@given(some.text(some.characters(exclude_categories=()), max_size=2000))
def test_whatever_is_quoted_can_be_printed_on_a_line(text):
    line = sanitize_text(text, 300)
    assert line.isprintable()
    assert len(line) <= 320
    line.encode()


def test_troubles_are_counted_in_bounded_memory():
    troubles = IssueCounter()
    for number in range(5000):
        troubles.add(Issue("invalid_labels", f"/data/{number}.png: {'x' * (number % 300)} is wrong"), (0, number))
    assert troubles.count("invalid_labels") == 5000
    assert len(troubles.groups) <= 50
    (finding,) = troubles.to_findings("train/a", 6000)
    assert finding.count == 5000
    assert len(finding.examples) == len(finding.images) == 10
    assert finding.message.startswith("5,000 of 6,000 images")


def test_percent():
    assert [format_percent(*x) for x in ((0, 5), (1, 1000), (1, 3), (3, 3), (0, 0))] == [
        "0 %",
        "<1 %",
        "33 %",
        "100 %",
        "0 %",
    ]


@pytest.mark.parametrize(
    ("camera", "words"),
    [
        (Camera(500, 500, 320, 240), ""),
        (Camera(500, 500, 300, 260), ""),
        (Camera(1000, 1000, 640, 480), "another resolution"),
        (Camera(250, 250, 160, 120), "another resolution"),
        (Camera(500, 500, 700, 240), "outside"),
        (Camera(500, 250, 320, 240), "stretched"),
        (Camera(3.6, 3.6, 320, 240), "field of view of 179 degrees"),
        (Camera(90000, 90000, 320, 240), "field of view of 0 degrees"),
    ],
)
def test_odd_cameras(camera, words):
    found = find_camera_issue(camera, (480, 640))
    assert words in found
    assert bool(found) == bool(words)
