"""Which picture of which source comes at which place of a training run: a pure function of the seed.

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

from perception.config import configuration
from perception.types import ConfigError

_ORDER, _RANKS = 0, 3
_FINENESS = 10**6
_ROUNDS, _KEPT = 200, 0.25


@configuration
class MixConfig:
    """How the sources of training take turns.

    temperature: None = a source's share is its ``weight``, however many pictures it has; T = its weight times
                 ``pictures ** (1 / T)``: 1 = in proportion to size, more = flatter
    balance:     "sources" = shares as they are; "tasks" = shares moved so that the tasks are labelled as evenly as the
                 sources permit; each source keeps at least a quarter of its share
    batches:     "mixed" = every batch holds all sources in proportion; "by_source" = a batch is of one source
    """

    temperature: float | None = None
    balance: Literal["sources", "tasks"] = "sources"
    batches: Literal["mixed", "by_source"] = "mixed"

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(f"data.mix.temperature is {self.temperature}. Expected a number over 0, or null.")


def shares(
    sizes: Sequence[int], weights: Sequence[float], coverage: Sequence[Mapping[str, float]], config: MixConfig
) -> list[float]:
    """How much of training each source gets; they sum to 1.

    coverage: of each source, task -> part of its pictures that label the task
    """
    amounts = np.array(weights, float)
    if config.temperature is not None:
        amounts = amounts * np.array(sizes, float) ** (1 / config.temperature)
    amounts /= amounts.sum()
    if config.balance == "tasks":
        tasks = sorted({task for source in coverage for task, part in source.items() if part > 0})
        amounts = _evened(amounts, np.array([[source.get(task, 0.0) for task in tasks] for source in coverage]))
    return amounts.tolist()


def _evened(amounts: NDArray, coverage: NDArray) -> NDArray:
    """Amounts [S] that maximise the sum of the logarithms of the tasks' coverage ``amounts @ coverage`` [T].

    That is the fairest division (no task gains without another losing more of its share), found by the multiplicative
    update of expectation maximisation. Every source keeps `_KEPT` of its amount, all of it where it labels nothing;
    sources of equal labels keep their proportion.
    """
    kept = np.where(coverage.any(1), _KEPT, 1.0) * amounts
    moved = amounts - kept
    room = moved.sum()
    for _ in range(_ROUNDS if room else 0):
        moved = moved * (coverage / ((kept + moved) @ coverage)).sum(1)
        moved *= room / moved.sum()
    return kept + moved


class Order:
    """Sources interleaved by their shares. Position ``p`` counts the samples of a run: ``step * batch_size + k``.

    Source ``s`` has its ``k``-th turn at time ``(k + u_s) / w_s`` with its share ``w_s``, and positions are the turns
    in order of time: every stretch of positions holds every source in proportion, within one turn, and a longer run
    only appends. A turn's picture depends on the seed, the source's name and ``k`` alone: a source that is added or
    removed alters no sample of the others.

    block: how many positions in a row are of one source
    """

    def __init__(
        self, names: Sequence[str], sizes: Sequence[int], shares: Sequence[float], seed: int = 0, block: int = 1
    ) -> None:
        self.seed, self.block = seed % 2**63, block
        self.sizes = tuple(sizes)
        amounts = [max(1, round(share / max(shares) * _FINENESS)) for share in shares]
        self.shares = [Fraction(amount, sum(amounts)) for amount in amounts]
        self.keys = [zlib.crc32(name.encode()) for name in names]
        self._starts = [Fraction(int(self.rng(s, _ORDER).integers(1, 2**16)), 2**16) for s in range(len(names))]

    def positions(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> list[int]:
        """The positions that one rank takes of a step's ``batch_size`` (over all ranks), in random order.

        Dealt out at random, or a rank might see only every second source.
        """
        order = np.random.default_rng([self.seed, _RANKS, step]).permutation(batch_size) if world > 1 else None
        mine = range(batch_size) if order is None else order[rank::world].tolist()
        return [step * batch_size + k for k in mine]

    def turn(self, position: int) -> tuple[int, int]:
        """(index of the source, how many samples of it came before) at a position."""
        number, within = divmod(position, self.block)
        count = len(self.sizes)
        begin, end = Fraction(max(0, number - count)), Fraction(number + count + 1)
        turns = []
        before = 0
        for s in range(count):
            first, last = self._turns_until(s, begin), self._turns_until(s, end)
            before += first
            turns += [((k + self._starts[s]) / self.shares[s], s, k) for k in range(first, last)]
        _, source, k = sorted(turns)[number - before]
        return source, k * self.block + within

    def item(self, position: int) -> tuple[int, int]:
        """(index of the source, index of its picture) at a position; every picture once before any comes again."""
        s, k = self.turn(position)
        return s, self.picture(s, k)

    def picture(self, source: int, k: int) -> int:
        """Index of the ``k``-th picture of a source."""
        epoch, place = divmod(k, self.sizes[source])
        return int(_permutation(self.seed, self.keys[source], epoch, self.sizes[source])[place])

    def rng(self, source: int, *stream: int) -> np.random.Generator:
        """Randomness that depends on the seed, the source's name and the numbers alone."""
        return np.random.default_rng([self.seed, self.keys[source], *stream])

    def _turns_until(self, source: int, time: Fraction) -> int:
        return max(0, math.ceil(time * self.shares[source] - self._starts[source]))


@lru_cache(maxsize=16)
def _permutation(seed: int, key: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, key, _ORDER, epoch]).permutation(count)
