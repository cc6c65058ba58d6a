"""Batches for training and evaluation, prepared by worker processes.

A worker makes whole batches, so a batch is a function of its number. Workers come from a fork server that never had
threads. A worker that raises, dies or hangs becomes a DataError that names the pictures it was at.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from perception.data.collate import Packed, pack, unpack
from perception.data.dataset import Source
from perception.data.mixture import Mixture
from perception.data.transforms import for_evaluation
from perception.types import Batch, DataError, PerceptionError

POLL = 5.0


class Batches:
    """An iterable of `Batch`; ``len`` is the number of batches.

    Raises DataError while iterating: where labels are wrong, and where a worker raises, dies or is silent for
    ``timeout`` seconds.
    """

    def __init__(
        self,
        prepare: Callable[[int], Packed],
        numbers: range,
        tasks: Sequence[str],
        names: Callable[[int], list[str]],
        mixture: Mixture | None,
        workers: int,
        timeout: float,
    ) -> None:
        self._prepare, self._numbers, self._tasks = prepare, numbers, tuple(tasks)
        self._names, self._mixture = names, mixture
        self._workers, self._timeout = min(workers, max(len(numbers), 1)), timeout

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Batch]:
        iterator = None
        try:
            for number in self._numbers:
                try:
                    iterator = iterator or iter(self._loader())
                    packed = self._next(iterator)
                except (RuntimeError, OSError, EOFError) as error:
                    for worker in getattr(iterator, "_workers", ()):  # one that hangs would be waited for
                        worker.kill()
                    raise self._failure(number, error) from error
                if isinstance(packed, PerceptionError):
                    raise packed
                if self._mixture is not None:
                    self._mixture.report(packed.skipped)
                yield unpack(packed, self._tasks)
        finally:  # an error's traceback would keep the iterator, and with it the workers, alive
            if iterator is not None and self._workers:
                iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]

    def _next(self, iterator: Iterator[Any]) -> Any:
        """The next item. Looks every `POLL` seconds whether the workers live: the fork server's are no own children."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return next(iterator)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
                if time.monotonic() >= deadline:
                    raise RuntimeError(f"no answer for {self._timeout:g} s (data.timeout)") from None

    def _failure(self, number: int, error: Exception) -> DataError:
        names = self._names(number)
        some = ", ".join(names[:4]) + (", ..." if names[4:] else "")
        return DataError(
            f"A loader worker failed at batch {number} ({some}): {error}. "
            "Check memory and shared memory (/dev/shm), and the files; data.workers=0 shows the error in place."
        )

    def _loader(self) -> DataLoader:
        options: dict[str, Any] = {}
        if self._workers:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["perception.data.loader", "albumentations"])
            options = {
                "multiprocessing_context": context,
                "timeout": min(POLL, self._timeout),
                "worker_init_fn": _start_worker,
            }
        return DataLoader(
            _Work(self._prepare),
            batch_size=None,
            sampler=self._numbers,
            num_workers=self._workers,
            collate_fn=_same,
            generator=torch.Generator(),  # leaves the global one alone: a resumed run must not draw from it
            **options,
        )


@dataclass
class _Work(Dataset):
    """Map-style data set: number of a batch -> batch, or the error that says why there is none."""

    prepare: Callable[[int], Packed]

    def __getitem__(self, number: int) -> Packed | PerceptionError:
        try:
            return self.prepare(number)
        except PerceptionError as error:
            return error


@dataclass
class _TrainingWork:
    mixture: Mixture
    tasks: tuple[str, ...]
    batch_size: int
    rank: int
    world: int

    def __call__(self, step: int) -> Packed:
        samples = []
        for position in self.mixture.order.positions(step, self.batch_size, self.rank, self.world):
            try:
                samples.append(self.mixture.sample(position))
            except PerceptionError:
                raise
            except Exception as error:
                raise _unexpected(self.mixture.id(position), error) from error
        packed = pack(samples, self.tasks)
        packed.skipped = dict(self.mixture.skipped)
        return packed

    def names(self, step: int) -> list[str]:
        return [self.mixture.id(p) for p in self.mixture.order.positions(step, self.batch_size, self.rank, self.world)]


@dataclass
class _EvaluationWork:
    sources: tuple[Source, ...]
    tasks: tuple[str, ...]
    size: tuple[int, int]
    pictures: list[tuple[int, int]]
    batch_size: int

    def __call__(self, number: int) -> Packed:
        samples = []
        for s, index in self._pictures(number):
            try:
                samples.append(for_evaluation(self.sources[s].sample(index), self.size))
            except PerceptionError:
                raise
            except Exception as error:
                raise _unexpected(self.sources[s].id(index), error) from error
        return pack(samples, self.tasks)

    def names(self, number: int) -> list[str]:
        return [self.sources[s].id(index) for s, index in self._pictures(number)]

    def _pictures(self, number: int) -> list[tuple[int, int]]:
        return self.pictures[number * self.batch_size : (number + 1) * self.batch_size]


def train_batches(
    mixture: Mixture,
    tasks: Sequence[str],
    batch_size: int,
    steps: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    timeout: float = 60,
) -> Batches:
    """One batch for every step from ``start_step`` up to ``steps``: this rank's part of ``batch_size`` samples.

    Annotations are tensors in input pixels: label maps as they are stored (uint8), depth float32.
    """
    if batch_size < world:
        raise DataError(
            f"A batch of {batch_size} over {world} ranks leaves some without a sample. Raise the batch size."
        )
    work = _TrainingWork(mixture, tuple(tasks), batch_size, rank, world)
    return Batches(work, range(start_step, steps), tasks, work.names, mixture, workers, timeout)


def evaluation_batches(
    sources: Sequence[Source],
    tasks: Sequence[str],
    size: tuple[int, int],
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    timeout: float = 60,
) -> Batches:
    """Every picture once: this rank's share, letterboxed, annotations numpy in source pixels. A bad file raises."""
    everything = [(s, index) for s, source in enumerate(sources) for index in range(len(source))]
    work = _EvaluationWork(tuple(sources), tuple(tasks), size, everything[rank::world], batch_size)
    count = -(-len(work.pictures) // batch_size)
    return Batches(work, range(count), tasks, work.names, None, workers, timeout)


def _unexpected(id: str, error: Exception) -> DataError:
    return DataError(f"Preparing {id} failed: {type(error).__name__}: {error}. Check its files and its reader.")


def _start_worker(number: int) -> None:
    """The training process alone handles Ctrl-C; a worker keeps to one thread and does not outlive it."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _exit_with_parent() -> None:
    """Workers keep their fork server alive and torch watches only that: a killed trainer would leave all behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _same(packed: Any) -> Any:
    return packed
