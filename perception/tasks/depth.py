"""Metric depth in metres per pixel, for any focal length, with an estimate of the relative error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.metrics.depth import DepthMetric
from perception.nn.blocks import ChannelCount
from perception.nn.decoder import DenseDecoder
from perception.nn.necks import check_strides
from perception.ops.losses import gradient_matching, laplace_nll, masked_mean, silog
from perception.ops.upsample import upsample_to_pixels
from perception.tasks.task import LossTerm, LossWeight, Pyramid, Task, TaskConfig, select_rows
from perception.types import Annotation, Camera, ConfigError, DenseMap, TaskSpec

LOG_ERROR_LIMITS = math.log(0.005), math.log(1.0)
"""Smallest and largest relative error that the network can predict, as logarithms."""

ERROR_LOSS_WEIGHT = 0.02
"""Weight of the loss of the predicted error.

It is small, so that it does not dominate the depth loss where losses are balanced by their size. It has no other
effect, because no other parameter gets its gradient."""


@config_dataclass
class DepthConfig(TaskConfig):
    """Config of `DepthTask`.

    Attributes:
        limits: nearest and farthest distance in metres that is trained, predicted and evaluated.
        canonical_focal: depth is predicted as if every image had this focal length (pixels of the input): an object at
            10 m seen with a focal length twice as long looks like 5 m. 0 = focal lengths are not used.
        default_focal: focal length, as a fraction of the image width, for images without intrinsics. Provide intrinsics
            for training: without them, random zoom makes the metric scale ambiguous.
        bins: 0 = regress the log distance; n = the log distance is the mean of n bins, evenly spaced in the logarithm,
            weighted by their probabilities.
        strides: pyramid levels that are fused, the finest first.
        channels: channels of the decoder at stride 8 and coarser.
        fine_channels: channels of the decoder at stride 4.
        pyramid_pooling: whether the coarsest level has global context.
        loss_stride: the loss is computed at every n-th pixel in both directions.
        silog_weight: weight of the scale-invariant log loss.
        log_weight: weight of the absolute log error.
        gradient_weight: weight of the gradient-matching loss.
        auxiliary_weight: a > 0: an auxiliary prediction from the features before fusion is trained with the head; the
            loss is ``(head + a * auxiliary) / (1 + a)``. It is not used at inference.
    """

    type: Literal["depth"] = "depth"
    limits: tuple[float, float] = (0.5, 80.0)
    canonical_focal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 500.0
    default_focal: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    bins: Annotated[int, Field(ge=0)] = 0
    strides: tuple[int, ...] = (4, 8, 16, 32)
    channels: ChannelCount = 64
    fine_channels: ChannelCount = 16
    pyramid_pooling: bool = True
    loss_stride: Annotated[int, Field(gt=0)] = 2
    silog_weight: LossWeight = 1.0
    log_weight: LossWeight = 0.5
    gradient_weight: LossWeight = 0.5
    auxiliary_weight: LossWeight = 0.0

    def __post_init__(self) -> None:
        check_strides(self.strides)
        if not 0 < self.limits[0] < self.limits[1] < math.inf:
            raise ConfigError(f"limits is {list(self.limits)}. Expected 0 < nearest < farthest, in metres.")
        if self.bins == 1:
            raise ConfigError("bins is 1. Expected 0 (direct regression) or at least 2.")


class Raw(NamedTuple):
    """Raw output: maps [B, 1, H / s, W / s], s = the finest stride.

    Attributes:
        log_depth: log of the depth in metres for the canonical focal length.
        log_error: log of the scale of a Laplace distribution around it, which is the expected relative error.
    """

    log_depth: Tensor
    log_error: Tensor


class DepthTask(Task):
    """Log depth with scale-invariant, absolute and gradient losses; its error by a Laplace likelihood.

    The error branch reads detached features, so it does not change the depth. Joint learning (Kendall and Gal 2017)
    trades accuracy on hard pixels for a smaller loss.
    """

    Config = DepthConfig
    main_metric = "abs_rel"
    main_metric_sign = -1
    loss_names = ("silog", "log", "gradient", "error")

    bin_centers: Tensor

    def __init__(self, name: str, config: DepthConfig, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.config = config
        self.strides = config.strides
        self.spec = TaskSpec(
            name,
            "dense",
            ("depth", "error"),
            unit="m",
            limits=config.limits,
            canonical_focal=config.canonical_focal,
            default_focal=config.default_focal,
        )
        self.decoder = DenseDecoder(
            {s: channels[s] for s in config.strides},
            config.channels,
            config.bins or 1,
            config.fine_channels,
            pyramid_pooling=config.pyramid_pooling,
        )
        # Without the "error" term, which belongs to the main head only.
        self.add_auxiliary_head(
            {s: channels[s] for s in config.strides}, config.bins or 1, ("silog", "log", "gradient")
        )
        self.error_output = nn.Conv2d(self.decoder.channels, 1, 1)
        near, far = map(math.log, config.limits)
        self.log_midpoint = 0.5 * (near + far)
        # With another focal length than the canonical one, canonical depth differs from metres by up to a factor of 2.
        centers = torch.linspace(near - math.log(2), far + math.log(2), config.bins)
        self.register_buffer("bin_centers", centers.view(1, -1, 1, 1), persistent=False)

    def forward(self, pyramid: Pyramid) -> Raw:
        """Return log depth and log error at the finest stride."""
        found, features = self.decoder.forward_with_features(pyramid)
        low, high = LOG_ERROR_LIMITS
        return Raw(self._log_depth(found), low + (high - low) * self.error_output(features.detach()).float().sigmoid())

    def forward_auxiliary(self, pyramid: Pyramid) -> Raw | None:
        """Return the auxiliary log depth, or None without an auxiliary head."""
        if self.auxiliary_head is None:
            return None
        log_depth = self._log_depth(self.auxiliary_head(pyramid))
        return Raw(log_depth, torch.zeros_like(log_depth))

    def _log_depth(self, found: Tensor) -> Tensor:
        found = found.float()
        if self.config.bins:
            return (found.softmax(1) * self.bin_centers).sum(1, keepdim=True)
        return found + self.log_midpoint

    def compute_loss_terms(
        self, raw: Raw, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, LossTerm]:
        """Return the terms "silog", "log", "gradient" and "error", see `Task.compute_loss_terms`."""
        rows, depths, masks, shifts = [], [], [], []
        stride, (near, far) = self.config.loss_stride, self.config.limits
        for i, (target, camera) in enumerate(zip(targets, cameras, strict=True)):
            if isinstance(target, DenseMap):
                metres = target.values[::stride, ::stride]
                rows.append(i)
                depths.append(metres)
                masks.append(target.valid[::stride, ::stride])
                shifts.append(metres.new_full((), math.log(self._focal_ratio(camera, target.values.shape[-1]))))
        metres = torch.stack(depths)
        valid = torch.stack(masks) & (metres >= near) & (metres <= far)
        truth = torch.where(valid, metres, near).log() - torch.stack(shifts)[:, None, None]
        maps = select_rows(torch.cat(raw, 1), rows)
        log_depth, log_error = upsample_to_pixels(maps, min(self.strides), stride).unbind(1)
        error = log_depth - truth
        likelihood = laplace_nll(error.detach(), log_error) - LOG_ERROR_LIMITS[0]
        known, own = valid.flatten(1).any(1), self.config
        terms = {
            "silog": own.silog_weight * silog(error, valid),
            "log": own.log_weight * masked_mean(error.abs(), valid),
            "gradient": own.gradient_weight * gradient_matching(error, valid),
            "error": ERROR_LOSS_WEIGHT * masked_mean(likelihood, valid),
        }
        return {name: LossTerm((values * known).sum(), known.sum().to(values.dtype)) for name, values in terms.items()}

    def _focal_ratio(self, camera: Camera | None, width: int) -> float:
        if not self.config.canonical_focal:
            return 1.0
        focal = self.config.default_focal * width if camera is None else 0.5 * (camera.fx + camera.fy)
        return focal / self.config.canonical_focal

    def decode(self, raw: Raw, size: Sequence[Any]) -> dict[str, Tensor]:
        """Return depth for the canonical focal length and relative error, [B, H, W] at input size."""
        maps = F.interpolate(torch.cat(raw, 1), size=tuple(size), mode="bilinear", align_corners=False).exp()
        return {"depth": maps[:, 0], "error": maps[:, 1]}

    def distill(self, student: Raw, teacher: Raw) -> Tensor:
        """Return the mean absolute difference of the maps, see `Task.distill`."""
        pairs = zip(student, teacher, strict=True)
        return torch.stack([(mine.float() - theirs.float()).abs().mean() for mine, theirs in pairs]).sum()

    def create_metric(self) -> DepthMetric:
        """Return a new metric."""
        return DepthMetric(self.config.limits)
