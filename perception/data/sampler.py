"""Which image of which source comes at which place of a training run: a pure function of the seed.

Nothing here remembers how far it came, so resuming is starting at another step, and it does not matter which process
prepares which sample.
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
    """How the sources of training take turns.

    temperature: None = a source's share is its ``weight``, however many images it has; T = its weight times
                 ``images ** (1 / T)``: 1 = in proportion to size, more = flatter
    even:     "sources" = shares as they are; "tasks" = shares moved so that the tasks are labeled as evenly as the
                 sources permit; each source keeps at least a quarter of its share
    batches:     "mixed" = every batch holds all sources in proportion; "by_source" = a batch is of one source
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
    """How much of training each source gets; they sum to 1.

    coverage: of each source, task -> part of its images that label the task
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
    """Amounts [S] that maximize the sum of the logarithms of the tasks' coverage ``amounts @ coverage`` [T].

    That is the fairest division (no task gains without another losing more of its share), found by the multiplicative
    update of expectation maximisation. Every source keeps `_KEPT` of its amount, all of it where it labels nothing;
    sources of equal labels keep their proportion.
    """
    kept = np.where(coverage.any(1), _KEPT_FRACTION, 1.0) * shares
    moved = shares - kept
    room = moved.sum()
    for _ in range(_MAX_ITERATIONS if room else 0):
        moved = moved * (coverage / ((kept + moved) @ coverage)).sum(1)
        moved *= room / moved.sum()
    return kept + moved


class MixtureSampler:
    """Sources interleaved by their shares. Position ``p`` counts the samples of a run: ``step * batch_size + k``.

    Source ``s`` has its ``k``-th turn at time ``(k + u_s) / w_s`` with its share ``w_s``, and positions are the turns
    in order of time: every stretch of positions holds every source in proportion, within one turn, and a longer run
    only appends. A turn's image depends on the seed, the source's name and ``k`` alone: a source that is added or
    removed alters no sample of the others.

    block_size: how many positions in a row are of one source
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
        """The positions that one rank takes of a step's ``batch_size`` (over all ranks), in random order.

        Dealt out at random, or a rank might see only every second source.
        """
        order = (
            np.random.default_rng([self.seed, _RANK_STREAM, step]).permutation(batch_size) if world_size > 1 else None
        )
        mine = range(batch_size) if order is None else order[rank::world_size].tolist()
        return [step * batch_size + k for k in mine]

    def locate_turn(self, position: int) -> tuple[int, int]:
        """(index of the source, how many samples of it came before) at a position."""
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
        """(index of the source, index of its image) at a position; every image once before any comes again."""
        s, k = self.locate_turn(position)
        return s, self.image_index(s, k)

    def image_index(self, source: int, k: int) -> int:
        """Index of the ``k``-th image of a source."""
        epoch, place = divmod(k, self.sizes[source])
        return int(_permutation(self.seed, self.source_keys[source], epoch, self.sizes[source])[place])

    def make_rng(self, source: int, *stream: int) -> np.random.Generator:
        """Randomness that depends on the seed, the source's name and the numbers alone."""
        return np.random.default_rng([self.seed, self.source_keys[source], *stream])

    def _count_turns(self, source: int, time: Fraction) -> int:
        return max(0, math.ceil(time * self.sampling_shares[source] - self._starts[source]))


@lru_cache(maxsize=16)
def _permutation(seed: int, key: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, key, _ORDER_STREAM, epoch]).permutation(count)
