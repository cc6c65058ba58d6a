"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from perception.config import config_dataclass
from perception.metrics.segmentation import SegmentationMetric
from perception.nn.blocks import ChannelCount
from perception.nn.decoder import DenseDecoder
from perception.nn.necks import check_strides
from perception.ops.losses import (
    border_mask,
    class_weights_by_frequency,
    dice_loss,
    expected_class_pixels,
    lovasz_softmax,
    merge_classes,
)
from perception.ops.upsample import upsample_argmax, upsample_to_pixels
from perception.tasks.task import LossTerm, LossWeight, Pyramid, Task, TaskConfig, check_classes, select_rows
from perception.types import Annotation, Camera, ConfigError, DenseMap, LabelSpace, TaskSpec

PRIOR_MOMENTUM = 0.01
"""Weight of a batch in the running class priors."""


@config_dataclass
class SegmentationConfig(TaskConfig):
    """Config of `SegmentationTask`.

    Attributes:
        classes: names, in the order of the ids.
        strides: pyramid levels that are fused, the finest first.
        channels: channels of the decoder at stride 8 and coarser.
        fine_channels: channels of the decoder at stride 4.
        pyramid_pooling: whether the coarsest level has global context.
        loss_stride: the loss is computed at every n-th pixel in both directions. Augmentation shifts the sampled
            pixels. Without augmentation the other pixels are never used; use 1 then.
        dice_weight: weight of the Dice loss, which gives small classes the same weight as large ones.
        lovasz_weight: weight of the Lovasz-Softmax loss, which optimizes IoU directly; slower than Dice.
        class_weighting: strength of class balancing in the cross-entropy: 0 = equal weight per pixel, 1 = per class.
        class_weights: class name -> factor on its pixels in the cross-entropy, on top of ``class_weighting``; default
            1.
        logit_adjustment: whether to correct predictions for ``class_weighting`` and ``class_weights``. Weighting helps
            to learn rare classes, but then they are predicted too often. The correction restores the class frequencies
            of the training labels: it keeps recall on rare classes without over-predicting them.
        auxiliary_weight: a > 0: an auxiliary prediction from the features before fusion is trained with the head; the
            loss is ``(head + a * auxiliary) / (1 + a)``. It is not used at inference.
        boundary_weight: additional weight in the cross-entropy of pixels within ``boundary_width`` pixels of another
            class: 1 = twice the weight.
        boundary_width: width of the boundary in pixels.
    """

    classes: tuple[str, ...]
    type: Literal["segmentation"] = "segmentation"
    strides: tuple[int, ...] = (4, 8, 16, 32)
    channels: ChannelCount = 64
    fine_channels: ChannelCount = 32
    pyramid_pooling: bool = True
    loss_stride: Annotated[int, Field(gt=0)] = 2
    dice_weight: LossWeight = 0.5
    lovasz_weight: LossWeight = 0.0
    class_weighting: LossWeight = 0.5
    class_weights: dict[str, LossWeight] = dataclasses.field(default_factory=dict)
    logit_adjustment: bool = False
    auxiliary_weight: LossWeight = 0.0
    boundary_weight: LossWeight = 0.0
    boundary_width: Annotated[int, Field(gt=0)] = 4

    def __post_init__(self) -> None:
        check_classes(self.classes)
        check_strides(self.strides)
        if len(self.classes) > 254:
            raise ConfigError(
                f"classes has {len(self.classes)} names. Expected 1 to 254: segmentation masks store ids as bytes."
            )
        if unknown := [name for name in self.class_weights if name not in self.classes]:
            raise ConfigError(
                f"class_weights names {', '.join(map(repr, unknown))}. Expected some of the classes: "
                f"{', '.join(self.classes)}."
            )


class Raw(NamedTuple):
    """Raw output: logits [B, C, H / s, W / s], s = the finest stride."""

    logits: Tensor


class SegmentationTask(Task):
    """Cross-entropy, and Dice or Lovasz-Softmax, over the labeled pixels.

    Where ids stand for sets of classes (`DenseMap.label_space`), the probability of an id is the sum over its set: the
    cross-entropy is the marginal loss, -log of that sum, and Dice and Lovasz-Softmax use the merged classes.

    With `logit_adjustment`, ``class_priors`` [2, C] are running means of each class's share of the labeled pixels,
    unweighted and weighted. `correct_prior` adds the logarithm of their ratio to the logits: this converts from the
    training prior to the true prior (Saerens et al. 2002). The losses do not depend on it.
    """

    Config = SegmentationConfig
    main_metric = "miou"

    class_priors: Tensor

    def __init__(self, name: str, config: SegmentationConfig, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.config = config
        self.strides = config.strides
        self.spec = TaskSpec(name, "dense", ("mask",), classes=config.classes)
        regions = {"dice": config.dice_weight, "lovasz": config.lovasz_weight}
        self.loss_names = ("cross_entropy", *(part for part, weight in regions.items() if weight))
        self.decoder = DenseDecoder(
            {s: channels[s] for s in config.strides},
            config.channels,
            len(config.classes),
            config.fine_channels,
            pyramid_pooling=config.pyramid_pooling,
        )
        self.add_auxiliary_head({s: channels[s] for s in config.strides}, len(config.classes), self.loss_names)
        if config.logit_adjustment:
            self.register_buffer("class_priors", torch.zeros(2, len(config.classes)))
            self.running_statistics = ("class_priors",)

    def forward(self, pyramid: Pyramid) -> Raw:
        """Return the logits at the finest stride."""
        return Raw(self.decoder(pyramid).float())

    def forward_auxiliary(self, pyramid: Pyramid) -> Raw | None:
        """Return the auxiliary logits, or None without an auxiliary head."""
        return None if self.auxiliary_head is None else Raw(self.auxiliary_head(pyramid).float())

    def compute_loss_terms(
        self, raw: Raw, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, LossTerm]:
        """Return the terms "cross_entropy", "dice" and "lovasz", see `Task.compute_loss_terms`."""
        spaces: dict[LabelSpace | None, list[int]] = {}
        for i, target in enumerate(targets):
            if isinstance(target, DenseMap):
                spaces.setdefault(target.label_space, []).append(i)
        losses: dict[str, LossTerm] = {}
        counts = []
        for space, rows in spaces.items():
            labels, valid = self._stack_labels([targets[i] for i in rows], space)
            logs = upsample_to_pixels(
                select_rows(raw.logits, rows), min(self.strides), self.config.loss_stride
            ).log_softmax(1)
            merged = logs if space is None else merge_classes(logs, space.class_sets, labels)
            weights = self._pixel_weights(labels, valid, space)
            if self.config.logit_adjustment and self.training:
                counts.append(self._count_pixels(logs.detach(), labels, valid, weights, space))
            for name, part in self._loss_terms(merged, labels, valid, weights).items():
                before = losses.get(name)
                losses[name] = part if before is None else LossTerm(*(a + b for a, b in zip(before, part, strict=True)))
        if counts:
            self._update_priors(torch.stack(counts).sum(0))
        return losses

    def _stack_labels(self, targets: Sequence[Any], label_space: LabelSpace | None) -> tuple[Tensor, Tensor]:
        """Return ids int64 (0 where ignored) and validity [B, H', W'] at every ``loss_stride``-th pixel.

        A pixel that may be of any class carries no information and is ignored.
        """
        stride, classes = self.config.loss_stride, len(self.config.classes)
        labels = torch.stack([target.values[::stride, ::stride] for target in targets]).long()
        valid = torch.stack([target.valid[::stride, ::stride] for target in targets])
        valid &= labels < (classes if label_space is None else len(label_space.class_sets))
        labels = torch.where(valid, labels, 0)
        if label_space is not None:
            says = torch.tensor([len(each) < classes for each in label_space.class_sets], device=labels.device)
            valid &= says[labels]
        return labels, valid

    def _loss_terms(
        self, log_probabilities: Tensor, labels: Tensor, valid: Tensor, weights: Tensor
    ) -> dict[str, LossTerm]:
        """Return the losses of images with one label space. log_probabilities: [B, K, H, W], of its ids."""
        config = self.config
        entropy = F.nll_loss(log_probabilities, labels, reduction="none")
        losses = {"cross_entropy": LossTerm((entropy * weights).sum(), weights.sum())}
        if config.dice_weight:
            total, count = dice_loss(log_probabilities, labels, valid)
            losses["dice"] = LossTerm(config.dice_weight * total, count)
        if config.lovasz_weight:
            total, count = lovasz_softmax(log_probabilities.exp(), labels, valid)
            losses["lovasz"] = LossTerm(config.lovasz_weight * total, count)
        return losses

    def _pixel_weights(self, labels: Tensor, valid: Tensor, label_space: LabelSpace | None) -> Tensor:
        """Return the weight of each pixel in the cross-entropy [B, H, W]; 0 where it is not labeled.

        Class balancing and boundaries use the map's own ids. The factor of a set of classes is the mean of theirs.
        """
        classes, own = self.config.classes, self.config.class_weights
        factors = [own.get(name, 1.0) for name in classes]
        if label_space is not None:
            factors = [sum(factors[k] for k in each) / len(each) for each in label_space.class_sets]
        table = class_weights_by_frequency(labels, valid, len(factors), self.config.class_weighting)
        if own:
            table = table * torch.tensor(factors, device=labels.device)
        weights = valid * table.gather(1, labels.flatten(1)).view(labels.shape)
        if self.config.boundary_weight:
            distance = max(1, round(self.config.boundary_width / self.config.loss_stride))
            weights = weights * (1 + self.config.boundary_weight * border_mask(labels, valid, distance))
        return weights

    @torch.no_grad()
    def _count_pixels(
        self, log_probabilities: Tensor, labels: Tensor, valid: Tensor, weights: Tensor, label_space: LabelSpace | None
    ) -> Tensor:
        """Return the number of pixels per class, unweighted and weighted [2, C]."""
        pixels = torch.stack([valid.to(weights), weights])
        if label_space is not None:
            return expected_class_pixels(log_probabilities, label_space.class_sets, labels, pixels).to(
                self.class_priors
            )
        counts = torch.zeros_like(self.class_priors)
        return counts.scatter_add_(1, labels.flatten().expand(2, -1), pixels.flatten(1).to(self.class_priors))

    @torch.no_grad()
    def _update_priors(self, counts: Tensor) -> None:
        self.class_priors.lerp_(counts / counts.sum(1, keepdim=True).clamp(min=1e-9), PRIOR_MOMENTUM)

    def decode(self, raw: Raw, size: Sequence[Any]) -> dict[str, Tensor]:
        """Return the mask [B, H, W] at input size."""
        return {"mask": upsample_argmax(self.correct_prior(raw.logits), min(self.strides))}

    def decode_in_label_spaces(self, raw: Raw, label_spaces: Sequence[LabelSpace | None]) -> dict[str, Tensor]:
        """Return `decode` for images whose sources have their own label spaces.

        Each pixel gets the set of classes with the highest summed probability, and the most probable class in it. So a
        super-class of five classes at 0.15 each wins over one class at 0.25.

        Args:
            raw: raw output.
            label_spaces: the label space of each image; None = the classes themselves.
        """
        found = self.decode(raw, ())["mask"]
        for i, space in enumerate(label_spaces):
            if space is not None:
                logs = upsample_to_pixels(self.correct_prior(raw.logits[i : i + 1]), min(self.strides)).log_softmax(1)[
                    0
                ]
                best = torch.stack([logs[list(each)].logsumexp(0) for each in space.class_sets]).argmax(0)
                members = torch.zeros(len(space.class_sets), len(logs), dtype=torch.bool, device=logs.device)
                for k, each in enumerate(space.class_sets):
                    members[k, list(each)] = True
                inside = members[best].movedim(-1, 0)
                found[i] = logs.masked_fill(~inside, -torch.inf).argmax(0)
        return {"mask": found}

    def correct_prior(self, logits: Tensor) -> Tensor:
        """Convert logits [B, C, H, W] from the training prior to the labels' prior, with `logit_adjustment`."""
        if not self.config.logit_adjustment:
            return logits
        seen, taught = self.class_priors
        ratio = torch.where((seen > 0) & (taught > 0), seen / taught, 1.0)
        return logits + ratio.log()[:, None, None]

    def create_metric(self) -> SegmentationMetric:
        """Return a new metric."""
        return SegmentationMetric(self.config.classes)
