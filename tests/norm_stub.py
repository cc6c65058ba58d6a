"""Real small networks that ranks train together, on pictures that are labelled unlike each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_stub
import torch
from sharing_networks import CONFIGS, SIZE, pictures
from torch import Tensor, nn

from perception.engine import distributed
from perception.model import ModelConfig, Perception
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.nn.backbone import BackboneConfig
from perception.nn.necks import NECKS
from perception.nn.norm import BatchConfig, PerSourceConfig
from perception.nn.sharing import SHARINGS
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


def share(folder: Path) -> None:
    """Saves the updates of this rank, for `engine_stub.on_ranks`."""
    world = distributed.world()
    found = {" ".join(map(str, variant)): updates(*variant) for variant in VARIANTS if world in worlds(variant)}
    torch.save(found, folder / f"rank{distributed.rank()}.pt")
