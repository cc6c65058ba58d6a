"""`perception label --jobs N`: shards in processes of their own, begun again where a picture ends one of them."""

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

from perception.files.folders import existing_folder
from perception.files.safe_write import FullError, remove_partial
from perception.labeling.label import Labels, label, label_folder, merge_labels, picture_names
from perception.labeling.records import recall
from perception.types import PerceptionError
from perception.video.interrupt import Stopped, check, held, terminable
from perception.video.pipeline import Network
from perception.video.progress import Progress

POLL = 0.2
"""Seconds between two looks at whether to go on."""
STEP, READY = "step", "ready"


def label_by_jobs(
    open_network: Callable[[], tuple[Network, str]],
    jobs: int,
    pictures: str | Path,
    out: str | Path,
    *,
    root: str | Path = ".",
    quiet: bool = False,
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    **options: Any,
) -> Labels:
    """As `label`, by so many processes.

    open_network: can be pickled; the network and its identity, for each process
    """
    folder = existing_folder(Path(), str(pictures), "pictures")
    (names, _), out = picture_names(folder), label_folder(out, resume or shard is not None)
    if shard is None:
        remove_partial(out)
    first, of = shard or (1, 1)
    mine = recall(out, folder).left(names[first - 1 :: of])
    shared = {"pictures": str(pictures), "out": str(out), "resume": True, "quiet": True, **options}
    shards = [(first + of * job, of * jobs) for job in range(jobs)]
    line = Progress(None if quiet else sys.stderr, "pictures", len(mine))
    interrupted, failure = None, None
    with terminable(), held():
        try:
            _run([_Job(open_network, shared | {"shard": part}) for part in shards], line)
        except KeyboardInterrupt as error:
            interrupted = getattr(error, "signal", signal.SIGINT)
        except PerceptionError as error:
            failure = error
        line.done()
        if isinstance(failure, FullError):
            with suppress(FullError):
                merge_labels(out, folder, pictures, root)
        if failure is not None:
            raise failure
        labels = Labels(out, shard=shard) if shard else merge_labels(out, folder, pictures, root)
    labels.interrupted = interrupted
    return labels


class _Job:
    """A shard in a process, and the next process where that one is killed."""

    def __init__(self, open_network: Callable[[], tuple[Network, str]], arguments: dict[str, Any]) -> None:
        self._open, self._arguments = open_network, arguments
        self.begin()

    def begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.messages, theirs = context.Pipe(duplex=False)
        self.ready = False
        self.process = context.Process(target=_work, args=(theirs, self._open, self._arguments))
        with _unheard():
            self.process.start()
        theirs.close()

    def ended(self) -> bool:
        """Whether the shard has come to its end; it is begun again where a picture has killed its process."""
        self.process.join()
        if not self.process.exitcode:
            return True
        if not self.ready:
            code = self.process.exitcode
            raise PerceptionError(f"A process of --jobs ended with code {code} before its first picture. Try --jobs 1.")
        self.begin()
        return False


def _run(jobs: list[_Job], line: Progress) -> None:
    """Until all have ended. Raises Stopped, or what one of them failed with, when all have been ended."""
    alive = list(jobs)
    try:
        while alive:
            check()
            for messages in wait([job.messages for job in alive], POLL):
                job = next(job for job in alive if job.messages is messages)
                try:
                    said = job.messages.recv()
                except (EOFError, OSError):
                    check()  # what ends this process may have ended that one too
                    if job.ended():
                        alive.remove(job)
                    continue
                if isinstance(said, PerceptionError):
                    raise said
                job.ready = True
                if said == STEP:
                    line.step()
    finally:
        for job in alive:
            job.process.terminate()
        for job in alive:
            job.process.join()


def _work(messages: Connection, open_network: Callable[[], tuple[Network, str]], arguments: dict[str, Any]) -> None:
    """The process of a shard. It ends with its parent, at the next picture at the latest."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None and not parent.is_alive():
            raise Stopped(signal.SIGTERM)
        messages.send(STEP)

    try:
        with terminable():
            network, identity = open_network()
            messages.send(READY)
            label(network, identity=identity, watch=watch, **arguments)
    except PerceptionError as error:
        messages.send(type(error)(str(error)))
    except (KeyboardInterrupt, BrokenPipeError):
        pass


@contextmanager
def _unheard() -> Iterator[None]:
    """Processes that begin within it do not hear Ctrl-C, which a terminal sends to all: their parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
