"""`perception label --jobs N`: one process per shard, restarted if an image crashes it."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from perception.files.folders import require_folder
from perception.files.safe_write import DiskFullError, remove_partial_files
from perception.labeling.label import LabelingReport, label_images, list_image_names, make_label_folder, merge_labels
from perception.labeling.records import load_history
from perception.types import PerceptionError
from perception.video.interrupt import StopRequested, check_stop, defer_stop, handle_stop_signals
from perception.video.pipeline import PredictorLike
from perception.video.progress import Progress

POLL_SECONDS = 0.2
"""Seconds between two checks for a stop request."""
STEP, READY = "step", "ready"


def label_in_parallel(
    open_predictor: Callable[[], tuple[PredictorLike, str]],
    jobs: int,
    images: str | Path,
    out: str | Path,
    *,
    root: str | Path = ".",
    quiet: bool = False,
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    **options: Any,
) -> LabelingReport:
    """Label images like `label_images`, in several processes.

    Args:
        open_predictor: returns the network and its identity, called in each process. It must be picklable.
        jobs: number of processes.
        images: see `label_images`.
        out: see `label_images`.
        root: see `label_images`.
        quiet: see `label_images`.
        resume: see `label_images`.
        shard: see `label_images`.
        **options: further arguments of `label_images`.

    Returns:
        What was written.

    Raises:
        PerceptionError: a process failed.
        DiskFullError: the disk is full.
    """
    folder = require_folder(Path(), str(images), "images")
    (names, _), out = list_image_names(folder), make_label_folder(out, resume or shard is not None)
    if shard is None:
        remove_partial_files(out)
    first, of = shard or (1, 1)
    mine = load_history(out, folder).remaining(names[first - 1 :: of])
    shared = {"images": str(images), "out": str(out), "resume": True, "quiet": True, **options}
    shards = [(first + of * job, of * jobs) for job in range(jobs)]
    line = Progress(None if quiet else sys.stderr, "images", len(mine))
    interrupted, failure = None, None
    with handle_stop_signals(), defer_stop():
        try:
            _run_shards([_ShardProcess(open_predictor, shared | {"shard": part}) for part in shards], line)
        except KeyboardInterrupt as error:
            interrupted = getattr(error, "signal", signal.SIGINT)
        except PerceptionError as error:
            failure = error
        line.finish()
        if isinstance(failure, DiskFullError):
            with suppress(DiskFullError):
                merge_labels(out, folder, images, root)
        if failure is not None:
            raise failure
        labels = LabelingReport(out, shard=shard) if shard else merge_labels(out, folder, images, root)
    labels.stop_signal = interrupted
    return labels


class _ShardProcess:
    """The process of a shard. A new process replaces one that is killed."""

    def __init__(self, open_predictor: Callable[[], tuple[PredictorLike, str]], arguments: dict[str, Any]) -> None:
        self._open_predictor, self._arguments = open_predictor, arguments
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        self.is_ready = False
        self.process = context.Process(target=_label_shard, args=(theirs, self._open_predictor, self._arguments))
        with _ignore_sigint():
            self.process.start()
        theirs.close()

    def finish_or_restart(self) -> bool:
        """Whether the shard has finished. Restarts it if an image killed its process."""
        self.process.join()
        if not self.process.exitcode:
            return True
        if not self.is_ready:
            code = self.process.exitcode
            raise PerceptionError(f"A process of --jobs exited with code {code} before its first image. Try --jobs 1.")
        self.start()
        return False


def _run_shards(jobs: list[_ShardProcess], progress: Progress) -> None:
    """Run until all shards have finished. Raises StopRequested, or a shard's error, after ending all of them."""
    alive = list(jobs)
    try:
        while alive:
            check_stop()
            for messages in wait([job.connection for job in alive], POLL_SECONDS):
                job = next(job for job in alive if job.connection is messages)
                try:
                    said = job.connection.recv()
                except (EOFError, OSError):
                    check_stop()  # a stop request may have ended that process too
                    if job.finish_or_restart():
                        alive.remove(job)
                    continue
                if isinstance(said, PerceptionError):
                    raise said
                job.is_ready = True
                if said == STEP:
                    progress.step()
    finally:
        for job in alive:
            job.process.terminate()
        for job in alive:
            job.process.join()


def _label_shard(
    connection: Connection, open_predictor: Callable[[], tuple[PredictorLike, str]], arguments: dict[str, Any]
) -> None:
    """The function of a shard's process. It ends at the next image if its parent has ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None and not parent.is_alive():
            raise StopRequested(signal.SIGTERM)
        connection.send(STEP)

    try:
        with handle_stop_signals():
            network, identity = open_predictor()
            connection.send(READY)
            label_images(network, identity=identity, on_image_done=watch, **arguments)
    except PerceptionError as error:
        connection.send(type(error)(str(error)))
    except (KeyboardInterrupt, BrokenPipeError):
        pass


@contextmanager
def _ignore_sigint() -> Iterator[None]:
    """Processes started in this context ignore Ctrl-C, which a terminal sends to all. Their parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
