"""Batches for training and evaluation, prepared by worker processes.

A worker builds whole batches, so a batch depends only on its number. Workers are started by a fork server without
threads. If a worker raises, dies or hangs, a DataError names the images of its batch.
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

from perception.data.collate import PackedBatch, pack_batch, unpack_batch
from perception.data.dataset import DataSource
from perception.data.mixture import Mixture
from perception.data.transforms import prepare_for_evaluation
from perception.types import Batch, DataError, PerceptionError

WORKER_POLL_SECONDS = 5.0


class BatchLoader:
    """An iterable of `Batch`. ``len`` is the number of batches.

    Iteration raises DataError if labels are wrong, or a worker raises, dies or does not answer for ``timeout`` seconds.
    """

    def __init__(
        self,
        prepare: Callable[[int], PackedBatch],
        batch_numbers: range,
        tasks: Sequence[str],
        list_image_ids: Callable[[int], list[str]],
        mixture: Mixture | None,
        workers: int,
        timeout: float,
    ) -> None:
        self._prepare, self._batch_numbers, self._tasks = prepare, batch_numbers, tuple(tasks)
        self._list_image_ids, self._mixture = list_image_ids, mixture
        self._workers, self._timeout = min(workers, max(len(batch_numbers), 1)), timeout

    def __len__(self) -> int:
        return len(self._batch_numbers)

    def __iter__(self) -> Iterator[Batch]:
        iterator = None
        try:
            for number in self._batch_numbers:
                try:
                    iterator = iterator or iter(self._make_loader())
                    packed = self._fetch_next(iterator)
                except (RuntimeError, OSError, EOFError) as error:
                    for worker in getattr(iterator, "_workers", ()):  # the shutdown would wait for a hanging worker
                        worker.kill()
                    raise self._make_error(number, error) from error
                if isinstance(packed, PerceptionError):
                    raise packed
                if self._mixture is not None:
                    self._mixture.record_skipped(packed.skipped)
                yield unpack_batch(packed, self._tasks)
        finally:  # the traceback of an error would keep the iterator and its workers alive
            if iterator is not None and self._workers:
                iterator._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue]

    def _fetch_next(self, iterator: Iterator[Any]) -> Any:
        """The next item. Checks each `WORKER_POLL_SECONDS` that workers are alive: they are not child processes."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return next(iterator)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
                if time.monotonic() >= deadline:
                    raise RuntimeError(f"no answer for {self._timeout:g} s (data.timeout)") from None

    def _make_error(self, number: int, error: Exception) -> DataError:
        names = self._list_image_ids(number)
        some = ", ".join(names[:4]) + (", ..." if names[4:] else "")
        return DataError(
            f"A loader worker failed at batch {number} ({some}): {error}. "
            "Check memory, shared memory (/dev/shm) and the files. data.workers=0 shows the error in this process."
        )

    def _make_loader(self) -> DataLoader:
        options: dict[str, Any] = {}
        if self._workers:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["perception.data.loader", "albumentations"])
            options = {
                "multiprocessing_context": context,
                "timeout": min(WORKER_POLL_SECONDS, self._timeout),
                "worker_init_fn": _initialize_worker,
            }
        return DataLoader(
            _BatchDataset(self._prepare),
            batch_size=None,
            sampler=self._batch_numbers,
            num_workers=self._workers,
            collate_fn=_identity,
            generator=torch.Generator(),  # a resumed run must not draw from the global generator
            **options,
        )


@dataclass
class _BatchDataset(Dataset):
    """Map-style data set: number of a batch -> batch, or the error of its preparation."""

    prepare: Callable[[int], PackedBatch]

    def __getitem__(self, number: int) -> PackedBatch | PerceptionError:
        try:
            return self.prepare(number)
        except PerceptionError as error:
            return error


@dataclass
class _TrainBatchBuilder:
    mixture: Mixture
    tasks: tuple[str, ...]
    batch_size: int
    rank: int
    world_size: int

    def __call__(self, step: int) -> PackedBatch:
        samples = []
        for position in self.mixture.sampler.batch_positions(step, self.batch_size, self.rank, self.world_size):
            try:
                samples.append(self.mixture.load_sample(position))
            except PerceptionError:
                raise
            except Exception as error:
                raise _wrap_error(self.mixture.image_id(position), error) from error
        packed = pack_batch(samples, self.tasks)
        packed.skipped = dict(self.mixture.skipped)
        return packed

    def list_image_ids(self, step: int) -> list[str]:
        return [
            self.mixture.image_id(p)
            for p in self.mixture.sampler.batch_positions(step, self.batch_size, self.rank, self.world_size)
        ]


@dataclass
class _EvaluationBatchBuilder:
    sources: tuple[DataSource, ...]
    tasks: tuple[str, ...]
    size: tuple[int, int]
    image_indices: list[tuple[int, int]]
    batch_size: int

    def __call__(self, number: int) -> PackedBatch:
        samples = []
        for s, index in self._batch_indices(number):
            try:
                samples.append(prepare_for_evaluation(self.sources[s].load_sample(index), self.size))
            except PerceptionError:
                raise
            except Exception as error:
                raise _wrap_error(self.sources[s].image_id(index), error) from error
        return pack_batch(samples, self.tasks)

    def list_image_ids(self, number: int) -> list[str]:
        return [self.sources[s].image_id(index) for s, index in self._batch_indices(number)]

    def _batch_indices(self, number: int) -> list[tuple[int, int]]:
        return self.image_indices[number * self.batch_size : (number + 1) * self.batch_size]


def make_train_loader(
    mixture: Mixture,
    tasks: Sequence[str],
    batch_size: int,
    steps: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    timeout: float = 60,
) -> BatchLoader:
    """Make the loader of training batches, one batch per step.

    Annotations are tensors in input pixels: segmentation masks uint8 as stored, depth float32.

    Args:
        mixture: the training samples.
        tasks: tasks of the batches.
        batch_size: samples of a step over all ranks.
        steps: step after the last one.
        start_step: first step.
        rank: number of this process.
        world_size: number of training processes.
        workers: worker processes; 0 = load in this process.
        timeout: seconds without a batch after which a worker counts as hanging.

    Raises:
        DataError: ``batch_size`` is smaller than ``world_size``.
    """
    if batch_size < world_size:
        raise DataError(
            f"A batch of {batch_size} over {world_size} ranks leaves some ranks without a sample. Raise the batch size."
        )
    work = _TrainBatchBuilder(mixture, tuple(tasks), batch_size, rank, world_size)
    return BatchLoader(work, range(start_step, steps), tasks, work.list_image_ids, mixture, workers, timeout)


def make_evaluation_loader(
    sources: Sequence[DataSource],
    tasks: Sequence[str],
    size: tuple[int, int],
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    timeout: float = 60,
) -> BatchLoader:
    """Make the loader of all images, each once, letterboxed to ``size``, shared by the ranks.

    Annotations are numpy arrays in source pixels. A damaged image raises DataError.
    """
    everything = [(s, index) for s, source in enumerate(sources) for index in range(len(source))]
    work = _EvaluationBatchBuilder(tuple(sources), tuple(tasks), size, everything[rank::world_size], batch_size)
    count = -(-len(work.image_indices) // batch_size)
    return BatchLoader(work, range(count), tasks, work.list_image_ids, None, workers, timeout)


def _wrap_error(id: str, error: Exception) -> DataError:
    return DataError(f"Preparing {id} failed: {type(error).__name__}: {error}. Check its files and its reader.")


def _initialize_worker(number: int) -> None:
    """Leave Ctrl-C to the training process, use one thread, and exit with the training process."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _exit_with_parent() -> None:
    """Exit when the trainer is gone: torch only watches the fork server, and its workers keep that alive."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _identity(packed: Any) -> Any:
    return packed
