"""Work on files that may be hostile, in processes that may die: every job gets an answer, or the reason for none."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from perception.types import DataError

Work = Callable[[Any, Any], Any]
"""work(state, job) -> answer; a function of a module."""

_START_SECONDS = 120.0
_AHEAD = 3
_STARTS = _TRIES = 2


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job has no answer."""

    kind: Literal["crashed", "too_slow", "out_of_memory", "internal_error"]
    text: str


class Crew:
    """Worker processes that are watched: one that dies or takes too long is replaced, and its job named.

    workers: 0 = everything in this process, without any protection
    memory:  bytes that a worker may take beyond what it has at its start; None = no limit
    """

    def __init__(self, workers: int, memory: int | None = None) -> None:
        self.workers, self.memory = workers, memory
        self._crew: list[_Worker] = []
        self._version = 0

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._crew:
            worker.stop()
        self._crew.clear()

    def run(self, work: Work, state: Any, jobs: Iterable[Any], seconds: float) -> Iterator[tuple[Any, Any]]:
        """(job, answer or Failure) in the order of completion. Jobs are drawn as workers become free.

        seconds: that one job may take
        """
        if not self.workers:
            yield from ((job, _answer(work, state, job)) for job in jobs)
            return
        self._version += 1
        order = pickle.dumps((work, state))
        waiting, coming = deque[_Task](), (_Task(job) for job in jobs)
        failed_starts = 0
        while True:
            self._deal(order, waiting, coming)
            busy = [worker for worker in self._crew if worker.tasks]
            if not busy:
                return
            wait([worker.connection for worker in busy], timeout=max(0.0, min(w.left(seconds) for w in busy)))
            for worker in busy:
                yield from worker.answers()
                failure = worker.failure(seconds)
                if failure is None:
                    continue
                self._crew.remove(worker)
                worker.stop()
                failed_starts = 0 if worker.ready else failed_starts + 1
                if failed_starts >= _STARTS:
                    raise DataError(f"No worker process can be started: {failure.text}. --workers 0 does without.")
                if worker.ready and worker.tasks:
                    task = worker.tasks.popleft()
                    if failure.kind == "crashed" and task.tries < _TRIES - 1:  # may have died of something else
                        waiting.append(_Task(task.job, task.tries + 1))
                    else:
                        yield task.job, failure
                waiting.extend(worker.tasks)

    def _deal(self, order: bytes, waiting: deque[_Task], coming: Iterator[_Task]) -> None:
        """Give every worker something to do, starting workers as long as there is enough."""
        for depth in range(1, _AHEAD + 1):
            for number in range(self.workers):
                if number < len(self._crew) and len(self._crew[number].tasks) >= depth:
                    continue
                task = waiting.popleft() if waiting else next(coming, None)
                if task is None:
                    return
                if number >= len(self._crew):
                    self._crew.append(_Worker(self.memory))
                self._crew[min(number, len(self._crew) - 1)].give(task, order, self._version)


@dataclass(frozen=True, slots=True)
class _Task:
    job: Any
    tries: int = 0


@dataclass
class _Worker:
    """A process with the tasks that it was given and has not answered, the first of them in work."""

    memory: int | None
    tasks: deque[_Task] = field(default_factory=deque)
    ready: bool = False
    dead: bool = False
    version: int = 0

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.memory), daemon=True)
        self.process.start()
        theirs.close()
        self.since = time.monotonic()

    def give(self, task: _Task, order: bytes, version: int) -> None:
        if not self.tasks and self.ready:
            self.since = time.monotonic()
        self.tasks.append(task)
        try:
            if self.version != version:
                self.connection.send_bytes(b"order")
                self.connection.send_bytes(order)
                self.version = version
            self.connection.send_bytes(pickle.dumps(task.job))
        except OSError:
            self.dead = True

    def answers(self) -> Iterator[tuple[Any, Any]]:
        """The answers that have come."""
        try:
            while self.connection.poll():
                answer = self.connection.recv()
                self.since = time.monotonic()
                if self.ready:
                    yield self.tasks.popleft().job, answer
                self.ready = True
        except (OSError, EOFError, pickle.UnpicklingError):
            self.dead = True

    def left(self, seconds: float) -> float:
        """Seconds until this worker counts as hung."""
        return self.since + (seconds if self.ready else _START_SECONDS) - time.monotonic()

    def failure(self, seconds: float) -> Failure | None:
        """Why the job in work will not be answered; None where it still may be."""
        if not self.tasks:
            return None
        if self.dead or not self.process.is_alive():
            self.process.join(5)
            return Failure("crashed", f"the process at work on it died ({_ending(self.process.exitcode)})")
        if self.left(seconds) <= 0:
            return Failure("too_slow", f"no end after {seconds:g} s")
        return None

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join(5)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _serve(connection: Connection, memory: int | None) -> None:
    """A worker: takes orders (what to do, on what) and jobs until the other side hangs up."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders chat
    import cv2

    import perception.data  # noqa: F401 - counts to what it has at its start

    cv2.setNumThreads(0)
    _limit(memory)
    work = state = None
    connection.send("ready")
    try:
        while True:
            message = connection.recv_bytes()
            if message == b"order":
                work, state = pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own parent
            else:
                assert work is not None
                connection.send(_answer(work, state, pickle.loads(message)))  # noqa: S301
    except (EOFError, OSError):
        os._exit(0)


def _answer(work: Work, state: Any, job: Any) -> Any:
    try:
        return work(state, job)
    except MemoryError as error:
        return Failure("out_of_memory", f"not enough memory: {error}")
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        return Failure("internal_error", f"{type(error).__name__} in {place}: {error}")


def _limit(memory: int | None) -> None:
    if memory is None:
        return
    try:
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = now + memory
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
    except (ImportError, OSError, ValueError):  # no such limit on this system
        return


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
