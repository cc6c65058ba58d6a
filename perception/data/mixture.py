"""The samples of a training run: the pictures that the order names, changed at random, damaged ones replaced."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from perception.data.dataset import Source
from perception.data.mosaic import Mosaic
from perception.data.sampler import MixConfig, Order, shares
from perception.data.transforms import AugmentConfig, for_training
from perception.files.images import PictureError
from perception.types import DataError, Sample

logger = logging.getLogger(__name__)

_CHANGE, _REPLACE, _MOSAIC = 1, 2, 4
"""Streams of randomness, beside the order's."""

_TRIES = 20


class Mixture:
    """Sources mixed into one endless list of training samples.

    order:   which picture comes at which position
    skipped: id -> reason, of the damaged or missing pictures that came up and were replaced
    """

    def __init__(
        self,
        sources: Sequence[Source],
        size: tuple[int, int],
        augment: AugmentConfig | None = None,
        seed: int = 0,
        allow_damaged: float = 0.01,
        mix: MixConfig | None = None,
        batch_size: int = 1,
    ) -> None:
        if not sources:
            raise DataError("A mixture needs at least one source.")
        self.sources = tuple(sources)
        self.size, self.augment, self.allow_damaged = size, augment or AugmentConfig(), allow_damaged
        self.skipped: dict[str, str] = {}
        self._reported: set[str] = set()
        mix = mix or MixConfig()
        sizes = [len(source) for source in sources]
        parts = shares(sizes, [source.weight for source in sources], [source.coverage for source in sources], mix)
        block = batch_size if mix.batches == "by_source" else 1
        self.order = Order([source.name for source in sources], sizes, parts, seed, block)

    def id(self, position: int) -> str:
        """Name of the picture at a position."""
        s, index = self.order.item(position)
        return self.sources[s].id(index)

    def sample(self, position: int) -> Sample:
        """The sample at a position as a network input, annotations and camera in its pixels.

        A missing or damaged picture is replaced by another of the same source, the same in every run, and recorded in
        ``skipped``. Raises DataError where labels are wrong.
        """
        s, k = self.order.turn(position)
        if self.augment.mosaic:
            rng = self.order.rng(s, _MOSAIC, k)
            if rng.random() < self.augment.mosaic:
                return self._mosaic(s, k, rng)
        prepare = partial(for_training, size=self.size, config=self.augment)
        return self._prepared((s, k), self.order.picture(s, k), prepare)

    def _mosaic(self, s: int, k: int, rng: np.random.Generator) -> Sample:
        mosaic = Mosaic(self.size, self.augment, rng)
        others = rng.integers(len(self.sources[s]), size=len(mosaic.tiles) - 1).tolist()
        samples = [
            self._prepared((s, k, number), index, partial(mosaic.placed, number=number))
            for number, index in enumerate([self.order.picture(s, k), *others])
        ]
        return mosaic.joined(samples, rng)

    def _prepared(self, turn: tuple[int, ...], index: int, prepare: Callable[..., Sample]) -> Sample:
        """Picture ``index`` of the source ``turn[0]`` prepared, another one where it is damaged.

        Which other and what is random: a function of the turn.
        """
        source, others = self.sources[turn[0]], None
        for _ in range(_TRIES):
            try:
                return prepare(*source.open(index), rng=self.order.rng(turn[0], _CHANGE, *turn[1:]))
            except PictureError as error:
                self.skipped[source.id(index)] = str(error)
                others = others or self.order.rng(turn[0], _REPLACE, *turn[1:])
                index, damaged = int(others.integers(len(source))), source.id(index)
        raise DataError(f"Source '{source.name}': {_TRIES} pictures in a row cannot be read. {self.skipped[damaged]}")

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
