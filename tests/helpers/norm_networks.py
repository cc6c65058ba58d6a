"""Real small networks that ranks train together, on images that are labeled unlike each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tiny_network
import torch
from sharing_networks import CONFIGS, SIZE, noise_images
from torch import Tensor, nn

from perception.engine import distributed
from perception.engine.evaluate import Evaluation, evaluate
from perception.export.onnx_model import OnnxModel
from perception.model import ModelConfig, MultiTaskModel
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.nn.backbone import BackboneConfig
from perception.nn.necks import NECKS
from perception.nn.norm import BatchNormConfig, PerSourceBatchNormConfig
from perception.nn.sharing import SHARINGS
from perception.ops.image import compute_letterbox
from perception.types import Batch, Camera, DenseMap, ImageLabel, Instances

SOURCES = ("boxes", "maps")
PARTS: dict[str, dict[str, Any]] = {
    "fpn": {"neck": NECKS["fpn"].Config()},
    "pan": {"neck": NECKS["pan"].Config()},
    "experts": {"sharing": SHARINGS["experts"].Config(router_noise=0.0)},  # each image draws its own, as with dropout
    "experts by task": {"sharing": SHARINGS["experts"].Config(routing="task")},  # one draw for all images of all ranks
    "per_source": {"norm": PerSourceBatchNormConfig()},
}
VARIANTS = [
    *((part, *method) for part in PARTS for method in (("static", None), ("upgrad", "all_shared"))),
    ("fpn", "famo", None),
    ("experts", "pcgrad", "features"),
]


def world_sizes(variant: tuple[str, str, str | None]) -> tuple[int, ...]:
    """How many ranks do it."""
    return (2, 3) if variant[1] == "static" else (2,)


def build_network(part: str = "fpn", **changes: Any) -> MultiTaskModel:
    """In training mode, float64 but for the heads' outputs, without dropout, which ranks draw for themselves."""
    torch.manual_seed(0)
    chosen = {"norm": BatchNormConfig(), **PARTS[part], **changes}
    config = ModelConfig(backbone=BackboneConfig(name="test_efficientnet", weights="none"), **chosen)
    model = MultiTaskModel(config, CONFIGS, sources=SOURCES).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def labels_of(n: int) -> tuple[str, dict[str, Any]]:
    """Source and labels of image n. Even ones have boxes, at times none, and a class; odd ones have maps."""
    if n % 2 == 0:
        boxes = torch.tensor([[8.0, 8, 40, 40], [30, 20, 90, 60]])[: n % 3]
        label = ImageLabel(torch.eye(3)[n % 3]) if n % 4 else None
        return "boxes", {"detection": Instances(boxes, torch.tensor([0, 2])[: n % 3]), "classification": label}
    valid = torch.ones(SIZE, dtype=torch.bool)
    depth = DenseMap(torch.linspace(4, 30 + n, SIZE[0])[:, None].repeat(1, SIZE[1]), valid)
    return "maps", {"segmentation": DenseMap(torch.arange(SIZE[1]).expand(SIZE) * 3 // SIZE[1], valid), "depth": depth}


def make_batch(numbers: range | list[int]) -> Batch:
    known = [labels_of(n) for n in numbers]
    images = torch.cat([noise_images(1, seed=n) for n in numbers])
    annotations = {task: [labels.get(task) for _, labels in known] for task in CONFIGS}
    sources, count = [source for source, _ in known], len(known)
    camera = [Camera(100, 100, 48, 32)] * count
    return Batch(images, annotations, camera, [None] * count, [str(n) for n in numbers], sources)  # type: ignore


def make_batches(size: int, steps: int = 3, first: int = 0) -> Iterator[Batch]:
    """This rank's share of each step's images: on two ranks, one has all boxes and the other all maps, in turn."""
    rank, world = distributed.rank(), distributed.world_size()
    for step in range(first, first + steps):
        yield make_batch(range(step * size + rank, (step + 1) * size, world))


def make_balancer(name: str = "static", space: str | None = None) -> Any:
    return build_balancer(BALANCERS[name].Config(**({"space": space} if space else {})), tuple(CONFIGS))


def train_updates(part: str, name: str, space: str | None) -> dict[str, Tensor]:
    """What a few steps changed of the network, and what they logged.

    A penalty is a mean of the ranks' means, as of one process only where they share evenly.
    """
    model = build_network(part)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    # Heads return float32: at some kinks of the losses one rounding decides, as in the third step of experts from 0.
    given = make_batches(6, first=4) if "experts" in part else make_batches(5)
    numbers = tiny_network.gradient_descent(model, make_balancer(name, space), given)
    return {**numbers, **{key: value - start[key] for key, value in model.state_dict().items()}}


def guess_outputs(images: np.ndarray) -> dict[str, np.ndarray]:
    """What a network might say of images: near their labels, each wrong in its own way."""
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
            "segmentation.mask": np.where(chance.random(SIZE) < 0.3, 1, classes).astype(np.uint8),
            "depth.depth": np.float32(depth),
            "depth.error": np.float32(chance.uniform(0.05, 0.5, SIZE)),
            "classification.probabilities": np.float32(chance.dirichlet(np.ones(3))),
        }
        for key, value in said.items():
            found.setdefault(key, []).append(value)
    return {key: np.stack(values) for key, values in found.items()}


def evaluate_network(count: int = 11, size: int = 2) -> Evaluation:
    """Every number of all four tasks, over ``count`` images in batches of ``size``, which the ranks share."""
    own = list(range(distributed.rank(), count, distributed.world_size()))
    frame = compute_letterbox(SIZE, SIZE)
    whole = (make_batch(own[start : start + size]) for start in range(0, len(own), size))
    ready = (dataclasses.replace(each, transforms=[frame] * len(each)) for each in whole)
    return evaluate(OnnxModel(build_network().eval(), guess_outputs), map(to_arrays, ready))


def to_arrays(batch: Batch) -> Batch:
    """With labels as evaluations have them."""

    def plain(value: Any) -> Any:
        if not dataclasses.is_dataclass(value):
            return value.numpy() if isinstance(value, Tensor) else value
        return dataclasses.replace(value, **{f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)})

    return dataclasses.replace(batch, annotations={k: [*map(plain, own)] for k, own in batch.annotations.items()})


def save_results(folder: Path) -> None:
    """Saves the updates and the metrics of this rank, for `tiny_network.on_ranks`."""
    world = distributed.world_size()
    found: dict[str, Any] = {" ".join(map(str, v)): train_updates(*v) for v in VARIANTS if world in world_sizes(v)}
    found["metrics"] = evaluate_network().metrics
    torch.save(found, folder / f"rank{distributed.rank()}.pt")
