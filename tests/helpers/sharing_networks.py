"""Small networks of every sharing architecture and fusion, for the tests of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from perception.model import ModelConfig, MultiTaskModel
from perception.nn.backbone import BackboneConfig
from perception.nn.fusion import FUSIONS
from perception.nn.necks import NECKS
from perception.nn.sharing import SHARINGS
from perception.tasks import TASKS
from perception.types import Batch, Camera, DenseMap, ImageLabel, Instances

SIZE = (64, 96)
CLASSES = ("road", "car", "tree")
CONFIGS = {
    "detection": TASKS["detection"].Config(classes=CLASSES, num_convs=1),  # type: ignore[call-arg]
    "segmentation": TASKS["segmentation"].Config(classes=CLASSES, channels=16),  # type: ignore[call-arg]
    "depth": TASKS["depth"].Config(channels=16),  # type: ignore[call-arg]
    "classification": TASKS["classification"].Config(classes=CLASSES, channels=16),  # type: ignore[call-arg]
}
GROUPS = (("detection", "classification"), ("segmentation", "depth"))


def build_network(
    sharing: str = "hard",
    fusion: str = "none",
    tasks=tuple(CONFIGS),
    configs: Any = CONFIGS,
    neck: str = "fpn",
    **options: Any,
) -> MultiTaskModel:
    """In evaluation mode. options: of the config of the sharing architecture or the fusion that has them."""
    options.setdefault("groups", tuple(tuple(task for task in group if task in tasks) for group in GROUPS))
    kinds = {"sharing": SHARINGS[sharing].Config, "fusion": FUSIONS[fusion].Config}
    known = {name for kind in (*SHARINGS.values(), *FUSIONS.values()) for name in kind.Config.__dataclass_fields__}
    assert set(options) <= known, f"no architecture has the options {sorted(set(options) - known)}"
    chosen = {
        key: kind(**{name: value for name, value in options.items() if name in kind.__dataclass_fields__})
        for key, kind in kinds.items()
    }
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BackboneConfig(name="test_efficientnet", weights="none"), neck=NECKS[neck].Config(), **chosen
    )
    return MultiTaskModel(config, {task: configs[task] for task in tasks}).eval()


def randomize_gates(model: MultiTaskModel) -> MultiTaskModel:
    """The network with its gates, masks and statistics away from where they start, as training would leave them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                nn.init.uniform_(parameter, -1, 1)
        model.train()
        for _ in range(3):
            model(noise_images(4))
    return model.eval()


def noise_images(count: int = 2, seed: int = 0, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, *size), np.uint8))


def make_batch(*labelled: str) -> Batch:
    """Two images that are labeled for these tasks (all by default)."""
    valid = torch.ones(SIZE, dtype=torch.bool)
    targets = {
        "detection": Instances(torch.tensor([[8.0, 8, 40, 40], [30, 20, 90, 60]]), torch.tensor([0, 2])),
        "segmentation": DenseMap(torch.arange(SIZE[1]).expand(SIZE) * 3 // SIZE[1], valid),
        "depth": DenseMap(torch.linspace(4, 30, SIZE[0])[:, None].repeat(1, SIZE[1]), valid),
        "classification": ImageLabel(torch.eye(3)[1]),
    }
    annotations = {name: [target if name in (labelled or targets) else None] * 2 for name, target in targets.items()}
    return Batch(noise_images(), annotations, [Camera(100, 100, 48, 32)] * 2, [None] * 2, ["a", "b"], ["s", "s"])
