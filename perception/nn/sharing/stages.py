"""Run a backbone stage by stage, so that the features between the stages can be modified."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from timm.models import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from torch import Tensor, nn

from perception.nn.backbone import Backbone


def run_in_stages(backbone: Backbone, images: Tensor) -> Generator[tuple[int, Tensor], Tensor, None]:
    """Yield (stride, features [B, C, H / stride, W / stride]) at each level of the backbone, the finest first.

    The next stage reads the features that are sent back. If timm runs a backbone only as a whole (plain ViTs), all
    levels are computed first, and no stage reads what is sent back.
    """
    steps = list(_iterate_layers(backbone.body))
    if not steps:
        for stride, features in backbone(images).items():
            yield stride, features
        return
    level, last = 0, backbone.channels_last
    x = backbone.normalize(images)
    for step, feature in steps:
        x = step(x)
        if feature is not None and feature in backbone.feature_indices:
            stride = backbone.strides[level]
            x = yield stride, x.permute(0, 3, 1, 2) if last else x
            x = x.permute(0, 2, 3, 1) if last else x
            level += 1


def _iterate_layers(body: nn.Module) -> Iterator[tuple[Callable[[Tensor], Tensor], int | None]]:
    """Yield the layers of a timm feature extractor in order, each with the index of its output feature, if any."""
    if isinstance(body, FeatureListNet):
        taken = list(body.return_layers)
        for name, layer in body.items():
            yield layer, taken.index(name) if name in taken else None
    elif isinstance(body, EfficientNetFeatures | MobileNetV3Features) and body.feature_hooks is None:
        plain: Any = body
        number = {entry["stage"]: entry["index"] for entry in plain.feature_info.get_dicts()}
        yield plain.conv_stem, None
        yield plain.bn1, None if hasattr(plain, "act1") else number.get(0)
        if hasattr(plain, "act1"):
            yield plain.act1, number.get(0)
        for stage, block in enumerate(plain.blocks, start=1):
            yield block, number.get(stage)
