"""A tiny network with two tasks, and data that are a function of the step: what the engine's tests train.

`work` is for processes that tests kill; as a script, the file is for torchrun.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from commands import python_path
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from perception.checkpoint import has_checkpoints
from perception.engine import distributed
from perception.engine.evaluate import Evaluation, evaluate
from perception.engine.step import Training, take_step
from perception.engine.train import TrainConfig, train
from perception.metrics.classification import ClassificationMetric
from perception.metrics.depth import DepthMetric
from perception.model import Losses
from perception.mtl.balancer import Space
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.mtl.schedule import FreezeConfig, Schedule, ScheduleConfig
from perception.nn.gradient_cut import Cuts
from perception.tasks import Part
from perception.types import Batch, DenseMap, Frame, ImageLabel, TaskSpec

TASKS = ("depth", "classification")
SIZE = (16, 24)
RECIPE = "name: stub\n"
CLASSES = ("dark", "bright")


class DepthHead(nn.Module):
    """``usual``: the running mean of the labels' means, of which a rank without labels knows nothing by itself."""

    score, score_sign, auxiliary = "abs_rel", -1, False
    statistics = ("usual",)
    usual: Tensor
    spec = TaskSpec("depth", "dense", ("depth",), (), "m", (0.1, 10.0))

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.output = nn.Conv2d(8, 1, 1)
        self.register_buffer("usual", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.norm(features)).exp()[:, 0]

    def metric(self) -> DepthMetric:
        return DepthMetric((0.1, 10.0))


class ClassificationHead(nn.Module):
    score, score_sign, auxiliary = "top1", 1, False
    spec = TaskSpec("classification", "label", ("probabilities",), CLASSES)

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.output = nn.Linear(8, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.drop(features.mean((2, 3))))

    def metric(self) -> ClassificationMetric:
        return ClassificationMetric(CLASSES)


PARTS = {"depth": ("error", "mean"), "classification": ("entropy",)}


def _depth_parts(output: Tensor, target: DenseMap) -> dict[str, Part]:
    """One part is a mean over pixels, the other over pictures: ranks that join means would get both wrong."""
    error = (output - target.values)[target.valid]
    return {
        "error": Part(error.abs().sum(), torch.tensor(float(len(error)))),
        "mean": Part(error.mean() ** 2, torch.ones(())),
    }


def _classification_parts(output: Tensor, target: ImageLabel) -> dict[str, Part]:
    return {"entropy": Part(nn.functional.cross_entropy(output, target.values), torch.ones(()))}


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

    def loss_parts(self, batch: Batch, tasks: Collection[str] | None = None, divided: bool = False) -> Losses:
        cuts = Cuts()
        features = self.backbone(batch.images.to(self.backbone[0].weight.dtype) / 255)
        features = cuts.divide(features) if divided else features
        streams = {name: {1: features} for name in self.tasks if tasks is None or name in tasks}
        streams = cuts.streams(streams) if divided else streams
        parts = {}
        for name, losses in (("depth", _depth_parts), ("classification", _classification_parts)):
            if tasks is not None and name not in tasks:
                continue
            output = self.tasks[name](streams[name][1])
            pairs = zip(output, batch.annotations[name], strict=True)
            found = [losses(own, target) for own, target in pairs if target is not None]
            if name == "depth" and found and self.training:
                known = [target.values.float().mean() for target in batch.annotations[name] if target is not None]
                usual = self.tasks["depth"].usual
                usual.lerp_(torch.stack(known).mean().to(usual), 0.1)
            parts[name] = {
                key: Part(
                    torch.stack([own[key].total for own in found]).sum(),
                    torch.stack([own[key].count for own in found]).sum(),
                )
                if found
                else Part(output.sum() * 0.0, torch.zeros(()))
                for key in PARTS[name]
            }
        return Losses(parts, (features,), {}, cuts if divided else None)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.backbone.parameters()

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.backbone[3].parameters()

    def late_parameters(self) -> Iterator[nn.Parameter]:
        return self.backbone[1:].parameters()

    def own_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

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
        depth = DenseMap(convert(values), convert(random.random(SIZE) < 0.2 + 0.2 * (n % 4)))
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


def balancer(name: str = "static", **settings):
    return build_balancer(BALANCERS[name].Config(**settings), TASKS)


def config(**changes) -> TrainConfig:
    defaults = {
        "steps": 20,
        "batch_size": 4,
        "lr": 1e-2,
        "warmup_steps": 3,
        "precision": "float32",
        "tensorboard": False,
    }
    return TrainConfig(
        **{**defaults, "log_every": 3, "look_every": 2, "evaluate_every": 8, "checkpoint_every": 4, **changes}
    )


def share(folder: Path) -> None:
    """Saves the updates of this rank, for `on_ranks`."""
    moved = {f"{name} {space}": updates(name, space) for name, space in VARIANTS}
    moved["schedule"] = scheduled(folder / "schedule")
    moved["metrics"] = measure(network()).metrics
    moved["apart"] = scheduled(folder / "apart", sync_batchnorm=False)
    torch.save(moved, folder / f"rank{distributed.rank()}.pt")


def on_ranks(function: Callable[[Path], None], world: int, folder: Path) -> list[Any]:
    """What a function saved as ``rank<r>.pt`` on each of several ranks, started as torchrun starts them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    before, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH", ""), python_path(Path(__file__).parent)
    started = [
        context.Process(target=_rank, args=(function, rank, world, port, folder), daemon=True) for rank in range(world)
    ]
    try:
        for process in started:
            process.start()
    finally:
        os.environ["PYTHONPATH"] = before
    for process in started:
        process.join(240)
        assert process.exitcode == 0
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


def _rank(function: Callable[[Path], None], rank: int, world: int, port: int, folder: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    with distributed.session("cpu"):
        function(folder)


def work(
    run: Path,
    *,
    steps: int = 20,
    workers: int = 0,
    every: int = 4,
    pause: float = 0.0,
    sparse: bool = False,
    looking: float = 0.0,
) -> Network:
    """Train in this process, from the newest checkpoint if there is one.

    pause, looking: seconds before each batch of training, and within each evaluation
    """

    def paced(first: int) -> Iterator[Batch]:
        for batch in batches(first, workers=workers, steps=steps, sparse=sparse):
            time.sleep(pause)
            yield batch

    def measured(model: nn.Module) -> Evaluation:
        def slowly() -> Iterator[Batch]:
            for batch in validation():
                if looking:
                    (run / "looking").touch()
                time.sleep(looking / 4)
                yield batch

        return evaluate(model, slowly())

    model, settings = network(), config(steps=steps, checkpoint_every=every, threads=1)
    resume = has_checkpoints(run)
    options = {"run": run, "recipe": RECIPE, "evaluate": measured, "resume": resume}
    train(model, paced, settings, balancer=balancer("uncertainty"), **options)
    return model


VARIANTS = [
    (name, space)
    for name, kind in BALANCERS.items()
    for space in (get_args(Space) if "space" in kind.Config.__dataclass_fields__ else (None,))
]
"""Every balancer in every space of gradients."""


def updates(name: str, space: str | None, steps: int = 3) -> dict[str, Tensor]:
    """Network and balancer after a few steps of gradient descent on seven pictures each, which the ranks share.

    In training mode, BatchNorm on; without dropout, which each rank draws for itself. The numbers are float64, whose
    sums hardly depend on their order.
    """
    model = network().train().double()
    model.tasks["classification"].drop = nn.Identity()
    weights = balancer(name, **({"space": space} if space else {}))
    numbers = descend(model, weights, batches(0, size=7, sparse=True, steps=steps))
    numbers |= {**model.state_dict(), **dict(weights.named_parameters())}
    del numbers["tasks.depth.usual"]  # a mean of the ranks' means, not of their pictures
    return numbers


def descend(model: nn.Module, weights: Any, stream: Iterable[Batch]) -> dict[str, Tensor]:
    """Steps of gradient descent as the engine takes them, each looked at and logged; what they logged."""
    distributed.synchronise(model)
    optimizer = torch.optim.SGD([{"params": [*model.parameters(), *weights.parameters()], "scale": 1.0}], lr=0.1)
    training = Training(model, weights, optimizer, ModelEmaV3(model))
    losses_of = distributed.LossesOf(model)
    settings = {"lr": 0.1, "clip_norm": 0.0, "precision": "float32", "flags": {}, "with_weights": True, "look": True}
    numbers = {}
    for batch in stream:
        step = take_step(training, losses_of, batch, **settings)
        assert not step.problem
        numbers |= {f"{training.step}/{key}": torch.tensor(v) for key, v in {**step.values, **step.weights}.items()}
    return numbers


def scheduled(run: Path, **changes: Any) -> dict[str, Tensor]:
    """The network after a training in which tasks take turns by their progress, join late and parts rest.

    float64, without dropout (each rank draws its own)
    """
    model = network().double()
    model.tasks["classification"].drop = nn.Identity()
    freeze = (FreezeConfig(part="backbone", start=3, stop=6), FreezeConfig(part="depth", start=5, stop=7))
    planned = Schedule(ScheduleConfig(turns="progress", join={"depth": 2}, freeze=freeze), TASKS)
    settings = config(steps=12, batch_size=6, evaluate_every=0, lr=0.05, warmup_steps=0, **changes)

    def stream(first: int) -> Iterator[Batch]:
        return batches(first, size=6, sparse=True)

    train(model, stream, settings, run=run, recipe=RECIPE, balancer=balancer("upgrad"), schedule=planned)
    return model.state_dict()


def main() -> None:
    """Under torchrun: everything that `test_distributed` compares with one process, saved for each rank."""
    run = Path(sys.argv[1])
    torch.set_num_threads(1)
    with distributed.session("cpu"):
        moved = {f"{name} {space}": updates(name, space) for name, space in VARIANTS}
        found = measure(network())
        model = work(run, sparse=True)
        result = {
            "updates": moved,
            "metrics": found.metrics,
            "model": model.state_dict(),
            "pictures": found.pictures,
        }
        torch.save(result, run / f"rank{distributed.rank()}.pt")


if __name__ == "__main__":
    main()
