"""How fast training pictures come: what reading, decoding and augmenting cost, and what the loader gives.

Decoding is the limit: whatever else becomes cheaper, a picture must be decoded.
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

from perception.data.dataset import Source
from perception.data.mixture import Mixture
from perception.files.images import StoredPicture
from perception.types import Sample

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class SourceSpeed:
    """Seconds per training sample on one thread, medians over rounds.

    read:   its files read and checked, its labels looked up, maps decoded; and the picture where it is no plain JPEG
            or PNG
    decode: its picture decoded, at the scale that is needed; of a mosaic, all four
    whole:  everything
    """

    name: str
    read: float
    decode: float
    whole: float


@dataclass(frozen=True, slots=True)
class Speed:
    """sources: on one thread. loader: batches with ``workers`` processes, pictures per second and processor seconds per
    picture, of all processes (NaN where the system does not say), medians over rounds."""

    sources: tuple[SourceSpeed, ...]
    workers: int
    pictures_per_second: float
    processor_seconds: float

    def __str__(self) -> str:
        width = max(len(source.name) for source in self.sources) + 2
        lines = [f"{'one thread':{width}}  decode only  with augmentation   read   decode   augment   share of decode"]
        for source in self.sources:
            augment = source.whole - source.read - source.decode
            lines.append(
                f"{source.name:{width}}  {_per_second(source.decode):9.0f}/s  {_per_second(source.whole):15.0f}/s  "
                f"{source.read * 1e3:5.2f}  {source.decode * 1e3:5.2f} ms  {augment * 1e3:5.2f} ms  "
                f"{source.decode / source.whole:15.0%}"
            )
        kind = "in the process itself" if self.workers == 0 else f"{self.workers} workers"
        lines.append(
            f"loader, {kind}: {self.pictures_per_second:.0f} pictures/s, "
            f"{self.processor_seconds * 1e3:.2f} ms of processor time each"
        )
        return "\n".join(lines)


def measure(mixture: Mixture, tasks: Sequence[str], batch_size: int, workers: int, seconds: float = 10) -> Speed:
    """Run the mixture's sources, and its loader, in turns for about ``seconds`` together.

    Raises DataError where labels are wrong or too many pictures damaged.
    """
    watched = [_Watched(source) for source in mixture.sources]
    alone = [_only(mixture, source) for source in watched]
    costs: list[list[tuple[float, float, float]]] = [[] for _ in watched]
    loaded = []
    share = seconds / ROUNDS / (len(watched) + 1)
    with _one_thread():
        for one in alone:
            one.sample(0)
        for number in range(ROUNDS):
            for source, one, rows in zip(watched, alone, costs, strict=True):
                rows.append(source.cost(one, number * 10**6, share))
            loaded.append(_loader_cost(mixture, tasks, batch_size, workers, share))
    middles = [tuple(map(statistics.median, zip(*rows, strict=True))) for rows in costs]
    return Speed(
        tuple(SourceSpeed(source.name, *middle) for source, middle in zip(watched, middles, strict=True)),
        workers,
        1 / statistics.median(wall for wall, _ in loaded),
        statistics.median(processor for _, processor in loaded),
    )


class _Watched:
    """A source that takes the time of what is done with it."""

    def __init__(self, source: Source) -> None:
        self._source, self.reading, self.decoding = source, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def open(self, index: int) -> tuple[StoredPicture, Sample]:
        begun = time.perf_counter()
        picture, sample = self._source.open(index)
        self.reading += time.perf_counter() - begun
        return _WatchedPicture(picture, self), sample  # type: ignore[return-value]

    def cost(self, mixture: Mixture, start: int, seconds: float) -> tuple[float, float, float]:
        """(reading, decoding, everything): seconds per sample, over ``seconds`` from the position ``start`` on."""
        self.reading = self.decoding = 0.0
        count, begun = 0, time.perf_counter()
        while count < 2 or time.perf_counter() - begun < seconds:
            mixture.sample(start + count)
            count += 1
        whole = time.perf_counter() - begun
        return self.reading / count, self.decoding / count, whole / count


@dataclass(slots=True)
class _WatchedPicture:
    picture: StoredPicture
    source: _Watched

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.size

    @property
    def reducible(self) -> bool:
        return self.picture.reducible

    def decode(self, reduction: int = 1) -> Any:
        begun = time.perf_counter()
        try:
            return self.picture.decode(reduction)
        finally:
            self.source.decoding += time.perf_counter() - begun


def _only(mixture: Mixture, source: _Watched) -> Mixture:
    """The mixture with one of its sources alone, as it is in it."""
    return Mixture(
        [source],  # type: ignore[list-item]
        mixture.size,
        mixture.augment,
        mixture.order.seed,
    )


def _loader_cost(
    mixture: Mixture, tasks: Sequence[str], batch_size: int, workers: int, seconds: float
) -> tuple[float, float]:
    from perception.data.loader import train_batches  # it imports torch

    batches = iter(train_batches(copy.copy(mixture), tasks, batch_size, 10**9, workers=workers))
    return batches_cost(batches, lambda batch: len(batch), seconds)


def batches_cost(batches: Iterator[Any], count_of: Callable[[Any], int], seconds: float) -> tuple[float, float]:
    """(seconds, processor seconds of all processes) per picture of an endless iterator that has workers, perhaps.

    It is closed at the end. Batches that are ready before the clock starts are not counted: the workers' queues are
    emptied at the start and full at the end, or the other way round, within two batches each.
    """
    for _ in range(3):
        next(batches)
    count, processor, begun = 0, processor_seconds(), time.perf_counter()
    while count == 0 or time.perf_counter() - begun < seconds:
        count += count_of(next(batches))
    wall, processor = time.perf_counter() - begun, processor_seconds() - processor
    getattr(batches, "close", lambda: None)()
    return wall / count, processor / count


def processor_seconds() -> float:
    """Processor time of this process and all under it; NaN where there is no /proc."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    if os.getpid() not in parents:
        return float("nan")
    return sum(ticks[pid] for pid in parents if _under(pid, os.getpid(), parents)) / os.sysconf("SC_CLK_TCK")


def _under(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid != ancestor and pid in parents:
        pid = parents[pid]
    return pid == ancestor


def _per_second(seconds: float) -> float:
    return 1 / seconds if seconds else float("inf")


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
