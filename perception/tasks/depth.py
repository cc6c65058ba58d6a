"""Metric depth: metres for every pixel, whatever the focal length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.config import configuration
from perception.metrics.depth import DepthMetric
from perception.nn.decoder import DenseDecoder
from perception.ops.losses import gradient_match, silog
from perception.tasks.task import Part, Pyramid, Task
from perception.types import Annotation, Camera, DenseMap, TaskSpec


@configuration
class DepthConfig:
    """limits: nearest and farthest distance in metres that is trained, predicted and evaluated.

    canonical_focal: the network sees every picture as if taken with this focal length (pixels of the input): something
        at 10 m through a lens twice as long looks like 5 m. 0 = focal lengths are not used.
    default_focal: focal length, as a fraction of the picture's width, assumed for pictures without intrinsics. Give
        intrinsics in training: without them random zoom blurs what a metre looks like.
    """

    type: Literal["depth"] = "depth"
    limits: tuple[float, float] = (0.5, 80.0)
    canonical_focal: float = 500.0
    default_focal: float = 1.0
    strides: tuple[int, ...] = (4, 8, 16, 32)
    width: int = 64
    loss_stride: int = 2
    silog_weight: float = 1.0
    log_weight: float = 0.5
    gradient_weight: float = 0.5


class Raw(NamedTuple):
    """log_depth [B, 1, H / s, W / s]: log of metres through the canonical lens, s = the finest stride."""

    log_depth: Tensor


class Depth(Task):
    """Log depth by scale-invariant, absolute and gradient terms."""

    Config = DepthConfig
    score = "abs_rel"
    score_sign = -1

    def __init__(self, name: str, config: DepthConfig, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.config = config
        self.strides = config.strides
        self.spec = TaskSpec(
            name,
            "dense",
            ("depth",),
            unit="m",
            limits=config.limits,
            canonical_focal=config.canonical_focal,
            default_focal=config.default_focal,
        )
        self.parts = ("silog", "log", "gradient")
        self.decoder = DenseDecoder({s: channels[s] for s in config.strides}, config.width, 1)
        self.middle = 0.5 * (math.log(config.limits[0]) + math.log(config.limits[1]))

    def forward(self, pyramid: Pyramid) -> Raw:
        return Raw(self.decoder(pyramid).float() + self.middle)

    def losses(
        self, raw: Raw, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, Part]:
        rows, truths, masks = [], [], []
        stride, (near, far) = self.config.loss_stride, self.config.limits
        for i, (target, camera) in enumerate(zip(targets, cameras, strict=True)):
            if isinstance(target, DenseMap):
                metres = target.values[::stride, ::stride]
                rows.append(i)
                masks.append(target.valid[::stride, ::stride] & (metres >= near) & (metres <= far))
                focal = self._focal_ratio(camera, target.values.shape[-1])
                truths.append(metres.clamp(near, far).log() - math.log(focal))
        truth, valid = torch.stack(truths), torch.stack(masks)
        log_depth = F.interpolate(raw.log_depth[rows], size=truth.shape[-2:], mode="bilinear", align_corners=False)[
            :, 0
        ]
        error = log_depth - truth
        zero = error.sum() * 0.0
        known = [(one, mask) for one, mask in zip(error, valid, strict=True) if mask.any()]
        count = torch.full_like(zero.detach(), len(known))
        terms = {
            "silog": [self.config.silog_weight * silog(one[mask]) for one, mask in known],
            "log": [self.config.log_weight * one[mask].abs().mean() for one, mask in known],
            "gradient": [self.config.gradient_weight * gradient_match(one[None], mask[None]) for one, mask in known],
        }
        return {name: Part(torch.stack([zero, *values]).sum(), count) for name, values in terms.items()}

    def _focal_ratio(self, camera: Camera | None, width: int) -> float:
        if not self.config.canonical_focal:
            return 1.0
        focal = self.config.default_focal * width if camera is None else 0.5 * (camera.fx + camera.fy)
        return focal / self.config.canonical_focal

    def decode(self, raw: Raw, size: Sequence[Any]) -> dict[str, Tensor]:
        log_depth = F.interpolate(raw.log_depth, size=tuple(size), mode="bilinear", align_corners=False)
        return {"depth": log_depth[:, 0].exp()}

    def metric(self) -> DepthMetric:
        return DepthMetric(self.config.limits)
