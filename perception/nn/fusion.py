"""Fusion: what the tasks' streams tell one another before the heads read them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.blocks import ChannelCount, conv_norm_act, separable_conv
from perception.nn.necks import check_strides
from perception.types import ConfigError

PyramidMapping = Mapping[str, Mapping[int, Tensor]]
PyramidChannels = Mapping[str, Mapping[int, int]]


@config_dataclass
class NoFusionConfig:
    """Has no settings: every head reads what sharing gives it."""

    name: Literal["none"] = "none"


class NoFusion(nn.Module):
    """Leaves the streams as they are."""

    Config = NoFusionConfig

    def __init__(self, config: NoFusionConfig, channels: PyramidChannels) -> None:
        super().__init__()

    def forward(self, pyramids: PyramidMapping) -> dict[str, dict[int, Tensor]]:
        return {name: dict(pyramid) for name, pyramid in pyramids.items()}

    adapt = exchange = forward

    def compute_attention(self, pyramids: PyramidMapping) -> dict[int, AttentionMaps]:
        return {}

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Has nothing to drop."""


@config_dataclass
class AttentionFusionConfig:
    """strides: levels of the pyramid where streams attend to one another.

    channels: of the attention. num_summaries: how many places a stream is summarized to, for all locations to read.
    task_dropout: how often, in training, a task is hidden from the others in an image, so that they learn to do
    without.
    """

    name: Literal["attention"] = "attention"
    strides: tuple[int, ...] = (16, 32)
    channels: ChannelCount = 48
    num_summaries: Annotated[int, Field(gt=0)] = 4
    task_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25

    def __post_init__(self) -> None:
        try:
            check_strides(self.strides)
        except ConfigError as error:
            raise ConfigError(f"model.fusion.{error}") from None


class AttentionMaps(NamedTuple):
    """Who attended to whom on one level. T streams, S summaries.

    tasks:   of the streams
    local_weights:    [B, T, T, H, W]: what a stream (first T), at a location, took of each stream at the same location
    summary_weights: [B, T, T, S, H, W]: what it took of each stream's summaries; with ``local_weights`` it adds up to
    one
    gather_weights:   [B, T, S, H, W]: where a stream's summary was gathered; adds up to one over the locations
    """

    tasks: tuple[str, ...]
    local_weights: Tensor
    summary_weights: Tensor
    gather_weights: Tensor

    def mean_weights(self) -> Tensor:
        """[B, T, T]: how much each stream (row) took of each (column), over all locations. Rows add up to one."""
        return (self.local_weights + self.summary_weights.sum(3)).mean((-2, -1))

    def weights_at(self, task: str, row: int, column: int) -> Tensor:
        """[B, T, H, W]: what the stream at one location took of each location of each stream. Adds up to one."""
        index = self.tasks.index(task)
        maps = torch.einsum("bus,bushw->buhw", self.summary_weights[:, index, :, :, row, column], self.gather_weights)
        maps[:, :, row, column] += self.local_weights[:, index, :, row, column]
        return maps


class AttentionFusion(nn.Module):
    """Cross-task attention on the coarse levels, starting as the identity.

    First each stream's own block makes its features those of its task (`own`): where tasks share their trunk hard, all
    streams are one tensor before it, and there is nothing to exchange. Then they attend to one another (`exchange`).

    channels: stream -> {stride: channels}. A stream that lacks a level is left out of it. Any subset of the streams can
    be given; those that are absent are not attended to.
    """

    Config = AttentionFusionConfig

    def __init__(self, config: AttentionFusionConfig, channels: PyramidChannels) -> None:
        super().__init__()
        self.levels = nn.ModuleDict()
        for stride in config.strides:
            here = {name: widths[stride] for name, widths in channels.items() if stride in widths}
            self.levels[str(stride)] = CrossTaskAttention(config, here)

    def forward(self, pyramids: PyramidMapping) -> dict[str, dict[int, Tensor]]:
        """The streams' own features, each with what it took of the others' on the coarse levels."""
        return self.exchange(self.adapt(pyramids))

    def adapt(self, pyramids: PyramidMapping) -> dict[str, dict[int, Tensor]]:
        """The streams behind their own blocks: what each task shows to the others."""
        return self._apply_to_levels(pyramids, lambda level, features: level.adapt(features))

    def exchange(self, adapted: PyramidMapping) -> dict[str, dict[int, Tensor]]:
        """The streams' `own` features, each with what it took of the others'."""
        return self._apply_to_levels(adapted, lambda level, features: level(features))

    def compute_attention(self, pyramids: PyramidMapping) -> dict[int, AttentionMaps]:
        """Stride -> who attends to whom there."""
        own = self.adapt(pyramids)
        return {stride: level.compute_attention(features) for stride, level, features in self._iterate_levels(own)}

    def _iterate_levels(self, pyramids: PyramidMapping) -> Iterator[tuple[int, Any, dict[str, Tensor]]]:
        for stride, level in self.levels.items():
            here = {name: pyramid[int(stride)] for name, pyramid in pyramids.items() if int(stride) in pyramid}
            if here:
                yield int(stride), level, here

    def _apply_to_levels(
        self, pyramids: PyramidMapping, change: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]
    ) -> dict[str, dict[int, Tensor]]:
        changed = {name: dict(pyramid) for name, pyramid in pyramids.items()}
        for stride, level, features in self._iterate_levels(pyramids):
            for name, found in change(level, features).items():
                changed[name][stride] = found
        return changed

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Drop the other streams' parts, in place."""
        for level in self.levels.values():
            level.keep_tasks(tasks)  # type: ignore[operator]


class _TaskAdapter(nn.Module):
    """A stream's own block: ``x + gate * block(x)``, the gate of each channel starting at zero, so that it is the
    identity at the start and yet its own task moves it from the first step on (ReZero, Bachlechner et al. 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = separable_conv(channels, channels, 3)
        self.gate = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate[:, None, None] * self.block(x)


class _TaskBranch(nn.Module):
    """A stream's own block, and its light branch: what it shows to the others, and what it asks them."""

    def __init__(self, channels: int, config: AttentionFusionConfig) -> None:
        super().__init__()
        width = config.channels
        self.adapter = _TaskAdapter(channels)
        narrow = nn.Conv2d(channels, width, 1, bias=False)
        self.embed = nn.Sequential(narrow, *conv_norm_act(width, width, 3, groups=width))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.gather = nn.Linear(width, config.num_summaries)
        self.output = nn.Linear(width, channels)
        self.gate = nn.Parameter(torch.zeros(channels))


class CrossTaskAttention(nn.Module):
    """Attention between the streams of one level.

    Every location of a stream asks each stream two things: what it sees at the same location, and what it sees in the
    image, in a few summaries (each a learned soft selection of locations, as in double attention, Chen et al. 2018).
    So the cost grows with the number of locations, not with its square, whatever the size of the image. The answers
    are added behind a gate for each channel that starts at zero. All but `own` works on what `own` returns.
    """

    def __init__(self, config: AttentionFusionConfig, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.config = config
        self.branches = nn.ModuleDict({name: _TaskBranch(width, config) for name, width in channels.items()})

    def adapt(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stream -> [B, C, H, W] behind its own block."""
        return {
            name: part.adapter(x)
            for (name, x), part in zip(features.items(), self._select_branches(features), strict=True)
        }

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stream -> [B, C, H, W], as given and fused."""
        answers, *_ = self._attend(features)
        fused: dict[str, Tensor] = {}
        for (name, x), part, answer in zip(
            features.items(), self._select_branches(features), answers.unbind(2), strict=True
        ):
            change = part.output(answer) * part.gate  # [B, H W, C]
            fused[name] = x + change.transpose(1, 2).unflatten(2, x.shape[-2:])
        return fused

    def compute_attention(self, features: Mapping[str, Tensor]) -> AttentionMaps:
        """The weights of `forward`."""
        _, here, summary, where = self._attend(features)
        size = next(iter(features.values())).shape[-2:]
        maps = (x.movedim(1, -1).unflatten(-1, size) for x in (here, summary, where))
        return AttentionMaps(tuple(features), *maps)

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Drop the other streams' parts, in place."""
        self.branches = nn.ModuleDict({name: part for name, part in self.branches.items() if name in tasks})

    def _attend(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Answers [B, N, T, width], and the weights: here [B, N, T, T], summary [B, N, T, T, S], where [B, N, T, S].
        N = H W locations."""
        parts, count = self._select_branches(features), len(features)
        looks = [part.embed(x).flatten(2).transpose(1, 2) for part, x in zip(parts, features.values(), strict=True)]
        queries, keys, values, places = (
            torch.stack([getattr(part, view)(look) for part, look in zip(parts, looks, strict=True)], 2)
            for view in ("query", "key", "value", "gather")
        )
        where = places.softmax(1)
        gather = where.permute(0, 2, 3, 1)  # [B, T, S, N]
        summary_keys, summary_values = ((gather @ x.transpose(1, 2)).flatten(1, 2) for x in (keys, values))

        queries = queries * self.config.channels**-0.5
        summary = queries.flatten(1, 2) @ summary_keys.transpose(1, 2)  # [B, N T, T S]
        scores = torch.cat([queries @ keys.transpose(2, 3), summary.unflatten(1, (-1, count))], 3)
        weights = self._drop_tasks(scores, count).softmax(3)
        here, summary = weights[..., :count], weights[..., count:]
        answers = here @ values + (summary.flatten(1, 2) @ summary_values).unflatten(1, (-1, count))
        return answers, here, summary.unflatten(3, (count, -1)), where

    def _drop_tasks(self, scores: Tensor, count: int) -> Tensor:
        """In training, make streams absent for the others at random; each image has its own."""
        if not self.training or not self.config.task_dropout:
            return scores
        hidden = (torch.rand(len(scores), 1, count, device=scores.device) < self.config.task_dropout).expand(
            -1, count, -1
        )
        hidden = hidden & ~torch.eye(count, dtype=torch.bool, device=scores.device)
        hidden = torch.cat([hidden, hidden.repeat_interleave(self.config.num_summaries, 2)], 2)
        return scores.masked_fill(hidden[:, None], float("-inf"))

    def _select_branches(self, features: Mapping[str, Tensor]) -> list[Any]:
        return [self.branches[name] for name in features]


FUSIONS: dict[str, Any] = {"none": NoFusion, "attention": AttentionFusion}

FusionConfig: TypeAlias = Annotated[NoFusionConfig | AttentionFusionConfig, Field(discriminator="name")]


def build_fusion(
    config: NoFusionConfig | AttentionFusionConfig, channels: PyramidChannels
) -> NoFusion | AttentionFusion:
    """The fusion that a config names, of streams with these channels."""
    return FUSIONS[config.name](config, channels)
