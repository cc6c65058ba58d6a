"""Fusion: feature exchange between the task branches, before the heads."""

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
    """Config of no fusion, without settings: every head reads the output of sharing."""

    name: Literal["none"] = "none"


class NoFusion(nn.Module):
    """Passes the streams on unchanged."""

    Config = NoFusionConfig

    def __init__(self, config: NoFusionConfig, channels: PyramidChannels) -> None:
        super().__init__()

    def forward(self, pyramids: PyramidMapping) -> dict[str, dict[int, Tensor]]:
        """Return the pyramids unchanged."""
        return {name: dict(pyramid) for name, pyramid in pyramids.items()}

    adapt = exchange = forward

    def compute_attention(self, pyramids: PyramidMapping) -> dict[int, AttentionMaps]:
        """Return an empty dict: there is no attention."""
        return {}

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Do nothing: there are no task-specific parts."""


@config_dataclass
class AttentionFusionConfig:
    """Config of cross-task attention.

    Attributes:
        strides: pyramid levels on which the streams attend to each other.
        channels: width of the attention.
        num_summaries: number of summary vectors per stream, which all locations can attend to.
        task_dropout: in training, probability per image that a task is hidden from the others, so that they also work
            without it.
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
    """Attention weights of one level, for T streams and S summaries.

    Attributes:
        tasks: names of the streams.
        local_weights: [B, T, T, H, W], weight of each stream (second T) at the same location, for each reading stream
            (first T) and location.
        summary_weights: [B, T, T, S, H, W], weight of each stream's summaries. Together with ``local_weights`` they sum
            to one.
        gather_weights: [B, T, S, H, W], weight of each location in a stream's summary. They sum to one over the
            locations.
    """

    tasks: tuple[str, ...]
    local_weights: Tensor
    summary_weights: Tensor
    gather_weights: Tensor

    def mean_weights(self) -> Tensor:
        """Return the weight of each stream (column) for each stream (row), [B, T, T], averaged over locations.

        Rows sum to one.
        """
        return (self.local_weights + self.summary_weights.sum(3)).mean((-2, -1))

    def weights_at(self, task: str, row: int, column: int) -> Tensor:
        """Return the weights of all locations of all streams for a task at one location, [B, T, H, W].

        They sum to one.
        """
        index = self.tasks.index(task)
        maps = torch.einsum("bus,bushw->buhw", self.summary_weights[:, index, :, :, row, column], self.gather_weights)
        maps[:, :, row, column] += self.local_weights[:, index, :, row, column]
        return maps


class AttentionFusion(nn.Module):
    """Cross-task attention on the coarse levels. At initialization it is the identity.

    First, a task-specific block adapts the features of each stream (`adapt`). With hard sharing, all streams are the
    same tensor before this block, so there would be nothing to exchange. Then the streams attend to each other
    (`exchange`).

    Args:
        config: the fusion's config.
        channels: stream -> {stride: channels}. A stream is skipped on the levels that it lacks.

    The input can be any subset of the streams. Missing streams are not attended to.
    """

    Config = AttentionFusionConfig

    def __init__(self, config: AttentionFusionConfig, channels: PyramidChannels) -> None:
        super().__init__()
        self.levels = nn.ModuleDict()
        for stride in config.strides:
            here = {name: widths[stride] for name, widths in channels.items() if stride in widths}
            self.levels[str(stride)] = CrossTaskAttention(config, here)

    def forward(self, pyramids: PyramidMapping) -> dict[str, dict[int, Tensor]]:
        """Return the adapted features, with those of the other streams added on the coarse levels."""
        return self.exchange(self.adapt(pyramids))

    def adapt(self, pyramids: PyramidMapping) -> dict[str, dict[int, Tensor]]:
        """Return the streams after their task-specific blocks, which is what the other tasks can read."""
        return self._apply_to_levels(pyramids, lambda level, features: level.adapt(features))

    def exchange(self, adapted: PyramidMapping) -> dict[str, dict[int, Tensor]]:
        """Return the `adapt` features, with those of the other streams added."""
        return self._apply_to_levels(adapted, lambda level, features: level(features))

    def compute_attention(self, pyramids: PyramidMapping) -> dict[int, AttentionMaps]:
        """Return {stride: attention weights on that level}."""
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
        """Remove the parts of the other streams, in place."""
        for level in self.levels.values():
            level.keep_tasks(tasks)  # type: ignore[operator]


class _TaskAdapter(nn.Module):
    """The task-specific block of a stream: ``x + gate * block(x)`` (ReZero, Bachlechner et al. 2021).

    The gate of each channel starts at zero: the block starts as the identity, yet its task trains it from the first
    step.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = separable_conv(channels, channels, 3)
        self.gate = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate[:, None, None] * self.block(x)


class _TaskBranch(nn.Module):
    """The task-specific block of a stream, and the layers for its queries, keys, values and summaries."""

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

    Every location of a stream attends to each stream in two ways: at the same location, and to a few summaries of the
    image (each a learned soft selection of locations, as in double attention, Chen et al. 2018). The cost is therefore
    linear in the number of locations, not quadratic, for any image size. The results are added behind a gate per
    channel that starts at zero. All methods except `adapt` take the output of `adapt`.
    """

    def __init__(self, config: AttentionFusionConfig, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.config = config
        self.branches = nn.ModuleDict({name: _TaskBranch(width, config) for name, width in channels.items()})

    def adapt(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return {stream: [B, C, H, W]} after the task-specific blocks."""
        return {
            name: part.adapter(x)
            for (name, x), part in zip(features.items(), self._select_branches(features), strict=True)
        }

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return {stream: [B, C, H, W]} with the features of the other streams added."""
        answers, *_ = self._attend(features)
        fused: dict[str, Tensor] = {}
        for (name, x), part, answer in zip(
            features.items(), self._select_branches(features), answers.unbind(2), strict=True
        ):
            change = part.output(answer) * part.gate  # [B, H W, C]
            fused[name] = x + change.transpose(1, 2).unflatten(2, x.shape[-2:])
        return fused

    def compute_attention(self, features: Mapping[str, Tensor]) -> AttentionMaps:
        """Return the attention weights of `forward`."""
        _, here, summary, where = self._attend(features)
        size = next(iter(features.values())).shape[-2:]
        maps = (x.movedim(1, -1).unflatten(-1, size) for x in (here, summary, where))
        return AttentionMaps(tuple(features), *maps)

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove the parts of the other streams, in place."""
        self.branches = nn.ModuleDict({name: part for name, part in self.branches.items() if name in tasks})

    def _attend(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return answers [B, N, T, channels] and three weights, for N = H W locations.

        The weights are here [B, N, T, T], summary [B, N, T, T, S] and where [B, N, T, S].
        """
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
        """In training, hide random streams from the others, independently for each image."""
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
    """Build the fusion that a config names, for streams with these channels."""
    return FUSIONS[config.name](config, channels)
