"""Smoothing takes flicker away and nothing else: not what moves, not a cut, not a jump of depth."""

import dataclasses

import numpy as np
import pytest

from perception.deploy.sources import Shot
from perception.deploy.video.smoothing import Smoother
from perception.types import DenseMap, Prediction, TaskSpec

SIZE = (96, 160)
SPECS = {
    "segmentation": TaskSpec("segmentation", "dense", ("label_map",), ("road", "sky", "car")),
    "depth": TaskSpec("depth", "dense", ("depth",), (), "m", (0.5, 80.0)),
}
FPS = 25.0


def scene(step: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture, labels and depth of a car that moves over a road under the sky, all of it textured."""
    generator = np.random.default_rng(seed)
    ground = np.repeat(np.repeat(generator.integers(60, 200, (24, 40, 1), np.uint8), 4, 0), 4, 1)
    paint = np.repeat(np.repeat(generator.integers(0, 255, (7, 9, 1), np.uint8), 4, 0), 4, 1)
    labels = np.zeros(SIZE, np.uint8)
    labels[:40] = 1
    depth = np.linspace(60, 5, SIZE[0], dtype=np.float32)[:, None].repeat(SIZE[1], 1)
    image, left = ground.copy(), 10 + 2 * step
    image[50:78, left : left + 36] = paint
    labels[50:78, left : left + 36] = 2
    depth[50:78, left : left + 36] = 8
    return image.repeat(3, 2), labels, depth


def prediction(labels: np.ndarray, depth: np.ndarray) -> Prediction:
    parts = {"segmentation": DenseMap(labels, np.ones(SIZE, bool)), "depth": DenseMap(depth, depth > 0)}
    return Prediction(parts, SIZE)


def parts_of(found: Prediction) -> tuple[np.ndarray, np.ndarray]:
    return found.annotations["segmentation"].values, found.annotations["depth"].values


def test_regions_that_flicker_are_calmed():
    generator, smoother = np.random.default_rng(0), Smoother(SPECS, 0.1)
    raw_wrong, wrong, raw_noise, noise = [], [], [], []
    for step in range(30):
        image, labels, depth = scene(0)
        broken = labels.copy()
        if step % 3 == 1:  # a whole patch of the road becomes sky, every third frame
            broken[60:90, 100:150] = 1
        shaken = depth * np.exp(generator.normal(0, 0.03, SIZE)).astype(np.float32)
        found, calm = parts_of(smoother(Shot(image, step / FPS), prediction(broken, shaken)))
        if step >= 5:
            raw_wrong.append((broken != labels).mean())
            wrong.append((found != labels).mean())
            raw_noise.append(np.std(np.log(shaken / depth)))
            noise.append(np.std(np.log(calm / depth)))
    assert np.mean(raw_wrong) > 0.02
    assert np.mean(wrong) < 0.1 * np.mean(raw_wrong)
    assert np.mean(noise) < 0.75 * np.mean(raw_noise)


def test_what_moves_is_not_left_behind():
    smoother, overlaps = Smoother(SPECS, 0.2), []
    for step in range(30):
        image, labels, depth = scene(step)
        found, near = parts_of(smoother(Shot(image, step / FPS), prediction(labels, depth)))
        both, either = ((found == 2) & (labels == 2)).sum(), ((found == 2) | (labels == 2)).sum()
        overlaps.append(both / either)
        np.testing.assert_allclose(near[labels == 2], 8, rtol=0.16)
    assert min(overlaps) > 0.8
    assert np.mean(overlaps) > 0.9


def test_what_changes_for_good_is_taken_over_in_about_the_time_constant():
    smoother, taken = Smoother(SPECS, 0.1), None
    image, labels, depth = scene(0)
    for step in range(10):
        smoother(Shot(image, step / FPS), prediction(labels, depth))
    changed = labels.copy()
    changed[60:90, 100:150] = 1
    for step in range(10, 25):
        found, _ = parts_of(smoother(Shot(image, step / FPS), prediction(changed, depth)))
        if taken is None and (found == changed).all():
            taken = step - 10
    assert taken is not None
    assert 1 <= taken <= 6


@pytest.mark.parametrize("cut", ["scene", "pause", "size", "invalid"])
def test_after_a_cut_the_past_counts_for_nothing(cut):
    smoother = Smoother(SPECS, 1.0)
    image, labels, depth = scene(0)
    for step in range(5):
        smoother(Shot(image, step / FPS), prediction(labels, depth))
    other, time = scene(0, seed=1)[0], 5 / FPS
    new, far = np.full(SIZE, 1, np.uint8), np.full(SIZE, 33.0, np.float32)
    if cut == "pause":
        other, time = image, 60.0
    elif cut == "size":
        other = image[:64]
    elif cut == "invalid":
        other = image
        smoother(Shot(image, 5 / FPS), dataclasses.replace(prediction(labels, depth), valid=False))
        time = 6 / FPS
    else:
        other = 255 - image
    found, metres = parts_of(smoother(Shot(other, time), prediction(new, far)))
    np.testing.assert_array_equal(found, new)
    np.testing.assert_array_equal(metres, far)


def test_a_picture_on_its_own_is_not_smoothed():
    image, labels, depth = scene(0)
    alone = prediction(labels, depth)
    assert Smoother(SPECS, 1.0)(Shot(image), alone) is alone
