"""Normalization layers: BatchNorm over all ranks, per source, or with frozen statistics, and GroupNorm.

`convert_norm` gives a network the normalization that its recipe names. `synchronize_batchnorm` shares the statistics
between ranks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from pydantic import Field
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from perception.config import config_dataclass
from perception.nn.backbone import Backbone
from perception.types import Batch, ConfigError

Method = TypeVar("Method", bound=Callable[..., Any])


@config_dataclass
class BatchNormConfig:
    """BatchNorm (Ioffe and Szegedy 2015) everywhere, over all images of a batch."""

    name: Literal["batch"] = "batch"


@config_dataclass
class FrozenBatchNormConfig:
    """Frozen BatchNorm statistics in the backbone, those of its pretrained weights. Scale and shift are trained.

    Neck and heads are as with "batch".
    """

    name: Literal["frozen"] = "frozen"


@config_dataclass
class PerSourceBatchNormConfig:
    """BatchNorm with separate statistics per training source, and one scale and shift for all (Chang et al. 2019).

    Evaluation and export use the mixture of the sources, weighted by their shares of the images seen:
    mean = sum(share * mean_s), variance = sum(share * (variance_s + (mean_s - mean)^2)).
    """

    name: Literal["per_source"] = "per_source"


@config_dataclass
class GroupNormConfig:
    """GroupNorm (Wu and He 2018) in neck and heads: the output for an image does not depend on the rest of its batch.

    Attributes:
        backbone: the backbone's BatchNorm, as above.
        channels_per_group: channels per group; fewer if this does not divide the channels of a layer.
    """

    name: Literal["group"] = "group"
    backbone: Literal["frozen", "batch"] = "frozen"
    channels_per_group: Annotated[int, Field(gt=0)] = 16


NormConfig: TypeAlias = Annotated[
    BatchNormConfig | FrozenBatchNormConfig | PerSourceBatchNormConfig | GroupNormConfig, Field(discriminator="name")
]

_source_indices: ContextVar[Tensor | None] = ContextVar("_rows", default=None)
"""The source index of each image of the current batch [B]; None = not set."""


class JointBatchNorm(nn.BatchNorm2d):
    """BatchNorm of [B, C, ...], with an activation where timm adds one, and its own training modes.

    In evaluation it is torch's layer. `convert_norm` and `synchronize_batchnorm` create it from existing layers.

    Attributes:
        synchronized: compute the statistics over the images of all ranks, for any number of images per rank.
        frozen: keep the statistics fixed, in training too.
        num_sources: number of sources with separate statistics; 0 = one set for all. A source with a single value per
            channel in the batch has no variance and is normalized by its running statistics.
    """

    synchronized = False
    frozen = False
    num_sources = 0
    source_means: Tensor
    source_vars: Tensor
    source_counts: Tensor

    def train(self, mode: bool = True) -> JointBatchNorm:
        """Set the training mode. Frozen layers stay in evaluation mode."""
        super().train(mode)
        self.training = mode and not self.frozen
        return self

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [B, C, ...], and apply timm's dropout and activation if the layer has them."""
        joint = self.training and (self.num_sources > 0 or (self.synchronized and _world_size() > 1))
        output = self._normalize(input) if joint else super().forward(input)
        for name in ("drop", "act"):
            output = getattr(self, name, _identity)(output)
        return output

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept the shapes of BatchNorm1d too."""

    def _normalize(self, input: Tensor) -> Tensor:
        rows, means, variances = self._group_statistics(input)
        ones = input.new_ones(self.num_features, dtype=means.dtype)
        weight, bias = (ones, ones * 0) if self.weight is None else (self.weight, self.bias)
        over_ranks = self.synchronized and _world_size() > 1
        done: Any = _GroupedBatchNorm.apply(input, weight, bias, rows, means, variances, self.eps, over_ranks)
        output, counts, *found = done
        if self.running_mean is not None:
            self._update_running_statistics(counts, *found, area=input[0, 0].numel())
        return output

    def _group_statistics(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the group of each image, and the running means and variances [groups, C]."""
        if not self.num_sources:
            running = (torch.zeros_like(self.weight), torch.ones_like(self.weight))
            if self.running_mean is not None and self.running_var is not None:
                running = (self.running_mean, self.running_var)
            means, variances = (one[None] for one in running)
            return torch.zeros(len(input), dtype=torch.long, device=input.device), means, variances
        rows = _source_indices.get()
        if rows is None or len(rows) != len(input):
            raise ConfigError(
                "model.norm.name is 'per_source', but a layer in training does not have the source of each image: "
                f"expected {len(input)} rows, found {'none' if rows is None else len(rows)}. Train with "
                "compute_loss_terms(batch), or choose another norm if the backbone splits images into pieces."
            )
        return rows, self.source_means, self.source_vars

    @torch.no_grad()
    def _update_running_statistics(self, counts: Tensor, means: Tensor, variances: Tensor, area: int) -> None:
        """Move the running statistics towards the batch's. counts: values per channel of each group."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variances * (counts / (counts - 1).clamp(min=1))[:, None]
        if not self.num_sources:
            self.running_mean.lerp_(means[0].to(self.running_mean), momentum)
            self.running_var.lerp_(unbiased[0].to(self.running_var), momentum)
            return
        paces = momentum * (counts > 1).to(self.source_means)[:, None]
        self.source_means.lerp_(means.to(self.source_means), paces)
        self.source_vars.lerp_(unbiased.to(self.source_vars), paces)
        self.source_counts.add_((counts / area).round().long())
        shares = self.source_counts.to(self.source_means) / self.source_counts.sum()
        mean, variance = mixture_moments(shares, self.source_means, self.source_vars)
        self.running_mean.copy_(mean)
        self.running_var.copy_(variance)


def _identity(input: Tensor) -> Tensor:
    """Return the input."""
    return input


def mixture_moments(weights: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance [C] of a mixture.

    Args:
        weights: weights [S] that sum to 1.
        means: means [S, C].
        variances: variances [S, C].
    """
    mean = (weights[:, None] * means).sum(0)
    return mean, (weights[:, None] * (variances + (means - mean).square())).sum(0)


class _GroupedBatchNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias with the statistics of the group of each image.

    Returns the output and, without gradients, each group's number of values per channel [S], mean and variance [S, C].
    Variances are pooled from centered sums of squares (Chan et al. 1979), which avoids cancellation, in float32 at
    least. There is one message between ranks per direction. Weight and bias get this rank's share of their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        group_indices: Tensor,
        running_means: Tensor,
        running_vars: Tensor,
        eps: float,
        synchronized: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind = torch.promote_types(x.dtype, torch.float32)
        values, places = x.to(kind), tuple(range(2, x.ndim))
        area = x[0, 0].numel()
        own = values.mean(places) if places else values
        squares = (values - _expand_like(own, x)).square_().sum(places) if places else torch.zeros_like(own)
        member = _membership_mask(group_indices, running_means).to(kind)
        found = _merge_moments(member * area, own[:, None], member[..., None] * squares[:, None])
        if synchronized:
            found = _merge_moments(*_gather_moments(*found))
        counts, means, squares = found
        known = (counts > 1)[:, None]
        means = torch.where(known, means, running_means.to(kind))
        variances = torch.where(known, squares / counts.clamp(min=1)[:, None], running_vars.to(kind))
        scales = (variances + eps).rsqrt()
        output = torch.addcmul(
            _expand_like(bias.to(kind)[None], x),
            values - _expand_like(means[group_indices], x),
            _expand_like(scales[group_indices] * weight.to(kind), x),
        ).to(x.dtype)
        ctx.save_for_backward(x, weight, group_indices, counts, means, scales)
        ctx.over_ranks = synchronized
        ctx.mark_non_differentiable(counts, means, variances)
        return output, counts, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, rows, counts, means, scales = ctx.saved_tensors
        gradient, places = gradients[0].to(means.dtype), tuple(range(2, x.ndim))
        normal = (x.to(means.dtype) - _expand_like(means[rows], x)).mul_(_expand_like(scales[rows], x))
        sums = torch.stack([gradient, gradient * normal], 1)
        sums = sums.sum(tuple(place + 1 for place in places)) if places else sums  # [B, 2, C]
        own = sums.sum(0)
        found: list[Any] = [None, own[1].to(weight.dtype), own[0].to(weight.dtype), *[None] * 5]
        if ctx.needs_input_grad[0]:
            member = _membership_mask(rows, counts).to(sums)
            by_group = (member[:, :, None, None] * sums[:, None]).sum(0)  # [S, 2, C]
            if ctx.over_ranks:
                dist.all_reduce(by_group)
            by_group = torch.where(counts > 1, 1 / counts.clamp(min=1), 0.0)[:, None, None] * by_group
            mean, slope = by_group[rows].unbind(1)
            centered = (gradient - _expand_like(mean, x)).sub_(normal.mul_(_expand_like(slope, x)))
            found[0] = centered.mul_(_expand_like(scales[rows] * weight.to(means.dtype), x)).to(x.dtype)
        return tuple(found)


def _membership_mask(rows: Tensor, groups: Tensor) -> Tensor:
    """Return whether each image is in each group, bool [B, S]. Does not synchronize with the GPU."""
    return rows[:, None] == torch.arange(len(groups), device=rows.device)


def _expand_like(values: Tensor, like: Tensor) -> Tensor:
    """Return [B or 1, C] with the number of dimensions of ``like``."""
    return values[(...,) + (None,) * (like.ndim - 2)]


def _merge_moments(counts: Tensor, means: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge parts: counts [N, S], means and centered sums of squares [N, S or 1, C] -> [S], [S, C], [S, C]."""
    total = counts.sum(0)
    mean = ((counts / total.clamp(min=1))[..., None] * means).sum(0)
    return total, mean, (squares + counts[..., None] * (means - mean).square()).sum(0)


def _gather_moments(counts: Tensor, means: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    own = torch.cat([counts[:, None], means, squares], 1)
    every = [torch.empty_like(own) for _ in range(_world_size())]
    dist.all_gather(every, own)
    table, width = torch.stack(every), means.shape[1]
    return table[..., 0], table[..., 1 : 1 + width], table[..., 1 + width :]


def _world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def broadcast_from_first_rank(tensor: Tensor) -> Tensor:
    """Return rank 0's tensor on every rank.

    Use it for random choices of layers: synchronized layers must run on all ranks or on none.
    """
    if _world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean over the ranks of a tensor without a gradient."""
    if _world_size() > 1:
        dist.all_reduce(tensor)
        tensor = tensor / _world_size()
    return tensor


def synchronize_batchnorm(network: nn.Module) -> None:
    """Let every BatchNorm of ``network`` use the statistics of the images of all ranks in training.

    Weights, names and evaluation do not change.

    Raises:
        ConfigError: a normalization layer does not support this.
    """
    for norm in _joint_batchnorms(network, "train.sync_batchnorm"):
        norm.synchronized = True


def convert_norm(network: nn.Module, config: object, sources: Sequence[str] = ()) -> None:
    """Give a network the normalization that ``config`` names, in place.

    Args:
        network: the network.
        config: one of the configs in `NormConfig`.
        sources: names of the training sources.

    Raises:
        ConfigError: a normalization layer does not support this.
    """
    inside = [norm for module in network.modules() if isinstance(module, Backbone) for norm in _find_batchnorms(module)]
    if isinstance(config, FrozenBatchNormConfig) or getattr(config, "backbone", "") == "frozen":
        for norm in inside:
            _to_joint_batchnorm(norm, "model.norm").frozen = True
            norm.eval()
    if isinstance(config, PerSourceBatchNormConfig):
        for norm in _joint_batchnorms(network, "model.norm"):
            _add_source_statistics(norm, len(sources))
    if isinstance(config, GroupNormConfig):
        kept = set(map(id, inside))
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _BatchNorm) and id(child) not in kept:
                    setattr(parent, name, _to_group_norm(child, config.channels_per_group))


def with_source_statistics(method: Method) -> Method:
    """Decorate a network's method of a batch: while it runs, layers can read the source index of each image.

    Indices follow the order of the network's ``sources``.

    Raises:
        ConfigError: in training, an image is from none of these sources.
    """

    @functools.wraps(method)
    def told(network: Any, batch: Batch, *others: Any, **named: Any) -> object:
        if not network.sources or not network.training:
            return method(network, batch, *others, **named)
        if unknown := sorted(set(batch.sources) - set(network.sources)):
            raise ConfigError(
                f"model.norm.name is 'per_source', and the network was built for {', '.join(network.sources)}; a batch "
                f"holds images of {', '.join(unknown)}. Train on the sources of its recipe, or choose another norm."
            )
        rows = torch.tensor([network.sources.index(source) for source in batch.sources])
        token = _source_indices.set(rows.to(batch.images.device))
        try:
            return method(network, batch, *others, **named)
        finally:
            _source_indices.reset(token)

    return told  # type: ignore[return-value]


def _find_batchnorms(network: nn.Module) -> Iterator[_BatchNorm]:
    return (module for module in network.modules() if isinstance(module, _BatchNorm))


def _joint_batchnorms(network: nn.Module, key: str) -> list[JointBatchNorm]:
    return [_to_joint_batchnorm(norm, key) for norm in _find_batchnorms(network)]


def _to_joint_batchnorm(norm: _BatchNorm, key: str) -> JointBatchNorm:
    """Convert a layer to `JointBatchNorm` in place, because other objects (schedules, hooks) hold references to it."""
    if isinstance(norm, JointBatchNorm):
        return norm
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d):
        raise ConfigError(
            f"{key}: this network normalizes by {type(norm).__name__}, which cannot be changed. Expected "
            "BatchNorm. Choose another backbone, or set train.sync_batchnorm: false and model.norm.name: batch."
        )
    norm.__class__ = JointBatchNorm
    return norm  # type: ignore[return-value]


def _add_source_statistics(norm: JointBatchNorm, sources: int) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise ConfigError("model.norm: a layer has no running statistics, so it cannot have them per source.")
    if not sources:
        raise ConfigError("model.norm.name is 'per_source', but the recipe has no data.train. List its sources there.")
    norm.num_sources = sources
    norm.register_buffer("source_means", norm.running_mean.repeat(sources, 1))
    norm.register_buffer("source_vars", norm.running_var.repeat(sources, 1))
    norm.register_buffer("source_counts", torch.zeros(sources, dtype=torch.long))


def _to_group_norm(norm: _BatchNorm, width: int) -> nn.GroupNorm:
    """Return GroupNorm with the scale and shift of a BatchNorm."""
    channels = norm.num_features
    grouped = nn.GroupNorm(channels // math.gcd(channels, width), channels, norm.eps, norm.affine)
    grouped.load_state_dict({k: v for k, v in norm.state_dict().items() if k in ("weight", "bias")})
    return grouped if norm.weight is None else grouped.to(norm.weight)
