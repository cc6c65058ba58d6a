"""Which pictures normalise one another: BatchNorm over all ranks, by source, with fixed statistics, or none of it.

`convert` gives a network the normalisation that its recipe names, `synchronise` lets ranks share their statistics.
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

from perception.config import configuration
from perception.nn.backbone import Backbone
from perception.types import Batch, ConfigError

Method = TypeVar("Method", bound=Callable[..., Any])


@configuration
class BatchConfig:
    """BatchNorm (Ioffe and Szegedy 2015) everywhere, over all pictures of a batch."""

    name: Literal["batch"] = "batch"


@configuration
class FrozenConfig:
    """BatchNorm of the backbone with the statistics that its weights came with; scale and shift learn. Neck and heads
    as with "batch"."""

    name: Literal["frozen"] = "frozen"


@configuration
class PerSourceConfig:
    """BatchNorm with statistics of each training source, one scale and shift for all (Chang et al. 2019).

    Evaluation and export take the sources' mixture, by their shares of the pictures seen:
    mean = sum(share * mean_s), variance = sum(share * (variance_s + (mean_s - mean)^2)).
    """

    name: Literal["per_source"] = "per_source"


@configuration
class GroupConfig:
    """GroupNorm (Wu and He 2018) in neck and heads: no picture normalises another. backbone: its BatchNorm, as above.

    width: channels of a group, fewer where it does not divide a layer's.
    """

    name: Literal["group"] = "group"
    backbone: Literal["frozen", "batch"] = "frozen"
    width: Annotated[int, Field(gt=0)] = 16


NormConfig: TypeAlias = Annotated[
    BatchConfig | FrozenConfig | PerSourceConfig | GroupConfig, Field(discriminator="name")
]

_rows: ContextVar[Tensor | None] = ContextVar("_rows", default=None)
"""The source of each picture of the batch that is in the network [B]; None = not told."""


class JointBatchNorm(nn.BatchNorm2d):
    """BatchNorm of [B, C, ...], with an activation where timm puts one, that trains otherwise than torch's.

    over_ranks: statistics are those of all ranks' pictures, however many each has
    frozen:     statistics stay, in training too
    sources:    how many sources have statistics of their own; 0 = one for all. A source with a single value per channel
                in the batch has no variance and is normalised by its running statistics

    In evaluation it is torch's layer. Made by `convert` and `synchronise` out of the layers that are there.
    """

    over_ranks = False
    frozen = False
    sources = 0
    source_means: Tensor
    source_vars: Tensor
    source_images: Tensor

    def train(self, mode: bool = True) -> JointBatchNorm:
        super().train(mode)
        self.training = mode and not self.frozen
        return self

    def forward(self, input: Tensor) -> Tensor:
        joint = self.training and (self.sources > 0 or (self.over_ranks and _ranks() > 1))
        output = self._normalise(input) if joint else super().forward(input)
        for name in ("drop", "act"):
            output = getattr(self, name, _same)(output)
        return output

    def _check_input_dim(self, input: Tensor) -> None:
        """Takes BatchNorm1d's shapes too."""

    def _normalise(self, input: Tensor) -> Tensor:
        rows, means, variances = self._groups(input)
        ones = input.new_ones(self.num_features, dtype=means.dtype)
        weight, bias = (ones, ones * 0) if self.weight is None else (self.weight, self.bias)
        over_ranks = self.over_ranks and _ranks() > 1
        done: Any = _Normalise.apply(input, weight, bias, rows, means, variances, self.eps, over_ranks)
        output, counts, *found = done
        if self.running_mean is not None:
            self._follow(counts, *found, area=input[0, 0].numel())
        return output

    def _groups(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The group of each picture, and the running means and variances [groups, C]."""
        if not self.sources:
            running = (torch.zeros_like(self.weight), torch.ones_like(self.weight))
            if self.running_mean is not None and self.running_var is not None:
                running = (self.running_mean, self.running_var)
            means, variances = (one[None] for one in running)
            return torch.zeros(len(input), dtype=torch.long, device=input.device), means, variances
        rows = _rows.get()
        if rows is None or len(rows) != len(input):
            raise ConfigError(
                "model.norm.name is 'per_source', but a layer in training cannot tell whose pictures these are: "
                f"expected {len(input)} rows, found {'none' if rows is None else len(rows)}. Train by "
                "loss_parts(batch), or take another norm where a backbone cuts pictures into pieces."
            )
        return rows, self.source_means, self.source_vars

    @torch.no_grad()
    def _follow(self, counts: Tensor, means: Tensor, variances: Tensor, area: int) -> None:
        """Move the running statistics towards a batch's. counts: values per channel of each group."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variances * (counts / (counts - 1).clamp(min=1))[:, None]
        if not self.sources:
            self.running_mean.lerp_(means[0].to(self.running_mean), momentum)
            self.running_var.lerp_(unbiased[0].to(self.running_var), momentum)
            return
        paces = momentum * (counts > 1).to(self.source_means)[:, None]
        self.source_means.lerp_(means.to(self.source_means), paces)
        self.source_vars.lerp_(unbiased.to(self.source_vars), paces)
        self.source_images.add_((counts / area).round().long())
        shares = self.source_images.to(self.source_means) / self.source_images.sum()
        mean, variance = mixture(shares, self.source_means, self.source_vars)
        self.running_mean.copy_(mean)
        self.running_var.copy_(variance)


def _same(input: Tensor) -> Tensor:
    return input


def mixture(shares: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] of a mixture. shares [S] sum to 1; means, variances [S, C]."""
    mean = (shares[:, None] * means).sum(0)
    return mean, (shares[:, None] * (variances + (means - mean).square())).sum(0)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias with the statistics of the group of each picture.

    Returns the output and, without gradients, each group's number of values per channel [S], mean and variance [S, C].
    Variances are pooled from centred sums of squares (Chan et al. 1979), which cancel nothing; float32 at least. One
    message over the ranks in each direction; weight and bias get this rank's share of their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        rows: Tensor,
        running_means: Tensor,
        running_vars: Tensor,
        eps: float,
        over_ranks: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind = torch.promote_types(x.dtype, torch.float32)
        values, places = x.to(kind), tuple(range(2, x.ndim))
        area = x[0, 0].numel()
        own = values.mean(places) if places else values
        squares = (values - _over(own, x)).square_().sum(places) if places else torch.zeros_like(own)
        member = _members(rows, running_means).to(kind)
        found = _pool(member * area, own[:, None], member[..., None] * squares[:, None])
        if over_ranks:
            found = _pool(*_every_rank(*found))
        counts, means, squares = found
        known = (counts > 1)[:, None]
        means = torch.where(known, means, running_means.to(kind))
        variances = torch.where(known, squares / counts.clamp(min=1)[:, None], running_vars.to(kind))
        scales = (variances + eps).rsqrt()
        output = torch.addcmul(
            _over(bias.to(kind)[None], x), values - _over(means[rows], x), _over(scales[rows] * weight.to(kind), x)
        ).to(x.dtype)
        ctx.save_for_backward(x, weight, rows, counts, means, scales)
        ctx.over_ranks = over_ranks
        ctx.mark_non_differentiable(counts, means, variances)
        return output, counts, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, rows, counts, means, scales = ctx.saved_tensors
        gradient, places = gradients[0].to(means.dtype), tuple(range(2, x.ndim))
        normal = (x.to(means.dtype) - _over(means[rows], x)).mul_(_over(scales[rows], x))
        sums = torch.stack([gradient, gradient * normal], 1)
        sums = sums.sum(tuple(place + 1 for place in places)) if places else sums  # [B, 2, C]
        own = sums.sum(0)
        found: list[Any] = [None, own[1].to(weight.dtype), own[0].to(weight.dtype), *[None] * 5]
        if ctx.needs_input_grad[0]:
            member = _members(rows, counts).to(sums)
            by_group = (member[:, :, None, None] * sums[:, None]).sum(0)  # [S, 2, C]
            if ctx.over_ranks:
                dist.all_reduce(by_group)
            by_group = torch.where(counts > 1, 1 / counts.clamp(min=1), 0.0)[:, None, None] * by_group
            mean, slope = by_group[rows].unbind(1)
            centred = (gradient - _over(mean, x)).sub_(normal.mul_(_over(slope, x)))
            found[0] = centred.mul_(_over(scales[rows] * weight.to(means.dtype), x)).to(x.dtype)
        return tuple(found)


def _members(rows: Tensor, groups: Tensor) -> Tensor:
    """Whether each picture is of each group, bool [B, S]; waits for no GPU."""
    return rows[:, None] == torch.arange(len(groups), device=rows.device)


def _over(values: Tensor, like: Tensor) -> Tensor:
    """[B or 1, C] in the number of dimensions of ``like``."""
    return values[(...,) + (None,) * (like.ndim - 2)]


def _pool(counts: Tensor, means: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Join parts: counts [N, S], means and centred sums of squares [N, S or 1, C] -> [S], [S, C], [S, C]."""
    total = counts.sum(0)
    mean = ((counts / total.clamp(min=1))[..., None] * means).sum(0)
    return total, mean, (squares + counts[..., None] * (means - mean).square()).sum(0)


def _every_rank(counts: Tensor, means: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    own = torch.cat([counts[:, None], means, squares], 1)
    every = [torch.empty_like(own) for _ in range(_ranks())]
    dist.all_gather(every, own)
    table, width = torch.stack(every), means.shape[1]
    return table[..., 0], table[..., 1 : 1 + width], table[..., 1 + width :]


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def alike(tensor: Tensor) -> Tensor:
    """Rank 0's tensor on every rank: layers that normalise over ranks must run on all of them or on none, so what is
    drawn at random to choose layers must be the same."""
    if _ranks() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean over the ranks of a tensor without a gradient."""
    if _ranks() > 1:
        dist.all_reduce(tensor)
        tensor = tensor / _ranks()
    return tensor


def synchronise(network: nn.Module) -> None:
    """Let every BatchNorm of ``network`` normalise, in training, over the pictures of all ranks. Weights, names and
    evaluation stay. Raises ConfigError where there is one of a kind that cannot."""
    for norm in _norms(network, "train.sync_batchnorm"):
        norm.over_ranks = True


def convert(network: nn.Module, config: Any, sources: Sequence[str] = ()) -> None:
    """Give a network, in place, the normalisation that ``config`` names.

    sources: names of the training sources. Raises ConfigError where the layers are of a kind that cannot.
    """
    inside = [norm for module in network.modules() if isinstance(module, Backbone) for norm in _found(module)]
    if isinstance(config, FrozenConfig) or getattr(config, "backbone", "") == "frozen":
        for norm in inside:
            _joint(norm, "model.norm").frozen = True
            norm.eval()
    if isinstance(config, PerSourceConfig):
        for norm in _norms(network, "model.norm"):
            _by_source(norm, len(sources))
    if isinstance(config, GroupConfig):
        kept = set(map(id, inside))
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _BatchNorm) and id(child) not in kept:
                    setattr(parent, name, _grouped(child, config.width))


def by_source(method: Method) -> Method:
    """For a network's method of a batch: while it runs, layers know which picture is of which source, by the order of
    the network's ``sources``. Raises ConfigError in training where a picture is of none of these."""

    @functools.wraps(method)
    def told(network: Any, batch: Batch, *others: Any, **named: Any) -> Any:
        if not network.sources or not network.training:
            return method(network, batch, *others, **named)
        if unknown := sorted(set(batch.sources) - set(network.sources)):
            raise ConfigError(
                f"model.norm.name is 'per_source', and the network was built for {', '.join(network.sources)}; a batch "
                f"holds pictures of {', '.join(unknown)}. Train on the sources of its recipe, or take another norm."
            )
        rows = torch.tensor([network.sources.index(source) for source in batch.sources])
        token = _rows.set(rows.to(batch.images.device))
        try:
            return method(network, batch, *others, **named)
        finally:
            _rows.reset(token)

    return told  # type: ignore[return-value]


def _found(network: nn.Module) -> Iterator[_BatchNorm]:
    return (module for module in network.modules() if isinstance(module, _BatchNorm))


def _norms(network: nn.Module, key: str) -> list[JointBatchNorm]:
    return [_joint(norm, key) for norm in _found(network)]


def _joint(norm: _BatchNorm, key: str) -> JointBatchNorm:
    """The same layer as `JointBatchNorm`: in place, for others (schedules, hooks) hold on to it."""
    if isinstance(norm, JointBatchNorm):
        return norm
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d):
        raise ConfigError(
            f"{key}: this network normalises by {type(norm).__name__}, which can only be left as it is. Expected "
            "BatchNorm. Take another backbone, or give train.sync_batchnorm: false and model.norm.name: batch."
        )
    norm.__class__ = JointBatchNorm
    return norm  # type: ignore[return-value]


def _by_source(norm: JointBatchNorm, sources: int) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise ConfigError("model.norm: a layer keeps no running statistics, so it cannot keep any by source.")
    if not sources:
        raise ConfigError("model.norm.name is 'per_source', but the recipe has no data.train. Name its sources.")
    norm.sources = sources
    norm.register_buffer("source_means", norm.running_mean.repeat(sources, 1))
    norm.register_buffer("source_vars", norm.running_var.repeat(sources, 1))
    norm.register_buffer("source_images", torch.zeros(sources, dtype=torch.long))


def _grouped(norm: _BatchNorm, width: int) -> nn.GroupNorm:
    """GroupNorm with the scale and shift of a BatchNorm."""
    channels = norm.num_features
    grouped = nn.GroupNorm(channels // math.gcd(channels, width), channels, norm.eps, norm.affine)
    grouped.load_state_dict({k: v for k, v in norm.state_dict().items() if k in ("weight", "bias")})
    return grouped if norm.weight is None else grouped.to(norm.weight)
