"""Evaluation: batch size changes nothing, examples are the worst and the best, one score picks checkpoints."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import tiny_network
import torch

from perception.engine.evaluate import EvaluationExample, ExampleSelector, evaluate
from perception.types import DataError


def test_numbers_do_not_depend_on_the_batch_size_or_order():
    model = tiny_network.build_network()
    expected = evaluate(model, tiny_network.validation_batches(9, 9))
    assert expected.num_images == 9
    assert not math.isnan(expected.metrics["depth/abs_rel"])
    for size in (1, 2, 4):
        found = evaluate(model, reversed(tiny_network.validation_batches(9, size)))
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-6, nan_ok=True)


def test_an_image_that_comes_twice_counts_once():
    model = tiny_network.build_network()
    batches = tiny_network.validation_batches(6)
    assert evaluate(model, [*batches, batches[0]]) == evaluate(model, batches)


def test_the_network_is_left_as_it_was():
    model = tiny_network.build_network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, tiny_network.validation_batches())
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_nothing_to_evaluate_says_so():
    with pytest.raises(DataError, match="No image"):
        evaluate(tiny_network.build_network(), [])
    batch = tiny_network.validation_batches(1)[0]
    with pytest.raises(DataError, match="1000: the image transform is missing"):
        evaluate(tiny_network.build_network(), [dataclasses.replace(batch, transforms=[None])])


def test_examples_are_the_worst_and_the_best():
    model = tiny_network.build_network()
    batches = tiny_network.validation_batches(30, 4)
    found = evaluate(model, batches, num_examples=3).examples["depth"]
    assert [len(shelf) for shelf in found.values()] == [3, 3]
    metric, qualities = model.tasks["depth"].create_metric(), {}
    for batch in batches:
        with torch.no_grad():
            depths = model.eval().predict(batch.images)["depth.depth"].numpy()
        for name, depth, target in zip(batch.ids, depths, batch.annotations["depth"], strict=True):
            if target is not None:
                prediction = dataclasses.replace(target, values=np.clip(depth, 0.1, 10))
                qualities[name] = metric.score_image(prediction, target)
    ranked = sorted(qualities, key=qualities.__getitem__)
    assert [example.id for example in found["worst"]] == ranked[:3]
    assert [example.id for example in found["best"]] == ranked[::-1][:3]
    example = found["best"][0]
    assert example.image.shape == (*tiny_network.SIZE, 3)
    assert example.quality == pytest.approx(qualities[example.id])
    picture = next(b.images[b.ids.index(example.id)] for b in batches if example.id in b.ids)
    assert np.array_equal(example.image, picture.permute(1, 2, 0).numpy())
    assert set(example.prediction) == set(tiny_network.TASKS)


def test_a_gallery_is_bounded_and_does_not_depend_on_the_order():
    qualities = np.random.default_rng(0).integers(0, 5, 50).tolist()
    items = [EvaluationExample(f"{n:02d}", float(q), np.zeros(1), {}, {}) for n, q in enumerate(qualities)]
    shelves = []
    for order in (items, items[::-1], items[::2] + items[1::2]):
        gallery = ExampleSelector(4)
        for item in order:
            if gallery.is_candidate(item.quality):
                gallery.add(item)
        assert len(gallery.examples()) <= 8
        shelves.append({name: [item.id for item in shelf] for name, shelf in gallery.group_by_rank().items()})
    assert shelves[0] == shelves[1] == shelves[2]
    assert not ExampleSelector(4).is_candidate(math.nan)
