"""A small network with every kind of output, exported once for all deployment tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from perception.types import TaskSpec

CLASSES = ("car", "bike", "sign")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests leave the user's cache of parsed label files alone, and so do the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERCEPTION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def small_network():
    """A randomly initialised network with the interface of `perception.model.Perception`; untrained but not trivial."""
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import interpolate

    from perception.ops.nms import select

    class SmallNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Module()
            self.backbone.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255)
            self.backbone.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255)
            self.tasks = {"detection": SimpleNamespace(config=SimpleNamespace(iou_threshold=0.6))}
            widths = (3, 16, 24, 32)
            self.trunk = nn.ModuleList(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(widths)
            )
            self.boxes, self.scores = nn.Conv2d(32, 4, 1), nn.Conv2d(32, len(CLASSES), 1)
            self.pixels, self.distance = nn.Conv2d(24, 4, 1), nn.Conv2d(24, 1, 1)
            self.label = nn.Linear(32, 2)

        @property
        def specs(self) -> dict[str, TaskSpec]:
            return {
                spec.name: spec
                for spec in (
                    TaskSpec("detection", "instances", ("boxes", "scores", "labels"), CLASSES),
                    TaskSpec("segmentation", "dense", ("label_map",), ("road", "sky", "car", "other")),
                    TaskSpec("depth", "dense", ("depth",), (), "m", (0.5, 80.0), 512.0),
                    TaskSpec("classification", "label", ("probabilities",), ("day", "night")),
                )
            }

        def predict(self, images: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
            x = (images.float() - self.backbone.mean) / self.backbone.std
            levels = []
            for stage in self.trunk:
                x = stage(x)
                levels.append(x)
            size = images.shape[2:]
            middle, last = levels[1], levels[2]
            found = {}
            if tasks is None or "detection" in tasks:
                found |= self._detect(last)
            if tasks is None or "segmentation" in tasks:
                logits = interpolate(self.pixels(middle), size=size, mode="bilinear")
                found["segmentation.label_map"] = logits.argmax(1).to(torch.uint8)
            if tasks is None or "depth" in tasks:
                depth = interpolate(self.distance(middle), size=size, mode="bilinear")[:, 0]
                found["depth.depth"] = 0.5 * 160 ** depth.sigmoid()
            if tasks is None or "classification" in tasks:
                found["classification.probabilities"] = self.label(last.mean((2, 3))).softmax(1)
            return found

        def _detect(self, features: Tensor) -> dict[str, Tensor]:
            height, width = features.shape[2:]
            y, x = torch.meshgrid(torch.arange(height) * 8.0, torch.arange(width) * 8.0, indexing="ij")
            centres = torch.stack([x, y, x, y]) + 4
            sides = self.boxes(features).exp() * 12 * torch.tensor([-1.0, -1, 1, 1])[:, None, None]
            boxes = (centres + sides).flatten(2).transpose(1, 2)
            scores, labels = self.scores(features).sigmoid().flatten(2).transpose(1, 2).max(2)
            top = scores.sort(dim=1, descending=True, stable=True).indices[:, :200]
            boxes = boxes.gather(1, top[:, :, None].expand(-1, -1, 4))
            scores, labels = scores.gather(1, top), labels.gather(1, top)
            found = select(boxes, scores * (scores > 0.3), labels, 0.6, 100)
            return dict(zip(("detection.boxes", "detection.scores", "detection.labels"), found, strict=True))

    torch.manual_seed(0)
    network = SmallNetwork()
    with torch.no_grad():  # statistics of a real pass, so that activations have a spread
        network.train()
        for _ in range(20):
            network.predict(torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8))
        for module in (network.scores, network.pixels, network.distance):
            module.weight.mul_(8)
    return network.eval()


@pytest.fixture(scope="session")
def exported(small_network, tmp_path_factory) -> Path:
    """The small network as an ONNX file. Read only: copy it to change it."""
    from perception.deploy.export import export

    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export(small_network, path, size=(96, 160), sizes=((96, 160), (64, 64)), batches=(1, 2))
    return path
