"""Real small networks that ranks train together, on pictures that are labelled unlike each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_stub
import numpy as np
import torch
from sharing_networks import CONFIGS, SIZE, pictures
from torch import Tensor, nn

from perception.engine import distributed
from perception.engine.evaluate import Evaluation, evaluate
from perception.export.onnx_model import ExportedNetwork
from perception.model import ModelConfig, Perception
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.nn.backbone import BackboneConfig
from perception.nn.necks import NECKS
from perception.nn.norm import BatchConfig, PerSourceConfig
from perception.nn.sharing import SHARINGS
from perception.ops.image import letterbox_frame
from perception.types import Batch, Camera, DenseMap, ImageLabel, Instances

SOURCES = ("boxes", "maps")
PARTS: dict[str, dict[str, Any]] = {
    "fpn": {"neck": NECKS["fpn"].Config()},
    "pan": {"neck": NECKS["pan"].Config()},
    "experts": {"sharing": SHARINGS["experts"].Config(noise=0.0)},  # each picture draws its own, as with dropout
    "experts by task": {"sharing": SHARINGS["experts"].Config(route="task")},  # one draw for all pictures of all ranks
    "per_source": {"norm": PerSourceConfig()},
}
VARIANTS = [
    *((part, *method) for part in PARTS for method in (("static", None), ("upgrad", "params"))),
    ("fpn", "famo", None),
    ("experts", "pcgrad", "features"),
]


def worlds(variant: tuple[str, str, str | None]) -> tuple[int, ...]:
    """How many ranks do it."""
    return (2, 3) if variant[1] == "static" else (2,)


def network(part: str = "fpn", **changes: Any) -> Perception:
    """In training mode, float64 but for the heads' outputs, without dropout, which ranks draw for themselves."""
    torch.manual_seed(0)
    chosen = {"norm": BatchConfig(), **PARTS[part], **changes}
    config = ModelConfig(backbone=BackboneConfig(name="test_efficientnet", weights="none"), **chosen)
    model = Perception(config, CONFIGS, sources=SOURCES).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def picture(n: int) -> tuple[str, dict[str, Any]]:
    """Source and labels of picture n. Even ones have boxes, at times none, and a class; odd ones have maps."""
    if n % 2 == 0:
        boxes = torch.tensor([[8.0, 8, 40, 40], [30, 20, 90, 60]])[: n % 3]
        label = ImageLabel(torch.eye(3)[n % 3]) if n % 4 else None
        return "boxes", {"detection": Instances(boxes, torch.tensor([0, 2])[: n % 3]), "classification": label}
    valid = torch.ones(SIZE, dtype=torch.bool)
    depth = DenseMap(torch.linspace(4, 30 + n, SIZE[0])[:, None].repeat(1, SIZE[1]), valid)
    return "maps", {"segmentation": DenseMap(torch.arange(SIZE[1]).expand(SIZE) * 3 // SIZE[1], valid), "depth": depth}


def batch(numbers: range | list[int]) -> Batch:
    known = [picture(n) for n in numbers]
    images = torch.cat([pictures(1, seed=n) for n in numbers])
    annotations = {task: [labels.get(task) for _, labels in known] for task in CONFIGS}
    sources, count = [source for source, _ in known], len(known)
    camera = [Camera(100, 100, 48, 32)] * count
    return Batch(images, annotations, camera, [None] * count, [str(n) for n in numbers], sources)  # type: ignore


def batches(size: int, steps: int = 3, first: int = 0) -> Iterator[Batch]:
    """This rank's share of each step's pictures: on two ranks, one has all boxes and the other all maps, in turn."""
    rank, world = distributed.rank(), distributed.world()
    for step in range(first, first + steps):
        yield batch(range(step * size + rank, (step + 1) * size, world))


def balancer(name: str = "static", space: str | None = None) -> Any:
    return build_balancer(BALANCERS[name].Config(**({"space": space} if space else {})), tuple(CONFIGS))


def updates(part: str, name: str, space: str | None) -> dict[str, Tensor]:
    """What a few steps changed of the network, and what they logged.

    A penalty is a mean of the ranks' means, as of one process only where they share evenly.
    """
    model = network(part)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    # Heads return float32: at some kinks of the losses one rounding decides, as in the third step of experts from 0.
    given = batches(6, first=4) if "experts" in part else batches(5)
    numbers = engine_stub.descend(model, balancer(name, space), given)
    return {**numbers, **{key: value - start[key] for key, value in model.state_dict().items()}}


def guessed(images: np.ndarray) -> dict[str, np.ndarray]:
    """What a network might say of pictures: near their labels, each wrong in its own way."""
    found: dict[str, list[np.ndarray]] = {}
    for image in images:
        chance = np.random.default_rng(int(image.sum(dtype=np.int64)))
        boxes = np.array([[8, 8, 40, 40], [30, 20, 90, 60], [50, 5, 70, 30]]) + chance.uniform(-5, 5, (3, 4))
        classes = np.arange(SIZE[1]) * 3 // SIZE[1] + np.zeros((SIZE[0], 1))
        depth = np.linspace(4, 30, SIZE[0])[:, None] * np.exp(chance.normal(0, 0.2, SIZE))
        said = {
            "detection.boxes": np.float32(boxes),
            "detection.scores": np.float32(chance.uniform(0.2, 1, 3)),
            "detection.labels": np.array([0, 2, 1]),
            "segmentation.label_map": np.where(chance.random(SIZE) < 0.3, 1, classes).astype(np.uint8),
            "depth.depth": np.float32(depth),
            "depth.error": np.float32(chance.uniform(0.05, 0.5, SIZE)),
            "classification.probabilities": np.float32(chance.dirichlet(np.ones(3))),
        }
        for key, value in said.items():
            found.setdefault(key, []).append(value)
    return {key: np.stack(values) for key, values in found.items()}


def measured(count: int = 11, size: int = 2) -> Evaluation:
    """Every number of all four tasks, over ``count`` pictures in batches of ``size``, which the ranks share."""
    own = list(range(distributed.rank(), count, distributed.world()))
    frame = letterbox_frame(SIZE, SIZE)
    whole = (batch(own[start : start + size]) for start in range(0, len(own), size))
    ready = (dataclasses.replace(each, frames=[frame] * len(each)) for each in whole)
    return evaluate(ExportedNetwork(network().eval(), guessed), map(as_arrays, ready))


def as_arrays(given: Batch) -> Batch:
    """With labels as evaluations have them."""

    def plain(value: Any) -> Any:
        if not dataclasses.is_dataclass(value):
            return value.numpy() if isinstance(value, Tensor) else value
        return dataclasses.replace(value, **{f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)})

    return dataclasses.replace(given, annotations={k: [*map(plain, own)] for k, own in given.annotations.items()})


def share(folder: Path) -> None:
    """Saves the updates and the metrics of this rank, for `engine_stub.on_ranks`."""
    world = distributed.world()
    found: dict[str, Any] = {" ".join(map(str, v)): updates(*v) for v in VARIANTS if world in worlds(v)}
    found["metrics"] = measured().metrics
    torch.save(found, folder / f"rank{distributed.rank()}.pt")
