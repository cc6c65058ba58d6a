"""How often the losses of a step make the host wait for the device: each time the GPU runs dry."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import tiny_network
import torch
from sharing_networks import CONFIGS, SIZE, build_network
from timm.utils.model_ema import ModelEmaV3
from torch.utils._python_dispatch import TorchDispatchMode

from perception.engine import distributed
from perception.engine.step import take_step
from perception.engine.train_state import TrainState
from perception.mtl.schedule import TaskSchedule, TaskScheduleConfig
from perception.tasks import Task, sum_loss_terms
from perception.types import Camera, DenseMap, ImageLabel, Instances

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
"""Operators whose result, or its size, goes to the host."""


class Waits(TorchDispatchMode):
    """Counts, on any device, what would wait on a GPU: reads by the host, indexing by masks (whose size it must know),
    and tensors that it makes of its own numbers, such as lists of indices (which it copies and waits for)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in READS or (name == "repeat_interleave" and "output_size" not in (kwargs or {})):
            self.found["reads"] += 1
        if name == "lift_fresh":
            self.found["made by the host"] += 1
        if name in ("index", "index_put", "index_put_"):
            self.found["reads"] += any(index is not None and index.dtype == torch.bool for index in args[1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda x: x.sum().item(), (1, 0)),
        (lambda x: bool(x.any()), (1, 0)),
        (lambda x: x[x > 0], (1, 0)),
        (lambda x: x.masked_fill_(x > 0, 1.0), (0, 0)),
        (lambda x: x.nonzero(), (1, 0)),
        (lambda x: x.unique(), (1, 0)),
        (lambda x: x.long().bincount(), (1, 0)),
        (lambda x: x[[0, 2]], (0, 1)),
        (lambda x: x * torch.tensor([1.0, 2, 3]), (0, 1)),
        (lambda x: torch.stack([x[0], x[2]]) * 2.0 + x.new_full((), 3.0), (0, 0)),
    ],
)
def test_what_waits_is_counted(run, expected):
    x = torch.arange(3.0)
    with Waits() as mode:
        run(x)
    assert (mode.found["reads"], mode.found["made by the host"]) == expected


def targets() -> dict[str, list[Any]]:
    """Of four images, of which one is not labeled; in detection with regions to ignore and classes not labeled."""
    valid = torch.ones(SIZE, dtype=torch.bool)
    valid[:8] = False
    boxes = torch.tensor([[8.0, 8, 40, 40], [30, 20, 90, 60], [50, 2, 70, 30]])
    labels, ignored = torch.tensor([0, 2, 1]), torch.tensor([False, False, True])
    instances = Instances(boxes, labels)
    part = Instances(boxes, labels, ignore=ignored, labeled_classes=torch.tensor([True, False, True]))
    columns = DenseMap(torch.arange(SIZE[1]).expand(SIZE) * 3 // SIZE[1], valid)
    ramp = DenseMap(torch.linspace(4, 30, SIZE[0])[:, None].repeat(1, SIZE[1]), valid)
    label = ImageLabel(torch.eye(3)[1])
    return {
        "detection": [instances, None, part, instances],
        "segmentation": [columns, columns, None, columns],
        "depth": [ramp, None, ramp, ramp],
        "classification": [label, label, label, None],
    }


ALLOWED = {"detection": 4, "segmentation": 1, "depth": 0, "classification": 0}
"""Of the loss and its backward pass: detection lists the objects that count, the pairs of objects and cells, and cuts
these down twice; Dice lists the classes there are. They were 15, 4, 2 and 1, and detection's grew with the batch."""


def waits(task: Task, given: list[Any]) -> Counter[str]:
    generator = torch.Generator().manual_seed(0)
    sizes = {s: (len(given), 48 if s == 4 else 96, SIZE[0] // s, SIZE[1] // s) for s in (4, 8, 16, 32)}
    raw = task({s: torch.randn(shape, generator=generator) for s, shape in sizes.items()})
    with Waits() as mode:
        sum_loss_terms(task.total_loss_terms(raw, given, [Camera(100, 100, 48, 32)] * len(given))).backward()
    return mode.found


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loss_waits_as_seldom_as_it_can_whatever_the_batch(name):
    task = build_network().train().tasks[name]
    for given in (targets()[name], targets()[name] * 3):
        assert waits(task, given).total() == ALLOWED[name]
    assert waits(task, targets()[name][:1]).total() <= ALLOWED[name]


def test_a_step_of_the_engine_waits_twice_beside_the_losses(monkeypatch):
    """Once for what decides whether there is a backward pass, once for what decides whether there is an update."""
    reads: list[int] = []
    listed = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(1) or listed(tensor))
    network = tiny_network.build_network()
    balancer = tiny_network.make_balancer("uncertainty")
    optimizer = torch.optim.SGD([{"params": [*network.parameters(), *balancer.parameters()], "scale": 1.0}], lr=0.1)
    plan = TaskSchedule(TaskScheduleConfig(), tuple(network.tasks))
    training = TrainState(network, balancer, plan, optimizer, ModelEmaV3(network))
    losses_of = distributed.LossFunction(network)
    batch = next(tiny_network.make_batches(0))
    options = {"lr": 0.1, "clip_norm": 1.0, "precision": "float32", "flags": {}, "with_weights": False}
    with Waits() as losses:
        torch.stack([sum_loss_terms(parts) for parts in losses_of(batch).terms.values()]).sum().backward()
    network.zero_grad()
    reads.clear()
    with Waits() as whole:
        assert not take_step(training, losses_of, batch, **options).problem
    assert len(reads) + whole.found["reads"] - losses.found["reads"] == 2
