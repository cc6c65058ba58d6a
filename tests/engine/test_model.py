"""The engine with the real network: four tasks, partial labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from perception import checkpoint
from perception.engine import distributed
from perception.engine.backward import compute_gradients
from perception.engine.train import train
from perception.engine.train_config import TrainConfig
from perception.model import ModelConfig, MultiTaskModel
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.nn.backbone import BackboneConfig
from perception.tasks import TASKS
from perception.types import Batch, DenseMap, ImageLabel, Instances

SIZE = (64, 96)
CLASSES = tuple("abc")


def network() -> MultiTaskModel:
    torch.manual_seed(0)
    fields = {name: kind.Config.__dataclass_fields__ for name, kind in TASKS.items()}
    configs = {
        name: TASKS[name].Config(**({"classes": CLASSES} if "classes" in fields[name] else {})) for name in TASKS
    }
    return MultiTaskModel(ModelConfig(backbone=BackboneConfig(name="test_efficientnet", weights="none")), configs)


def batches(first: int, steps: int = 6) -> Iterator[Batch]:
    """Two images a step: one with boxes and a class, one with a segmentation mask and depth; step 1 lacks the
    second."""
    for step in range(first, steps):
        random = np.random.default_rng(step)
        images = torch.from_numpy(random.integers(0, 256, (2, 3, *SIZE), dtype=np.uint8))
        boxes = Instances(torch.tensor([[8.0, 8, 40, 40], [30, 20, 90, 60]]), torch.tensor([0, 2]))
        valid = torch.ones(SIZE, dtype=torch.bool)
        labels = DenseMap(torch.from_numpy(random.integers(0, 3, SIZE)), valid)
        depth = DenseMap(torch.from_numpy(random.uniform(1, 50, SIZE).astype(np.float32)), valid)
        annotations = {
            "detection": [boxes, None],
            "segmentation": [None, None if step == 1 else labels],
            "depth": [None, None if step == 1 else depth],
            "classification": [ImageLabel(torch.eye(3)[step % 3]), None],
        }
        yield Batch(images, annotations, [None] * 2, [None] * 2, [f"{step}a", f"{step}b"], ["made"] * 2)


def fit(run, model, name, steps, stream=batches, **options):
    settings = TrainConfig(
        steps=steps, batch_size=2, checkpoint_every=3, precision="float32", tensorboard=False, threads=1
    )
    balancer = build_balancer(BALANCERS[name].Config(), tuple(TASKS))
    return train(model, stream, settings, run_folder=run, recipe_text="", balancer=balancer, **options)


@pytest.mark.fault("T1")
@pytest.mark.parametrize("name", ["static", "uncertainty"])
def test_three_steps_and_three_more_equal_six(tmp_path, name):
    def short(first: int) -> Iterator[Batch]:
        yield from batches(first, 4)
        raise InterruptedError

    whole, parts = network(), network()
    assert fit(tmp_path / "whole", whole, name, 6).skipped_steps == 0
    with pytest.raises(InterruptedError):
        fit(tmp_path / "parts", network(), name, 6, short)
    fit(tmp_path / "parts", parts, name, 6, resume=True)
    assert all(torch.equal(value, parts.state_dict()[key]) for key, value in whole.state_dict().items())
    one, other = (checkpoint.load(tmp_path / folder).weights for folder in ("whole", "parts"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_every_parameter_takes_part_whatever_is_labeled():
    """DistributedDataParallel waits for a gradient of every parameter."""
    for batch in (next(batches(0)), next(batches(1))):
        model = network().train()
        found = distributed.LossFunction(model)(batch)
        counts = {name: sum(a is not None for a in batch.annotations[name]) for name in found.terms}
        joint = distributed.reduce_losses(found, counts, {})
        compute_gradients(build_balancer(BALANCERS["static"].Config(), tuple(TASKS)), model, found, joint, 0)
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
