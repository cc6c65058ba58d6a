"""Which picture comes at which place of a training run, and in which shape: a pure function of the seed.

Nothing here remembers how far it came, so resuming is starting at another step, and it does not matter which process
prepares which sample.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from perception.data.dataset import Source
from perception.data.images import PictureError
from perception.data.transforms import AugmentConfig, for_training
from perception.types import DataError, Sample

logger = logging.getLogger(__name__)

_ORDER, _CHANGE, _REPLACE = range(3)
_TRIES = 20


class Mixture:
    """Sources interleaved by weight. Position ``p`` counts the samples of a run: ``step * batch_size + k``.

    Source ``s`` has its ``k``-th turn at time ``(k + u_s) / w_s`` with its share ``w_s`` of the weights, and positions
    are the turns in order of time: every stretch of positions holds every source in proportion, within one sample, and
    a longer run only appends. A turn's picture and its random changes depend on the seed, the source's name and ``k``
    alone: a source that is added or removed alters no sample of the others.

    skipped: id -> reason, of the damaged or missing pictures that came up and were replaced
    """

    def __init__(
        self,
        sources: Sequence[Source],
        size: tuple[int, int],
        augment: AugmentConfig | None = None,
        seed: int = 0,
        allow_damaged: float = 0.01,
    ) -> None:
        if not sources:
            raise DataError("A mixture needs at least one source.")
        self.sources = tuple(sources)
        self.size, self.augment, self.allow_damaged = size, augment or AugmentConfig(), allow_damaged
        self.seed = seed % 2**63
        self.skipped: dict[str, str] = {}
        self._reported: set[str] = set()
        weights = [Fraction(source.weight).limit_denominator(1000) for source in sources]
        self._shares = [weight / sum(weights) for weight in weights]
        self._keys = [zlib.crc32(source.name.encode()) for source in sources]
        self._starts = [Fraction(int(self._rng(s, _ORDER).integers(1, 2**16)), 2**16) for s in range(len(sources))]

    def positions(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> range:
        """The positions that one rank takes of a step's ``batch_size`` (over all ranks)."""
        return range(step * batch_size + rank, (step + 1) * batch_size, world)

    def turn(self, position: int) -> tuple[int, int]:
        """(index of the source, how many turns it had before) at a position."""
        count = len(self.sources)
        begin, end = Fraction(max(0, position - count)), Fraction(position + count + 1)
        turns = []
        before = 0
        for s in range(count):
            first, last = self._turns_until(s, begin), self._turns_until(s, end)
            before += first
            turns += [((k + self._starts[s]) / self._shares[s], s, k) for k in range(first, last)]
        _, source, k = sorted(turns)[position - before]
        return source, k

    def item(self, position: int) -> tuple[int, int]:
        """(index of the source, index of its picture) at a position; every picture once before any comes again."""
        s, k = self.turn(position)
        return s, self._picture(s, k)

    def id(self, position: int) -> str:
        """Name of the picture at a position."""
        s, index = self.item(position)
        return self.sources[s].id(index)

    def sample(self, position: int) -> Sample:
        """The sample at a position as a network input, annotations and camera in its pixels.

        A missing or damaged picture is replaced by another of the same source, the same in every run, and recorded in
        ``skipped``. Raises DataError where labels are wrong.
        """
        s, k = self.turn(position)
        source = self.sources[s]
        others = self._rng(s, _REPLACE, k)
        index = self._picture(s, k)
        for _ in range(_TRIES):
            try:
                sample = source.sample(index)
            except PictureError as error:
                self.skipped[source.id(index)] = str(error)
                index = int(others.integers(len(source)))
            else:
                return for_training(sample, self.size, self.augment, self._rng(s, _CHANGE, k))
        raise DataError(
            f"Source '{source.name}': {_TRIES} pictures in a row cannot be read. {self.skipped[source.id(index)]}"
        )

    def report(self, skipped: dict[str, str]) -> None:
        """Take note of what a process skipped: log it once.

        Raises DataError where it is more than one picture and more than ``allow_damaged`` of a source's pictures.
        """
        self.skipped.update(skipped)
        for id in sorted(set(self.skipped) - self._reported):
            self._reported.add(id)
            logger.warning("Skipped in training: %s", self.skipped[id])
        counts = Counter(id.partition("/")[0] for id in self.skipped)
        for source in self.sources:
            if counts[source.name] > max(1, self.allow_damaged * len(source)):
                example = next(reason for id, reason in self.skipped.items() if id.partition("/")[0] == source.name)
                raise DataError(
                    f"Source '{source.name}': {counts[source.name]} of its {len(source)} pictures cannot be read. "
                    f"At most {self.allow_damaged:.1%} may be skipped: mend them, or raise data.allow_damaged. "
                    f"One of them: {example}"
                )

    def _rng(self, source: int, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self._keys[source], *stream])

    def _turns_until(self, source: int, time: Fraction) -> int:
        return max(0, math.ceil(time * self._shares[source] - self._starts[source]))

    def _picture(self, source: int, k: int) -> int:
        epoch, place = divmod(k, len(self.sources[source]))
        return int(_permutation(self.seed, self._keys[source], epoch, len(self.sources[source]))[place])


@lru_cache(maxsize=16)
def _permutation(seed: int, key: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, key, _ORDER, epoch]).permutation(count)
