"""Samples of a training run: images in the order of the sampler, augmented, damaged ones replaced."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from perception.data.dataset import DataSource
from perception.data.mosaic import Mosaic
from perception.data.sampler import MixConfig, MixtureSampler, compute_sampling_shares
from perception.data.transforms import AugmentConfig, prepare_for_training
from perception.files.images import ImageError
from perception.types import DataError, Sample

logger = logging.getLogger(__name__)

_AUGMENT_STREAM, _REPLACE_STREAM, _MOSAIC_STREAM = 1, 2, 4
"""Random streams, besides that of the order."""

_MAX_TRIES = 20


class Mixture:
    """Sources mixed into one endless list of training samples.

    Attributes:
        sources: the sources.
        size: (height, width) of the network's input.
        augment: random changes of the images.
        max_damaged: largest fraction of a source's images that may be skipped.
        skipped: id -> reason, for damaged or missing images that were replaced.
        sampler: order of the images.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        size: tuple[int, int],
        augment: AugmentConfig | None = None,
        seed: int = 0,
        max_damaged: float = 0.01,
        mix: MixConfig | None = None,
        batch_size: int = 1,
    ) -> None:
        if not sources:
            raise DataError("A mixture needs at least one source.")
        self.sources = tuple(sources)
        self.size, self.augment, self.max_damaged = size, augment or AugmentConfig(), max_damaged
        self.skipped: dict[str, str] = {}
        self._reported: set[str] = set()
        mix = mix or MixConfig()
        sizes = [len(source) for source in sources]
        parts = compute_sampling_shares(
            sizes, [source.weight for source in sources], [source.coverage for source in sources], mix
        )
        block = batch_size if mix.batches == "by_source" else 1
        self.sampler = MixtureSampler([source.name for source in sources], sizes, parts, seed, block)

    def image_id(self, position: int) -> str:
        """Return the name of the image at a position."""
        s, index = self.sampler.locate_image(position)
        return self.sources[s].image_id(index)

    def load_sample(self, position: int) -> Sample:
        """Load the sample at a position as a network input, with annotations and camera in input pixels.

        A missing or damaged image is recorded in ``skipped`` and replaced by another one of the same source. The
        replacement is the same in every run. Raises DataError if labels are wrong.
        """
        s, k = self.sampler.locate_turn(position)
        if self.augment.mosaic:
            rng = self.sampler.make_rng(s, _MOSAIC_STREAM, k)
            if rng.random() < self.augment.mosaic:
                return self._load_mosaic(s, k, rng)
        prepare = partial(prepare_for_training, size=self.size, config=self.augment)
        return self._prepare_image((s, k), self.sampler.image_index(s, k), prepare)

    def _load_mosaic(self, s: int, k: int, rng: np.random.Generator) -> Sample:
        mosaic = Mosaic(self.size, self.augment, rng)
        others = rng.integers(len(self.sources[s]), size=len(mosaic.tiles) - 1).tolist()
        samples = [
            self._prepare_image((s, k, number), index, partial(mosaic.place_tile, number=number))
            for number, index in enumerate([self.sampler.image_index(s, k), *others])
        ]
        return mosaic.join_tiles(samples, rng)

    def _prepare_image(self, turn: tuple[int, ...], index: int, prepare: Callable[..., Sample]) -> Sample:
        """Prepare image ``index`` of the source ``turn[0]``, or another one if it is damaged.

        The replacement and all random changes depend only on ``turn``.
        """
        source, others, damaged = self.sources[turn[0]], None, ""
        for _ in range(_MAX_TRIES):
            try:
                return prepare(
                    *source.open_sample(index), rng=self.sampler.make_rng(turn[0], _AUGMENT_STREAM, *turn[1:])
                )
            except ImageError as error:
                self.skipped[source.image_id(index)] = str(error)
                others = others or self.sampler.make_rng(turn[0], _REPLACE_STREAM, *turn[1:])
                index, damaged = int(others.integers(len(source))), source.image_id(index)
        raise DataError(f"Source '{source.name}': {_MAX_TRIES} images in a row cannot be read. {self.skipped[damaged]}")

    def record_skipped(self, skipped: dict[str, str]) -> None:
        """Record and log the images (id -> reason) that a process skipped.

        Raises:
            DataError: more than one image of a source is skipped, and more than its fraction ``max_damaged``.
        """
        self.skipped.update(skipped)
        for id in sorted(set(self.skipped) - self._reported):
            self._reported.add(id)
            logger.warning("Skipped in training: %s", self.skipped[id])
        counts = Counter(id.partition("/")[0] for id in self.skipped)
        for source in self.sources:
            if counts[source.name] > max(1, self.max_damaged * len(source)):
                example = next(reason for id, reason in self.skipped.items() if id.partition("/")[0] == source.name)
                raise DataError(
                    f"Source '{source.name}': {counts[source.name]} of its {len(source)} images cannot be read. "
                    f"At most {self.max_damaged:.1%} may be skipped: fix them, or raise data.max_damaged. "
                    f"One of them: {example}"
                )
