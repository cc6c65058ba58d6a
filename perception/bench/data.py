"""Speed of training data: cost of reading, decoding and augmentation, and throughput of the loader.

Decoding is the lower limit: every image must be decoded.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.data.dataset import DataSource
from perception.data.mixture import Mixture
from perception.files.images import StoredImage
from perception.types import Sample

NUM_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class SourceTiming:
    """Seconds per training sample on one thread, medians over rounds.

    Attributes:
        name: name of the source.
        read_seconds: reading and checking files, looking up labels, decoding maps. Includes decoding of images that are
            not plain JPEG or PNG.
        decode_seconds: decoding the image at the required scale; for a mosaic, all four images.
        total_seconds: the whole sample.
    """

    name: str
    read_seconds: float
    decode_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class LoadingSpeed:
    """Speed of the training data, medians over rounds.

    Attributes:
        sources: timing of each source on one thread.
        workers: number of worker processes of the loader.
        images_per_second: throughput of the loader.
        cpu_seconds_per_image: CPU seconds per image of all processes; NaN if the system does not report them.
    """

    sources: tuple[SourceTiming, ...]
    workers: int
    images_per_second: float
    cpu_seconds_per_image: float

    def __str__(self) -> str:
        width = max(len(source.name) for source in self.sources) + 2
        lines = [f"{'one thread':{width}}  decode only  with augmentation   read   decode   augment   share of decode"]
        for source in self.sources:
            augment = source.total_seconds - source.read_seconds - source.decode_seconds
            lines.append(
                f"{source.name:{width}}  {_rate(source.decode_seconds):9.0f}/s  {_rate(source.total_seconds):15.0f}/s  "
                f"{source.read_seconds * 1e3:5.2f}  {source.decode_seconds * 1e3:5.2f} ms  {augment * 1e3:5.2f} ms  "
                f"{source.decode_seconds / source.total_seconds:15.0%}"
            )
        kind = "in the main process" if self.workers == 0 else f"{self.workers} workers"
        lines.append(
            f"loader, {kind}: {self.images_per_second:.0f} images/s, "
            f"{self.cpu_seconds_per_image * 1e3:.2f} ms of CPU time each"
        )
        return "\n".join(lines)


def measure_loading(
    mixture: Mixture, tasks: Sequence[str], batch_size: int, workers: int, seconds: float = 10
) -> LoadingSpeed:
    """Measure the sources of a mixture and its loader in interleaved rounds.

    Args:
        mixture: the training data.
        tasks: tasks to load labels for.
        batch_size: images per batch of the loader.
        workers: number of worker processes of the loader.
        seconds: approximate total duration.

    Returns:
        Medians over the rounds.

    Raises:
        DataError: labels are invalid, or too many images are damaged.
    """
    watched = [_TimedSource(source) for source in mixture.sources]
    alone = [_select_source(mixture, source) for source in watched]
    costs: list[list[tuple[float, float, float]]] = [[] for _ in watched]
    loaded = []
    share = seconds / NUM_ROUNDS / (len(watched) + 1)
    with _single_thread():
        for one in alone:
            one.load_sample(0)
        for number in range(NUM_ROUNDS):
            for source, one, rows in zip(watched, alone, costs, strict=True):
                rows.append(source.measure(one, number * 10**6, share))
            loaded.append(_measure_loader(mixture, tasks, batch_size, workers, share))
    middles = [tuple(map(statistics.median, zip(*rows, strict=True))) for rows in costs]
    return LoadingSpeed(
        tuple(SourceTiming(source.name, *middle) for source, middle in zip(watched, middles, strict=True)),
        workers,
        1 / statistics.median(wall for wall, _ in loaded),
        statistics.median(processor for _, processor in loaded),
    )


class _TimedSource:
    """A source that measures the time of its operations."""

    def __init__(self, source: DataSource) -> None:
        self._source, self.read_seconds, self.decode_seconds = source, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def open_sample(self, index: int) -> tuple[StoredImage, Sample]:
        begun = time.perf_counter()
        picture, sample = self._source.open_sample(index)
        self.read_seconds += time.perf_counter() - begun
        return _TimedImage(picture, self), sample  # type: ignore[return-value]

    def measure(self, mixture: Mixture, start: int, seconds: float) -> tuple[float, float, float]:
        """(reading, decoding, total): seconds per sample, measured for ``seconds`` from position ``start``."""
        self.read_seconds = self.decode_seconds = 0.0
        count, begun = 0, time.perf_counter()
        while count < 2 or time.perf_counter() - begun < seconds:
            mixture.load_sample(start + count)
            count += 1
        whole = time.perf_counter() - begun
        return self.read_seconds / count, self.decode_seconds / count, whole / count


@dataclass(slots=True)
class _TimedImage:
    image: StoredImage
    source: _TimedSource

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    @property
    def is_reducible(self) -> bool:
        return self.image.is_reducible

    def decode(self, reduction: int = 1) -> NDArray[np.uint8]:
        begun = time.perf_counter()
        try:
            return self.image.decode(reduction)
        finally:
            self.source.decode_seconds += time.perf_counter() - begun


def _select_source(mixture: Mixture, source: _TimedSource) -> Mixture:
    """The mixture with only one of its sources."""
    return Mixture(
        [source],  # type: ignore[list-item]
        mixture.size,
        mixture.augment,
        mixture.sampler.seed,
    )


def _measure_loader(
    mixture: Mixture, tasks: Sequence[str], batch_size: int, workers: int, seconds: float
) -> tuple[float, float]:
    from perception.data.loader import make_train_loader  # imports torch

    batches = iter(make_train_loader(copy.copy(mixture), tasks, batch_size, 10**9, workers=workers))
    return time_batches(batches, lambda batch: len(batch), seconds)


def time_batches(batches: Iterator[Any], count_images: Callable[[Any], int], seconds: float) -> tuple[float, float]:
    """Measure the time per image of an endless iterator, which may use worker processes.

    Batches that are ready before the clock starts are not counted. The fill level of the workers' queues at the start
    and at the end differs by at most two batches each.

    Args:
        batches: the iterator. It is closed at the end.
        count_images: returns the number of images of a batch.
        seconds: approximate duration.

    Returns:
        (wall seconds, CPU seconds of all processes) per image.
    """
    for _ in range(3):
        next(batches)
    count, processor, begun = 0, cpu_seconds(), time.perf_counter()
    while count == 0 or time.perf_counter() - begun < seconds:
        count += count_images(next(batches))
    wall, processor = time.perf_counter() - begun, cpu_seconds() - processor
    getattr(batches, "close", lambda: None)()
    return wall / count, processor / count


def cpu_seconds() -> float:
    """Return the CPU time of this process and its descendants; NaN without /proc."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    if os.getpid() not in parents:
        return float("nan")
    return sum(ticks[pid] for pid in parents if _is_descendant(pid, os.getpid(), parents)) / os.sysconf("SC_CLK_TCK")


def _is_descendant(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid != ancestor and pid in parents:
        pid = parents[pid]
    return pid == ancestor


def _rate(seconds: float) -> float:
    return 1 / seconds if seconds else float("inf")


@contextmanager
def _single_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
