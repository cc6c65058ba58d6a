"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from perception.config import configuration
from perception.metrics.segmentation import SegmentationMetric
from perception.nn.blocks import Width
from perception.nn.decoder import DenseDecoder
from perception.nn.necks import check_strides
from perception.ops.losses import balanced_weights, dice, lovasz, merge_classes, near_borders, shares_within
from perception.ops.upsample import at_pixels, most_likely
from perception.tasks.task import Part, Pyramid, Task, TaskConfig, Weight, check_classes, of_rows
from perception.types import Annotation, Camera, ConfigError, DenseMap, LabelSpace, TaskSpec

MOMENTUM = 0.01
"""Of a batch in the running shares of the classes."""


@configuration
class SegmentationConfig(TaskConfig):
    """classes: names, in the order of the ids.

    strides: levels of the pyramid that are fused, the finest first.
    width, fine_width: channels of the decoder at stride 8 and coarser, and at stride 4.
    context: whether the coarsest level sees the whole picture.
    loss_stride: the loss is taken at every so many pixels, both ways. Augmentation moves them; where there is none,
        those between are never seen, and 1 is right.
    dice_weight: of the Dice term, which counts small classes as much as large ones.
    lovasz_weight: of the Lovasz-Softmax term, which follows IoU itself; slower than Dice.
    class_balance: how far the cross-entropy evens out the classes: 0 = every pixel counts the same, 1 = every class.
    class_weights: name -> factor of its pixels in the cross-entropy, beside the balance; 1 where a class is not named.
    prior_correction: whether label maps make up for the balance and the weights. These teach that rare classes are
        common, which is good for learning them, but then they are seen where they are not; corrected, the network
        counts on each class as often as the training labels show it.
    auxiliary_weight: a > 0: an initial prediction, from the features before any fusion, is trained beside the head; the
        loss is ``(head + a * initial) / (1 + a)``. It is not there at inference.
    border_weight: by how much more a pixel counts in the cross-entropy that is within ``border_width`` pixels of
        another class: 1 = twice.
    """

    classes: tuple[str, ...]
    type: Literal["segmentation"] = "segmentation"
    strides: tuple[int, ...] = (4, 8, 16, 32)
    width: Width = 64
    fine_width: Width = 32
    context: bool = True
    loss_stride: Annotated[int, Field(gt=0)] = 2
    dice_weight: Weight = 0.5
    lovasz_weight: Weight = 0.0
    class_balance: Weight = 0.5
    class_weights: dict[str, Weight] = dataclasses.field(default_factory=dict)
    prior_correction: bool = False
    auxiliary_weight: Weight = 0.0
    border_weight: Weight = 0.0
    border_width: Annotated[int, Field(gt=0)] = 4

    def __post_init__(self) -> None:
        check_classes(self.classes)
        check_strides(self.strides)
        if len(self.classes) > 254:
            raise ConfigError(f"classes has {len(self.classes)} names. Expected 1 to 254: ids in label maps are bytes.")
        if unknown := [name for name in self.class_weights if name not in self.classes]:
            raise ConfigError(
                f"class_weights names {', '.join(map(repr, unknown))}. Expected some of the classes: "
                f"{', '.join(self.classes)}."
            )


class Raw(NamedTuple):
    """logits [B, C, H / s, W / s], s = the finest stride."""

    logits: Tensor


class Segmentation(Task):
    """Cross-entropy, and Dice or Lovasz-Softmax, over the labelled pixels.

    Where ids stand for sets of classes (`DenseMap.classes`), the probability of an id is the sum over its set: the
    cross-entropy is the marginal loss, -log of that sum, and Dice and Lovasz-Softmax count the merged classes.

    With `prior_correction`, ``shares`` [2, C] are running means of each class's share of the labelled pixels, as they
    are and as they are weighted. What `corrected` adds to the logits is the logarithm of their ratio: from the prior
    that was taught to the one that is (Saerens et al. 2002). The losses do not depend on it.
    """

    Config = SegmentationConfig
    score = "miou"

    shares: Tensor

    def __init__(self, name: str, config: SegmentationConfig, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.config = config
        self.strides = config.strides
        self.spec = TaskSpec(name, "dense", ("label_map",), classes=config.classes)
        regions = {"dice": config.dice_weight, "lovasz": config.lovasz_weight}
        self.parts = ("cross_entropy", *(part for part, weight in regions.items() if weight))
        self.decoder = DenseDecoder(
            {s: channels[s] for s in config.strides},
            config.width,
            len(config.classes),
            config.fine_width,
            context=config.context,
        )
        self.add_auxiliary({s: channels[s] for s in config.strides}, len(config.classes), self.parts)
        if config.prior_correction:
            self.register_buffer("shares", torch.zeros(2, len(config.classes)))
            self.statistics = ("shares",)

    def forward(self, pyramid: Pyramid) -> Raw:
        return Raw(self.decoder(pyramid).float())

    def initial(self, early: Pyramid) -> Raw | None:
        return None if self.initial_prediction is None else Raw(self.initial_prediction(early).float())

    def losses(
        self, raw: Raw, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, Part]:
        spaces: dict[LabelSpace | None, list[int]] = {}
        for i, target in enumerate(targets):
            if isinstance(target, DenseMap):
                spaces.setdefault(target.classes, []).append(i)
        losses: dict[str, Part] = {}
        counts = []
        for space, rows in spaces.items():
            labels, valid = self._labels([targets[i] for i in rows], space)
            logs = at_pixels(of_rows(raw.logits, rows), min(self.strides), self.config.loss_stride).log_softmax(1)
            merged = logs if space is None else merge_classes(logs, space.sets, labels)
            weights = self._weights(labels, valid, space)
            if self.config.prior_correction and self.training:
                counts.append(self._counts(logs.detach(), labels, valid, weights, space))
            for name, part in self._parts(merged, labels, valid, weights).items():
                before = losses.get(name)
                losses[name] = part if before is None else Part(*(a + b for a, b in zip(before, part, strict=True)))
        if counts:
            self._count(torch.stack(counts).sum(0))
        return losses

    def _labels(self, targets: Sequence[Any], space: LabelSpace | None) -> tuple[Tensor, Tensor]:
        """Ids int64 (0 where void) and validity [B, H', W'] at every ``loss_stride``-th pixel. A pixel that may be of
        any class says nothing: it is void."""
        stride, classes = self.config.loss_stride, len(self.config.classes)
        labels = torch.stack([target.values[::stride, ::stride] for target in targets]).long()
        valid = torch.stack([target.valid[::stride, ::stride] for target in targets])
        valid &= labels < (classes if space is None else len(space.sets))
        labels = torch.where(valid, labels, 0)
        if space is not None:
            says = torch.tensor([len(each) < classes for each in space.sets], device=labels.device)
            valid &= says[labels]
        return labels, valid

    def _parts(self, logs: Tensor, labels: Tensor, valid: Tensor, weights: Tensor) -> dict[str, Part]:
        """The losses of pictures whose ids mean the same. logs [B, K, H, W]: log-probabilities of these ids."""
        config = self.config
        entropy = F.nll_loss(logs, labels, reduction="none")
        losses = {"cross_entropy": Part((entropy * weights).sum(), weights.sum())}
        if config.dice_weight:
            total, count = dice(logs, labels, valid)
            losses["dice"] = Part(config.dice_weight * total, count)
        if config.lovasz_weight:
            total, count = lovasz(logs.exp(), labels, valid)
            losses["lovasz"] = Part(config.lovasz_weight * total, count)
        return losses

    def _weights(self, labels: Tensor, valid: Tensor, space: LabelSpace | None) -> Tensor:
        """What each pixel counts in the cross-entropy [B, H, W]; 0 where it is not labelled. Balance and borders are of
        the map's own ids; the factor of a set of classes is the mean of theirs."""
        classes, own = self.config.classes, self.config.class_weights
        factors = [own.get(name, 1.0) for name in classes]
        if space is not None:
            factors = [sum(factors[k] for k in each) / len(each) for each in space.sets]
        table = balanced_weights(labels, valid, len(factors), self.config.class_balance)
        if own:
            table = table * torch.tensor(factors, device=labels.device)
        weights = valid * table.gather(1, labels.flatten(1)).view(labels.shape)
        if self.config.border_weight:
            distance = max(1, round(self.config.border_width / self.config.loss_stride))
            weights = weights * (1 + self.config.border_weight * near_borders(labels, valid, distance))
        return weights

    @torch.no_grad()
    def _counts(self, logs: Tensor, labels: Tensor, valid: Tensor, weights: Tensor, space: LabelSpace | None) -> Tensor:
        """Pixels of each class, as they are and as they are weighted [2, C]."""
        pixels = torch.stack([valid.to(weights), weights])
        if space is not None:
            return shares_within(logs, space.sets, labels, pixels).to(self.shares)
        counts = torch.zeros_like(self.shares)
        return counts.scatter_add_(1, labels.flatten().expand(2, -1), pixels.flatten(1).to(self.shares))

    @torch.no_grad()
    def _count(self, counts: Tensor) -> None:
        self.shares.lerp_(counts / counts.sum(1, keepdim=True).clamp(min=1e-9), MOMENTUM)

    def decode(self, raw: Raw, size: Sequence[Any]) -> dict[str, Tensor]:
        return {"label_map": most_likely(self.corrected(raw.logits), min(self.strides))}

    def decode_within(self, raw: Raw, spaces: Sequence[LabelSpace | None]) -> dict[str, Tensor]:
        """`decode` of pictures whose sources divide the world in their own way: the likeliest set of classes of each
        pixel, by the sum of its probabilities, and the likeliest class in it. So a super-class of five classes at 0.15
        each is seen before one class at 0.25. spaces: the label space of each picture; None = the classes themselves
        """
        found = self.decode(raw, ())["label_map"]
        for i, space in enumerate(spaces):
            if space is not None:
                logs = at_pixels(self.corrected(raw.logits[i : i + 1]), min(self.strides)).log_softmax(1)[0]
                best = torch.stack([logs[list(each)].logsumexp(0) for each in space.sets]).argmax(0)
                members = torch.zeros(len(space.sets), len(logs), dtype=torch.bool, device=logs.device)
                for k, each in enumerate(space.sets):
                    members[k, list(each)] = True
                inside = members[best].movedim(-1, 0)
                found[i] = logs.masked_fill(~inside, -torch.inf).argmax(0)
        return {"label_map": found}

    def corrected(self, logits: Tensor) -> Tensor:
        """[B, C, H, W] as they were taught -> as they are meant: with `prior_correction`, under the labels' prior."""
        if not self.config.prior_correction:
            return logits
        seen, taught = self.shares
        ratio = torch.where((seen > 0) & (taught > 0), seen / taught, 1.0)
        return logits + ratio.log()[:, None, None]

    def metric(self) -> SegmentationMetric:
        return SegmentationMetric(self.config.classes)
