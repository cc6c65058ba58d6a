"""Order of the images in a training run, as a pure function of the seed.

The sampler has no state. A run resumes by starting at another step, and any process can prepare any sample.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.config import config_dataclass
from perception.types import ConfigError

_ORDER_STREAM, _RANK_STREAM = 0, 3
_SHARE_STEPS = 10**6
_MAX_ITERATIONS, _KEPT_FRACTION = 200, 0.25


@config_dataclass
class MixConfig:
    """How the training sources are mixed.

    Attributes:
        temperature: None = the share of a source is its ``weight``, whatever its size; T = its weight times
            ``images ** (1 / T)``: 1 = proportional to the size, larger = flatter.
        even: "sources" = shares are not changed; "tasks" = shares are changed so that the tasks are labeled as evenly
            as possible. Each source keeps at least a quarter of its share.
        batches: "mixed" = every batch has all sources in proportion; "by_source" = a batch has one source.
    """

    temperature: float | None = None
    even: Literal["sources", "tasks"] = "sources"
    batches: Literal["mixed", "by_source"] = "mixed"

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(f"data.mix.temperature is {self.temperature}. Expected a number over 0, or null.")


def compute_sampling_shares(
    sizes: Sequence[int], weights: Sequence[float], coverage: Sequence[Mapping[str, float]], config: MixConfig
) -> list[float]:
    """Compute the share of the training samples for each source. The shares sum to 1.

    Args:
        sizes: number of images of each source.
        weights: weight of each source.
        coverage: for each source, task -> fraction of its images that label the task.
        config: how the sources are mixed.
    """
    amounts = np.array(weights, float)
    if config.temperature is not None:
        amounts = amounts * np.array(sizes, float) ** (1 / config.temperature)
    amounts /= amounts.sum()
    if config.even == "tasks":
        tasks = sorted({task for source in coverage for task, part in source.items() if part > 0})
        amounts = _even_out_tasks(amounts, np.array([[source.get(task, 0.0) for task in tasks] for source in coverage]))
    return amounts.tolist()


def _even_out_tasks(shares: NDArray, coverage: NDArray) -> NDArray:
    """Shares [S] that maximize the sum of the logarithms of the task coverage ``shares @ coverage`` [T].

    This is the proportionally fair division, found by the multiplicative update of expectation maximization. Every
    source keeps `_KEPT_FRACTION` of its share, or all of it if it labels nothing. Sources with equal labels keep their
    proportion.
    """
    kept = np.where(coverage.any(1), _KEPT_FRACTION, 1.0) * shares
    moved = shares - kept
    room = moved.sum()
    for _ in range(_MAX_ITERATIONS if room else 0):
        moved = moved * (coverage / ((kept + moved) @ coverage)).sum(1)
        moved *= room / moved.sum()
    return kept + moved


class MixtureSampler:
    """Sources interleaved by their shares. A position is the number of a sample in the run: ``step * batch_size + k``.

    Source ``s`` with share ``w_s`` has its ``k``-th turn at time ``(k + u_s) / w_s``. Positions are the turns in order
    of time. Every range of positions has every source in proportion, within one turn, and a longer run only appends.
    The image of a turn depends only on the seed, the name of the source and ``k``. Adding or removing a source does
    not change the samples of the others.

    Attributes:
        seed: seed of the run.
        block_size: number of consecutive positions with the same source.
        sizes: number of images of each source.
        sampling_shares: share of each source, as a fraction.
        source_keys: hash of the name of each source.
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        sampling_shares: Sequence[float],
        seed: int = 0,
        block_size: int = 1,
    ) -> None:
        self.seed, self.block_size = seed % 2**63, block_size
        self.sizes = tuple(sizes)
        amounts = [max(1, round(share / max(sampling_shares) * _SHARE_STEPS)) for share in sampling_shares]
        self.sampling_shares = [Fraction(amount, sum(amounts)) for amount in amounts]
        self.source_keys = [zlib.crc32(name.encode()) for name in names]
        self._starts = [
            Fraction(int(self.make_rng(s, _ORDER_STREAM).integers(1, 2**16)), 2**16) for s in range(len(names))
        ]

    def batch_positions(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[int]:
        """Return the positions of one rank in a step of ``batch_size`` samples over all ranks.

        With several ranks the order is random: otherwise a rank might get only every second source.
        """
        order = (
            np.random.default_rng([self.seed, _RANK_STREAM, step]).permutation(batch_size) if world_size > 1 else None
        )
        mine = range(batch_size) if order is None else order[rank::world_size].tolist()
        return [step * batch_size + k for k in mine]

    def locate_turn(self, position: int) -> tuple[int, int]:
        """Return (index of the source, number of its earlier samples) at a position."""
        number, within = divmod(position, self.block_size)
        count = len(self.sizes)
        begin, end = Fraction(max(0, number - count)), Fraction(number + count + 1)
        turns = []
        before = 0
        for s in range(count):
            first, last = self._count_turns(s, begin), self._count_turns(s, end)
            before += first
            turns += [((k + self._starts[s]) / self.sampling_shares[s], s, k) for k in range(first, last)]
        _, source, k = sorted(turns)[number - before]
        return source, k * self.block_size + within

    def locate_image(self, position: int) -> tuple[int, int]:
        """Return (index of the source, index of its image) at a position. An epoch has every image once."""
        s, k = self.locate_turn(position)
        return s, self.image_index(s, k)

    def image_index(self, source: int, k: int) -> int:
        """Return the index of the image in the ``k``-th sample of a source."""
        epoch, place = divmod(k, self.sizes[source])
        return int(_permutation(self.seed, self.source_keys[source], epoch, self.sizes[source])[place])

    def make_rng(self, source: int, *stream: int) -> np.random.Generator:
        """Make a generator that depends only on the seed, the name of the source and the numbers ``stream``."""
        return np.random.default_rng([self.seed, self.source_keys[source], *stream])

    def _count_turns(self, source: int, time: Fraction) -> int:
        return max(0, math.ceil(time * self.sampling_shares[source] - self._starts[source]))


@lru_cache(maxsize=16)
def _permutation(seed: int, key: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, key, _ORDER_STREAM, epoch]).permutation(count)
