"""A tiny network with two tasks, and data that are a function of the step: what the engine's tests train.

`work` is for processes that tests kill; as a script, the file is for torchrun.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from perception.checkpoint import has_checkpoints
from perception.engine import distributed
from perception.engine.evaluate import Evaluation, evaluate
from perception.engine.train import TrainConfig, train
from perception.metrics.classification import ClassificationMetric
from perception.metrics.depth import DepthMetric
from perception.model import Losses
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.tasks import Part
from perception.types import Batch, DenseMap, Frame, ImageLabel, TaskSpec

TASKS = ("depth", "classification")
SIZE = (16, 24)
RECIPE = "name: stub\n"
CLASSES = ("dark", "bright")


class DepthHead(nn.Module):
    score, score_sign = "abs_rel", -1
    spec = TaskSpec("depth", "dense", ("depth",), (), "m", (0.1, 10.0))

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Conv2d(8, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.output(features).float().exp()[:, 0]

    def metric(self) -> DepthMetric:
        return DepthMetric((0.1, 10.0))


class ClassificationHead(nn.Module):
    score, score_sign = "top1", 1
    spec = TaskSpec("classification", "label", ("probabilities",), CLASSES)

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.output = nn.Linear(8, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.drop(features.mean((2, 3)))).float()

    def metric(self) -> ClassificationMetric:
        return ClassificationMetric(CLASSES)


def _depth_loss(output: Tensor, target: DenseMap) -> Tensor:
    return (output - target.values).abs().mean()


def _classification_loss(output: Tensor, target: ImageLabel) -> Tensor:
    return nn.functional.cross_entropy(output, target.values)


class Network(nn.Module):
    """The interface of `perception.model.Perception` that the engine uses."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(3, 8, 3, 1, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.ReLU(),
        ]
        self.backbone = nn.Sequential(*layers)
        self.tasks = nn.ModuleDict({"depth": DepthHead(), "classification": ClassificationHead()})

    @property
    def specs(self) -> dict[str, TaskSpec]:
        return {name: task.spec for name, task in self.tasks.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images.float() / 255)
        return {name: task(features) for name, task in self.tasks.items()}

    def loss_parts(self, batch: Batch) -> Losses:
        features = self.backbone(batch.images.float() / 255)
        found = {name: task(features) for name, task in self.tasks.items()}
        parts = {}
        for name, loss in (("depth", _depth_loss), ("classification", _classification_loss)):
            pairs = zip(found[name], batch.annotations[name], strict=True)
            terms = [loss(output, target) for output, target in pairs if target is not None]
            total = torch.stack(terms).sum() if terms else found[name].sum() * 0.0
            parts[name] = {"error": Part(total, torch.tensor(float(len(terms))))}
        return Losses(parts, (features,), {})

    def predict(self, images: Tensor, tasks: None = None) -> dict[str, Tensor]:
        found = self(images)
        return {"depth.depth": found["depth"], "classification.probabilities": found["classification"].softmax(1)}


class Pictures(Dataset):
    """Picture n of an endless set; every third lacks depth, every fifth its class. ``sparse``: odd ones lack depth."""

    def __init__(self, tensors: bool = True, sparse: bool = False) -> None:
        self.tensors, self.sparse = tensors, sparse

    def __getitem__(self, n: int) -> tuple[int, np.ndarray, DenseMap | None, ImageLabel | None]:
        random = np.random.default_rng((7, n))
        image = random.integers(0, 128 + 127 * (n % 2), (3, *SIZE), dtype=np.uint8)
        convert = torch.from_numpy if self.tensors else np.asarray
        values = (0.5 + image.mean(0) / 64).astype(np.float32)
        depth = DenseMap(convert(values), convert(np.ones(SIZE, bool)))
        label = ImageLabel(convert(np.eye(2, dtype=np.float32)[n % 2]))
        return n, image, None if n % 3 == 0 or (self.sparse and n % 2) else depth, None if n % 5 == 0 else label


def collate(items: list) -> Batch:
    images = torch.from_numpy(np.stack([image for _, image, _, _ in items]))
    annotations = {"depth": [depth for *_, depth, _ in items], "classification": [label for *_, label in items]}
    frame = Frame(SIZE, SIZE, (0, 0, SIZE[1], SIZE[0]), (0, 0, SIZE[1], SIZE[0]))
    count = len(items)
    return Batch(images, annotations, [None] * count, [frame] * count, [f"{n}" for n, *_ in items], ["made"] * count)


def batches(
    first: int, *, size: int = 4, workers: int = 0, steps: int = 10_000, sparse: bool = False
) -> Iterator[Batch]:
    """This rank's batches of the steps from ``first``: every world-th picture of each step's ``size``."""
    rank, world = distributed.rank(), distributed.world()
    order = [list(range(step * size + rank, (step + 1) * size, world)) for step in range(first, steps)]
    context = "fork" if workers else None
    yield from DataLoader(
        Pictures(sparse=sparse),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context=context,
    )


def validation(count: int = 7, size: int = 2) -> list[Batch]:
    """This rank's share of ``count`` pictures, in batches of ``size``; the last one is uneven."""
    mine = list(range(1000 + distributed.rank(), 1000 + count, distributed.world()))
    pictures = Pictures(tensors=False)
    return [collate([pictures[n] for n in mine[start : start + size]]) for start in range(0, len(mine), size)]


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network()


def measure(model: nn.Module) -> Evaluation:
    return evaluate(model, validation())


def balancer(name: str = "static"):
    return build_balancer(BALANCERS[name].Config(), TASKS)


def config(**changes) -> TrainConfig:
    defaults = {
        "steps": 20,
        "batch_size": 4,
        "lr": 1e-2,
        "warmup_steps": 3,
        "precision": "float32",
        "tensorboard": False,
    }
    return TrainConfig(**{**defaults, "log_every": 3, "evaluate_every": 8, "checkpoint_every": 4, **changes})


def work(
    run: Path, *, steps: int = 20, workers: int = 0, every: int = 4, pause: float = 0.0, sparse: bool = False
) -> Network:
    """Train in this process, from the newest checkpoint if there is one. ``pause``: seconds before each batch."""

    def paced(first: int) -> Iterator[Batch]:
        for batch in batches(first, workers=workers, steps=steps, sparse=sparse):
            time.sleep(pause)
            yield batch

    model, settings = network(), config(steps=steps, checkpoint_every=every, threads=1)
    resume = has_checkpoints(run)
    options = {"run": run, "recipe": RECIPE, "evaluate": measure, "resume": resume}
    train(model, paced, settings, balancer=balancer("uncertainty"), **options)
    return model


def joint_gradients(name: str) -> dict[str, Tensor]:
    """Gradients of the balanced loss over one batch of six pictures, shared by the ranks; nothing is random."""
    model, weights = network().eval(), balancer(name)
    batch = next(batches(0, size=6, sparse=True))
    losses_of = distributed.losses_of(model)  # must outlive the backward pass
    own = losses_of(batch)
    counts = {task: sum(a is not None for a in batch.annotations[task]) for task in own.parts}
    joint = distributed.joint_losses(own, counts, {})
    total = weights(joint.losses, [task for task in joint.losses if joint.labelled[task]], 0)
    total.backward()
    found = {n: p.grad for m in (model, weights) for n, p in m.named_parameters() if p.grad is not None}
    return {**found, "total": total.detach()}


def main() -> None:
    """Under torchrun: everything that `test_distributed` compares with one process, saved for each rank."""
    run = Path(sys.argv[1])
    torch.set_num_threads(1)
    with distributed.session("cpu"):
        gradients = {name: joint_gradients(name) for name in BALANCERS}
        found = measure(network())
        model = work(run, sparse=True)
        result = {
            "gradients": gradients,
            "metrics": found.metrics,
            "model": model.state_dict(),
            "pictures": found.pictures,
        }
        torch.save(result, run / f"rank{distributed.rank()}.pt")


if __name__ == "__main__":
    main()
