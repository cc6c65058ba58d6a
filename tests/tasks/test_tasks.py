"""The contract of every task. A new member of TASKS inherits it, and so does the example in CONTRIBUTING.md."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from perception import tasks as registry
from perception.model import ModelConfig, MultiTaskModel
from perception.nn.backbone import BackboneConfig
from perception.ops.draw import draw_annotations
from perception.ops.image import compute_letterbox
from perception.ops.postprocess import build_prediction, to_json
from perception.tasks import TASKS
from perception.types import Batch, Camera, DenseMap, ImageLabel, Instances, Prediction

SIZE = (96, 128)
CLASSES = ("road", "car", "tree")


def documented_task() -> type:
    """The task that CONTRIBUTING.md shows, imported from its text."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "class FreeSpace(Task)" in block)
    module = types.ModuleType("documented_task")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    return module.FreeSpace


EVERY = {**TASKS, "free_space": documented_task()}


def target(shape: str, classes: int, unit: str, seed: int = 0):
    rng = np.random.default_rng(seed)
    if shape == "instances":
        boxes = torch.tensor([[10.0, 12.0, 50.0, 60.0], [70.0, 30.0, 118.0, 90.0]])
        return Instances(boxes, torch.tensor([0, classes - 1]))
    if shape == "label":
        return ImageLabel(torch.eye(classes)[seed % classes])
    valid = torch.ones(SIZE, dtype=torch.bool)
    if unit:
        ramp = np.linspace(4, 30, SIZE[0], dtype=np.float32)[:, None].repeat(SIZE[1], 1)
        return DenseMap(torch.from_numpy(ramp + rng.uniform(0, 1)), valid)
    stripes = (np.arange(SIZE[1]) * classes // SIZE[1])[None].repeat(SIZE[0], 0)
    return DenseMap(torch.from_numpy(stripes.astype(np.int64)), valid)


@pytest.fixture(params=list(EVERY), ids=str)
def network(request, monkeypatch):
    """A small network with one task, its name, and a labeled batch of two images."""
    name = request.param
    monkeypatch.setitem(registry.TASKS, name, EVERY[name])
    torch.manual_seed(0)
    kind = EVERY[name].Config
    config = kind(classes=CLASSES) if "classes" in kind.__dataclass_fields__ else kind()
    model = MultiTaskModel(
        ModelConfig(backbone=BackboneConfig(name="test_efficientnet", weights="none")), {name: config}
    )
    spec = model.specs[name]
    targets = [target(spec.annotation_type, len(spec.classes), spec.unit, seed) for seed in range(2)]
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 3, *SIZE), np.uint8))
    return (
        name,
        model,
        Batch(images, {name: targets}, [Camera(100, 100, 64, 48)] * 2, [None] * 2, ["a", "b"], ["s", "s"]),
    )


def test_outputs_have_the_promised_shapes(network):
    name, model, batch = network
    spec = model.specs[name]
    outputs = model.eval().predict(batch.images)
    assert list(outputs) == [f"{name}.{output}" for output in spec.outputs]
    values = list(outputs.values())
    if spec.annotation_type == "instances":
        limit = values[0].shape[1]
        assert values[0].shape == (2, limit, 4)
        assert values[1].shape == values[2].shape == (2, limit)
        assert (values[1].diff(dim=1) <= 0).all(), "best first"
    elif spec.annotation_type == "dense":
        assert values[0].shape == (2, *SIZE)
    else:
        assert values[0].shape == (2, len(spec.classes))


def test_every_parameter_gets_a_gradient(network):
    name, model, batch = network
    model.train().compute_losses(batch)[name].backward()
    silent = [
        key for key, value in model.named_parameters() if value.grad is None or not torch.isfinite(value.grad).all()
    ]
    assert not silent


def test_an_output_has_no_distance_from_itself_and_some_from_another(network):
    name, model, batch = network
    task, outputs = model.tasks[name], model.train()(batch.images)[name]
    other = model(batch.images.flip(0))[name]
    assert float(task.distill(outputs, outputs).detach()) == pytest.approx(0, abs=1e-6)
    assert float(task.distill(outputs, other).detach()) > 1e-6


def test_the_parts_of_the_loss_are_sums_over_images(network):
    """Ranks join them: two images together are the one plus the other."""
    name, model, batch = network
    model.eval()  # BatchNorm would mix the images
    both = model.compute_loss_terms(batch).terms[name]
    ones = []
    for i in range(2):
        target = {name: [batch.annotations[name][i]]}
        one = Batch(batch.images[i : i + 1], target, batch.cameras[:1], [None], ["a"], ["s"])
        ones.append(model.compute_loss_terms(one).terms[name])
    assert set(both) == set(model.tasks[name].loss_names)
    for part, (total, count) in both.items():
        assert not count.requires_grad
        torch.testing.assert_close(total, ones[0][part].total + ones[1][part].total, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(count, ones[0][part].count + ones[1][part].count, rtol=1e-4, atol=1e-5)


def test_an_unlabeled_batch_gives_a_connected_zero(network):
    name, model, batch = network
    unlabelled = Batch(batch.images, {name: [None, None]}, [None, None], [None] * 2, ["a", "b"], ["s", "s"])
    loss = model.train().compute_losses(unlabelled)[name]
    assert loss.item() == 0
    loss.backward()
    assert all(value.grad is not None for value in model.tasks.parameters())
    assert all(not value.grad.any() for value in model.parameters() if value.grad is not None)


def test_an_unlabeled_image_changes_no_gradient(network):
    """Whatever stands in the batch without this task's label is not there for its loss."""
    name, model, batch = network
    model.eval()  # BatchNorm would see the other image; the loss must not
    alone = Batch(batch.images[:1], {name: batch.annotations[name][:1]}, batch.cameras[:1], [None], ["a"], ["s"])
    beside = Batch(
        batch.images, {name: [batch.annotations[name][0], None]}, batch.cameras, [None] * 2, ["a", "b"], ["s"] * 2
    )
    gradients = []
    for one in (alone, beside):
        model.zero_grad()
        model.compute_losses(one)[name].backward()
        gradients.append({key: value.grad.clone() for key, value in model.named_parameters()})
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-4, atol=1e-6)


def test_learns_one_batch_by_heart(network):
    name, model, batch = network
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = model.compute_losses(batch)[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_prediction_as_target_is_perfect_and_survives_json_and_drawing(network):
    name, model, batch = network
    spec = model.specs[name]
    truth = batch.annotations[name][0]
    if isinstance(truth, Instances):
        truth = Instances(truth.boxes.numpy(), truth.labels.numpy())
        prediction = Instances(truth.boxes, truth.labels, np.ones(len(truth.boxes), np.float32))
    elif isinstance(truth, DenseMap):
        truth = prediction = DenseMap(truth.values.numpy(), truth.valid.numpy())
    else:
        truth = prediction = ImageLabel(truth.values.numpy())
    metric = model.tasks[name].create_metric()
    metric.update("a", prediction, truth)
    score, sign = model.tasks[name].main_metric, model.tasks[name].main_metric_sign
    assert metric.compute()[score] == pytest.approx(1.0 if sign > 0 else 0.0, abs=1e-6)
    record = to_json(Prediction({name: prediction}, SIZE, "a"), {name: spec})
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    image = np.zeros((*SIZE, 3), np.uint8)
    assert draw_annotations(image, {name: prediction}, {name: spec}).dtype == np.uint8


def test_untrained_prediction_is_restored_and_drawn(network):
    name, model, batch = network
    with torch.inference_mode():
        outputs = {key: value[0].numpy() for key, value in model.eval().predict(batch.images).items()}
    frame = compute_letterbox((60, 90), SIZE)
    prediction = build_prediction(outputs, model.specs, frame)
    annotation = prediction.annotations[name]
    if isinstance(annotation, DenseMap):
        assert annotation.values.shape == (60, 90)
    if isinstance(annotation, Instances):
        assert (annotation.boxes >= 0).all()
        assert (annotation.boxes[:, 2] <= 90).all()
    assert draw_annotations(np.zeros((60, 90, 3), np.uint8), prediction.annotations, model.specs).shape[2] == 3
    json.dumps(to_json(prediction, model.specs), allow_nan=False)
