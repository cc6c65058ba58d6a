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
from command_line import python_path
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from perception.checkpoint import has_checkpoints
from perception.engine import distributed
from perception.engine.evaluate import Evaluation, evaluate
from perception.engine.step import take_step
from perception.engine.train import train
from perception.engine.train_config import TrainConfig
from perception.engine.train_state import TrainState
from perception.metrics.classification import ClassificationMetric
from perception.metrics.depth import DepthMetric
from perception.model import LossOutput
from perception.mtl.balancer import GradientSpace
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.mtl.schedule import FreezeConfig, TaskSchedule, TaskScheduleConfig
from perception.nn.gradient_cut import GraphCuts
from perception.tasks import LossTerm
from perception.types import Batch, DenseMap, ImageLabel, ImageTransform, TaskSpec

TASKS = ("depth", "classification")
SIZE = (16, 24)
RECIPE = "name: stub\n"
CLASSES = ("dark", "bright")


class DepthHead(nn.Module):
    """``usual``: the running mean of the labels' means, of which a rank without labels knows nothing by itself."""

    main_metric, main_metric_sign, is_auxiliary = "abs_rel", -1, False
    running_statistics = ("usual",)
    usual: Tensor
    spec = TaskSpec("depth", "dense", ("depth",), (), "m", (0.1, 10.0))

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.output = nn.Conv2d(8, 1, 1)
        self.register_buffer("usual", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.norm(features)).exp()[:, 0]

    def create_metric(self) -> DepthMetric:
        return DepthMetric((0.1, 10.0))


class ClassificationHead(nn.Module):
    main_metric, main_metric_sign, is_auxiliary = "top1", 1, False
    spec = TaskSpec("classification", "label", ("probabilities",), CLASSES)

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.output = nn.Linear(8, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.drop(features.mean((2, 3))))

    def create_metric(self) -> ClassificationMetric:
        return ClassificationMetric(CLASSES)


PARTS = {"depth": ("error", "mean"), "classification": ("entropy",)}


def _depth_parts(output: Tensor, target: DenseMap) -> dict[str, LossTerm]:
    """One part is a mean over pixels, the other over images: ranks that join means would get both wrong."""
    error = (output - target.values)[target.valid]
    return {
        "error": LossTerm(error.abs().sum(), torch.tensor(float(len(error)))),
        "mean": LossTerm(error.mean() ** 2, torch.ones(())),
    }


def _classification_parts(output: Tensor, target: ImageLabel) -> dict[str, LossTerm]:
    return {"entropy": LossTerm(nn.functional.cross_entropy(output, target.values), torch.ones(()))}


class Network(nn.Module):
    """The interface of `perception.model.MultiTaskModel` that the engine uses."""

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

    def compute_loss_terms(
        self, batch: Batch, tasks: Collection[str] | None = None, cut_graph: bool = False
    ) -> LossOutput:
        cuts = GraphCuts()
        features = self.backbone(batch.images.to(self.backbone[0].weight.dtype) / 255)
        features = cuts.cut_trunk(features) if cut_graph else features
        streams = {name: {1: features} for name in self.tasks if tasks is None or name in tasks}
        streams = cuts.cut_pyramids(streams) if cut_graph else streams
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
                key: LossTerm(
                    torch.stack([own[key].total for own in found]).sum(),
                    torch.stack([own[key].count for own in found]).sum(),
                )
                if found
                else LossTerm(output.sum() * 0.0, torch.zeros(()))
                for key in PARTS[name]
            }
        return LossOutput(parts, (features,), {}, cuts if cut_graph else None)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.backbone.parameters()

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.backbone[3].parameters()

    def late_shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.backbone[1:].parameters()

    def task_specific_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def predict(self, images: Tensor, tasks: None = None) -> dict[str, Tensor]:
        found = self(images)
        return {"depth.depth": found["depth"], "classification.probabilities": found["classification"].softmax(1)}


class NoiseImages(Dataset):
    """Image n of an endless set; every third lacks depth, every fifth its class. ``sparse``: odd ones lack depth."""

    def __init__(self, tensors: bool = True, sparse: bool = False) -> None:
        self.tensors, self.sparse_depth = tensors, sparse

    def __getitem__(self, n: int) -> tuple[int, np.ndarray, DenseMap | None, ImageLabel | None]:
        random = np.random.default_rng((7, n))
        image = random.integers(0, 128 + 127 * (n % 2), (3, *SIZE), dtype=np.uint8)
        convert = torch.from_numpy if self.tensors else np.asarray
        values = (0.5 + image.mean(0) / 64).astype(np.float32)
        depth = DenseMap(convert(values), convert(random.random(SIZE) < 0.2 + 0.2 * (n % 4)))
        label = ImageLabel(convert(np.eye(2, dtype=np.float32)[n % 2]))
        return n, image, None if n % 3 == 0 or (self.sparse_depth and n % 2) else depth, None if n % 5 == 0 else label


def collate(items: list) -> Batch:
    images = torch.from_numpy(np.stack([image for _, image, _, _ in items]))
    annotations = {"depth": [depth for *_, depth, _ in items], "classification": [label for *_, label in items]}
    frame = ImageTransform(SIZE, SIZE, (0, 0, SIZE[1], SIZE[0]), (0, 0, SIZE[1], SIZE[0]))
    count = len(items)
    return Batch(images, annotations, [None] * count, [frame] * count, [f"{n}" for n, *_ in items], ["made"] * count)


def make_batches(
    first: int, *, batch_size: int = 4, workers: int = 0, steps: int = 10_000, sparse: bool = False
) -> Iterator[Batch]:
    """This rank's batches of the steps from ``first``: every world-th image of each step's ``size``."""
    rank, world = distributed.rank(), distributed.world_size()
    order = [list(range(step * batch_size + rank, (step + 1) * batch_size, world)) for step in range(first, steps)]
    context = "fork" if workers else None
    yield from DataLoader(
        NoiseImages(sparse=sparse),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context=context,
    )


def validation_batches(count: int = 7, batch_size: int = 2) -> list[Batch]:
    """This rank's share of ``count`` images, in batches of ``size``; the last one is uneven."""
    mine = list(range(1000 + distributed.rank(), 1000 + count, distributed.world_size()))
    pictures = NoiseImages(tensors=False)
    return [
        collate([pictures[n] for n in mine[start : start + batch_size]]) for start in range(0, len(mine), batch_size)
    ]


def build_network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network()


def evaluate_network(model: nn.Module) -> Evaluation:
    return evaluate(model, validation_batches())


def make_balancer(name: str = "static", **settings):
    return build_balancer(BALANCERS[name].Config(**settings), TASKS)


def train_config(**changes) -> TrainConfig:
    defaults = {
        "steps": 20,
        "batch_size": 4,
        "lr": 1e-2,
        "warmup_steps": 3,
        "precision": "float32",
        "tensorboard": False,
    }
    return TrainConfig(
        **{**defaults, "log_every": 3, "log_gradients_every": 2, "evaluate_every": 8, "checkpoint_every": 4, **changes}
    )


def save_updates(folder: Path) -> None:
    """Saves the updates of this rank, for `run_on_ranks`."""
    moved = {f"{name} {space}": train_updates(name, space) for name, space in VARIANTS}
    moved["schedule"] = train_scheduled(folder / "schedule")
    moved["metrics"] = evaluate_network(build_network()).metrics
    moved["apart"] = train_scheduled(folder / "apart", sync_batchnorm=False)
    torch.save(moved, folder / f"rank{distributed.rank()}.pt")


def run_on_ranks(function: Callable[[Path], None], world: int, folder: Path) -> list[Any]:
    """What a function saved as ``rank<r>.pt`` on each of several ranks, started as torchrun starts them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    before, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH", ""), python_path(Path(__file__).parent)
    started = [
        context.Process(target=_run_rank, args=(function, rank, world, port, folder), daemon=True)
        for rank in range(world)
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


def _run_rank(function: Callable[[Path], None], rank: int, world: int, port: int, folder: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    with distributed.process_group("cpu"):
        function(folder)


def train_network(
    run: Path,
    *,
    steps: int = 20,
    workers: int = 0,
    every: int = 4,
    batch_seconds: float = 0.0,
    sparse: bool = False,
    evaluation_seconds: float = 0.0,
) -> Network:
    """Train in this process, from the newest checkpoint if there is one.

    pause, looking: seconds before each batch of training, and within each evaluation
    """

    def paced(first: int) -> Iterator[Batch]:
        for batch in make_batches(first, workers=workers, steps=steps, sparse=sparse):
            time.sleep(batch_seconds)
            yield batch

    def measured(model: nn.Module) -> Evaluation:
        def slowly() -> Iterator[Batch]:
            for batch in validation_batches():
                if evaluation_seconds:
                    (run / "looking").touch()
                time.sleep(evaluation_seconds / 4)
                yield batch

        return evaluate(model, slowly())

    model, settings = build_network(), train_config(steps=steps, checkpoint_every=every, threads=1)
    resume = has_checkpoints(run)
    options = {"run_folder": run, "recipe_text": RECIPE, "evaluate": measured, "resume": resume}
    train(model, paced, settings, balancer=make_balancer("uncertainty"), **options)
    return model


VARIANTS = [
    (name, space)
    for name, kind in BALANCERS.items()
    for space in (get_args(GradientSpace) if "space" in kind.Config.__dataclass_fields__ else (None,))
]
"""Every balancer in every space of gradients."""


def train_updates(name: str, space: str | None, steps: int = 3) -> dict[str, Tensor]:
    """Network and balancer after a few steps of gradient descent on seven images each, which the ranks share.

    In training mode, BatchNorm on; without dropout, which each rank draws for itself. The numbers are float64, whose
    sums hardly depend on their order.
    """
    model = build_network().train().double()
    model.tasks["classification"].drop = nn.Identity()
    weights = make_balancer(name, **({"space": space} if space else {}))
    numbers = gradient_descent(model, weights, make_batches(0, batch_size=7, sparse=True, steps=steps))
    numbers |= {**model.state_dict(), **dict(weights.named_parameters())}
    del numbers["tasks.depth.usual"]  # a mean of the ranks' means, not of their images
    return numbers


def gradient_descent(model: nn.Module, balancer: Any, stream: Iterable[Batch]) -> dict[str, Tensor]:
    """Steps of gradient descent as the engine takes them, each looked at and logged; what they logged."""
    distributed.synchronize_batchnorm(model)
    optimizer = torch.optim.SGD([{"params": [*model.parameters(), *balancer.parameters()], "scale": 1.0}], lr=0.1)
    plan = TaskSchedule(TaskScheduleConfig(), TASKS)
    training = TrainState(model, balancer, plan, optimizer, ModelEmaV3(model))
    losses_of = distributed.LossFunction(model)
    settings = {
        "lr": 0.1,
        "clip_norm": 0.0,
        "precision": "float32",
        "flags": {},
        "with_weights": True,
        "log_gradients": True,
    }
    numbers = {}
    for batch in stream:
        step = take_step(training, losses_of, batch, **settings)
        assert not step.problem
        numbers |= {f"{training.step}/{key}": torch.tensor(v) for key, v in {**step.values, **step.weights}.items()}
    return numbers


def train_scheduled(run: Path, **changes: Any) -> dict[str, Tensor]:
    """The network after a training in which tasks take turns by their progress, join late and parts rest.

    float64, without dropout (each rank draws its own)
    """
    model = build_network().double()
    model.tasks["classification"].drop = nn.Identity()
    freeze = (FreezeConfig(part="backbone", start=3, stop=6), FreezeConfig(part="depth", start=5, stop=7))
    planned = TaskSchedule(TaskScheduleConfig(mode="progress", start_steps={"depth": 2}, freeze=freeze), TASKS)
    settings = train_config(steps=12, batch_size=6, evaluate_every=0, lr=0.05, warmup_steps=0, **changes)

    def stream(first: int) -> Iterator[Batch]:
        return make_batches(first, batch_size=6, sparse=True)

    train(
        model, stream, settings, run_folder=run, recipe_text=RECIPE, balancer=make_balancer("upgrad"), schedule=planned
    )
    return model.state_dict()


def main() -> None:
    """Under torchrun: everything that `test_distributed` compares with one process, saved for each rank."""
    run = Path(sys.argv[1])
    torch.set_num_threads(1)
    with distributed.process_group("cpu"):
        moved = {f"{name} {space}": train_updates(name, space) for name, space in VARIANTS}
        found = evaluate_network(build_network())
        model = train_network(run, sparse=True)
        result = {
            "updates": moved,
            "metrics": found.metrics,
            "model": model.state_dict(),
            "images": found.num_images,
        }
        torch.save(result, run / f"rank{distributed.rank()}.pt")


if __name__ == "__main__":
    main()
