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

WorkFunction = Callable[[Any, Any], Any]
"""work(state, job) -> answer; a function of a module."""

_START_SECONDS = 120.0
_QUEUE_DEPTH = 3
_MAX_START_FAILURES = _MAX_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job has no answer."""

    code: Literal["crashed", "timeout", "out_of_memory", "internal_error"]
    text: str


class WorkerPool:
    """Worker processes that are watched: one that dies or takes too long is replaced, and its job named.

    num_workers: 0 = everything in this process, without any protection
    memory_limit:  bytes that a worker may take beyond what it has at its start; None = no limit
    """

    def __init__(self, num_workers: int, memory_limit: int | None = None) -> None:
        self.num_workers, self.memory_limit = num_workers, memory_limit
        self._workers: list[_Worker] = []
        self._version = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def run(self, work: WorkFunction, context: Any, jobs: Iterable[Any], timeout: float) -> Iterator[tuple[Any, Any]]:
        """(job, answer or Failure) in the order of completion. Jobs are drawn as workers become free.

        timeout: that one job may take
        """
        if not self.num_workers:
            yield from ((job, _run_job(work, context, job)) for job in jobs)
            return
        self._version += 1
        order = pickle.dumps((work, context))
        waiting, coming = deque[_QueuedJob](), (_QueuedJob(job) for job in jobs)
        failed_starts = 0
        while True:
            self._distribute(order, waiting, coming)
            busy = [worker for worker in self._workers if worker.queue]
            if not busy:
                return
            wait(
                [worker.connection for worker in busy],
                timeout=max(0.0, min(w.remaining_seconds(timeout) for w in busy)),
            )
            for worker in busy:
                yield from worker.receive_answers()
                failure = worker.find_failure(timeout)
                if failure is None:
                    continue
                self._workers.remove(worker)
                worker.stop()
                failed_starts = 0 if worker.ready else failed_starts + 1
                if failed_starts >= _MAX_START_FAILURES:
                    raise DataError(f"No worker process can be started: {failure.text}. --workers 0 does without.")
                if worker.ready and worker.queue:
                    task = worker.queue.popleft()
                    if (
                        failure.code == "crashed" and task.attempts < _MAX_ATTEMPTS - 1
                    ):  # may have died of something else
                        waiting.append(_QueuedJob(task.job, task.attempts + 1))
                    else:
                        yield task.job, failure
                waiting.extend(worker.queue)

    def _distribute(self, work_order: bytes, waiting: deque[_QueuedJob], upcoming: Iterator[_QueuedJob]) -> None:
        """Give every worker something to do, starting workers as long as there is enough."""
        for depth in range(1, _QUEUE_DEPTH + 1):
            for number in range(self.num_workers):
                if number < len(self._workers) and len(self._workers[number].queue) >= depth:
                    continue
                task = waiting.popleft() if waiting else next(upcoming, None)
                if task is None:
                    return
                if number >= len(self._workers):
                    self._workers.append(_Worker(self.memory_limit))
                self._workers[min(number, len(self._workers) - 1)].submit(task, work_order, self._version)


@dataclass(frozen=True, slots=True)
class _QueuedJob:
    job: Any
    attempts: int = 0


@dataclass
class _Worker:
    """A process with the tasks that it was given and has not answered, the first of them in work."""

    memory_limit: int | None
    queue: deque[_QueuedJob] = field(default_factory=deque)
    ready: bool = False
    dead: bool = False
    version: int = 0

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve_jobs, args=(theirs, self.memory_limit), daemon=True)
        self.process.start()
        theirs.close()
        self.busy_since = time.monotonic()

    def submit(self, task: _QueuedJob, work_order: bytes, version: int) -> None:
        if not self.queue and self.ready:
            self.busy_since = time.monotonic()
        self.queue.append(task)
        try:
            if self.version != version:
                self.connection.send_bytes(b"order")
                self.connection.send_bytes(work_order)
                self.version = version
            self.connection.send_bytes(pickle.dumps(task.job))
        except OSError:
            self.dead = True

    def receive_answers(self) -> Iterator[tuple[Any, Any]]:
        """The answers that have come."""
        try:
            while self.connection.poll():
                answer = self.connection.recv()
                self.busy_since = time.monotonic()
                if self.ready:
                    yield self.queue.popleft().job, answer
                self.ready = True
        except (OSError, EOFError, pickle.UnpicklingError):
            self.dead = True

    def remaining_seconds(self, timeout: float) -> float:
        """Seconds until this worker counts as hung."""
        return self.busy_since + (timeout if self.ready else _START_SECONDS) - time.monotonic()

    def find_failure(self, timeout: float) -> JobFailure | None:
        """Why the job in work will not be answered; None where it still may be."""
        if not self.queue:
            return None
        if self.dead or not self.process.is_alive():
            self.process.join(5)
            return JobFailure("crashed", f"the process at work on it died ({_describe_exit(self.process.exitcode)})")
        if self.remaining_seconds(timeout) <= 0:
            return JobFailure("timeout", f"no end after {timeout:g} s")
        return None

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join(5)


def _describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _serve_jobs(connection: Connection, memory_limit: int | None) -> None:
    """A worker: takes orders (what to do, on what) and jobs until the other side hangs up."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders chat
    import cv2

    import perception.data  # noqa: F401 - counts to what it has at its start

    cv2.setNumThreads(0)
    _limit_memory(memory_limit)
    work = state = None
    connection.send("ready")
    try:
        while True:
            message = connection.recv_bytes()
            if message == b"order":
                work, state = pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own parent
            else:
                assert work is not None
                connection.send(_run_job(work, state, pickle.loads(message)))  # noqa: S301
    except (EOFError, OSError):
        os._exit(0)


def _run_job(work: WorkFunction, context: Any, job: Any) -> Any:
    try:
        return work(context, job)
    except MemoryError as error:
        return JobFailure("out_of_memory", f"not enough memory: {error}")
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        return JobFailure("internal_error", f"{type(error).__name__} in {place}: {error}")


def _limit_memory(memory: int | None) -> None:
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
