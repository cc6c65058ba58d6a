"""An image is judged in the label space of its source by the probability of sets, not by the likeliest class alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sharing_networks import build_network, noise_images

from perception.engine.evaluate import evaluate
from perception.ops.image import compute_letterbox
from perception.tasks.segmentation import Raw, SegmentationConfig, SegmentationTask
from perception.types import Batch, DenseMap, LabelSpace

CLASSES = ("road", "car", "tree")
HALVES = LabelSpace(("road", "rest"), ((0,), (1, 2)))
SPLIT = torch.tensor([0.4, 0.35, 0.25])
"""Probabilities: the likeliest class is road, the likelier half is the rest, and of it car."""


def task(**options) -> SegmentationTask:
    config = SegmentationConfig(classes=CLASSES, channels=16, strides=(4, 8, 16, 32), **options)
    return SegmentationTask("segmentation", config, {4: 48, 8: 96, 16: 96, 32: 96})


def raw(count: int = 2) -> Raw:
    return Raw(SPLIT.log()[None, :, None, None].repeat(count, 1, 3, 5))


def test_the_likeliest_set_wins_and_in_it_the_likeliest_class():
    found = task().decode_in_label_spaces(raw(), [HALVES, None])["mask"]
    assert found.shape == (2, 12, 20)
    assert found.dtype == torch.uint8
    assert (found[0] == 1).all()
    assert (found[1] == 0).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([((0, 1), (2,)), ((0,), (0, 1, 2)), ((0,), (1,), (2,)), ((1, 2), (0, 2))]))
def test_it_is_the_best_decision_there_is(seed, sets):
    """Against probabilities added up by numpy; with sets of one class each it is the plain decision."""
    logits = torch.randn(1, 3, 2, 3, generator=torch.Generator().manual_seed(seed))
    space = LabelSpace(tuple("abc"[: len(sets)]), sets)
    found = task().decode_in_label_spaces(Raw(logits), [space])["mask"][0].numpy()
    fine = torch.nn.functional.interpolate(logits, scale_factor=4.0, mode="bilinear")[0].softmax(0).numpy()
    sums = np.stack([fine[list(each)].sum(0) for each in sets])
    chosen = sums.argmax(0)
    sure = np.sort(sums, 0)[-1] - np.sort(sums, 0)[-2] > 1e-6
    for place in zip(*np.nonzero(sure), strict=True):
        each = sets[chosen[place]]
        assert found[place] == each[fine[(list(each), *place)].argmax()]


def test_evaluation_reads_each_image_in_its_own_label_space(monkeypatch):
    model = build_network(tasks=("segmentation",))
    monkeypatch.setattr(
        model.tasks["segmentation"], "forward", lambda _: Raw(raw(2).logits[:, :, :1, :1].repeat(1, 1, 16, 24))
    )
    values, valid = np.ones((64, 96), np.uint8), np.ones((64, 96), bool)
    own, plain = DenseMap(values, valid, label_space=HALVES), DenseMap(values * 0, valid)
    frame = compute_letterbox((64, 96), (64, 96))
    batch = Batch(noise_images(2), {"segmentation": [own, plain]}, [None] * 2, [frame] * 2, ["a/1", "b/1"], ["a", "b"])
    found = evaluate(model, [batch]).metrics
    assert (found["segmentation/a/miou"], found["segmentation/b/miou"]) == (1.0, 1.0)
