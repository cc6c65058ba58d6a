"""Worker processes for files that may crash them: every job gets a result, or the reason for its failure."""

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
"""work(context, job) -> result; a function at module level, because it is pickled."""

_START_SECONDS = 120.0
_QUEUE_DEPTH = 3
_MAX_START_FAILURES = _MAX_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job has no result.

    Attributes:
        code: an issue code, see `findings.ISSUE_KINDS`.
        text: the reason in words.
    """

    code: Literal["crashed", "timeout", "out_of_memory", "internal_error"]
    text: str


class WorkerPool:
    """Supervised worker processes. A worker that dies or times out is replaced, and its job is reported.

    Args:
        num_workers: number of processes; 0 = this process, without protection.
        memory_limit: bytes that a worker may allocate after its start; None = no limit.
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

    def run(
        self, work: WorkFunction, context: object, jobs: Iterable[Any], timeout: float
    ) -> Iterator[tuple[Any, Any]]:
        """Run jobs. Jobs are drawn as workers become free.

        Args:
            work: function to call, at module level.
            context: first argument of ``work``.
            jobs: second arguments of ``work``, one per call.
            timeout: maximum seconds per job.

        Yields:
            (job, result or `JobFailure`) in the order of completion.

        Raises:
            DataError: no worker process can be started.
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
                    raise DataError(
                        f"No worker process can be started: {failure.text}. Use --workers 0 to run without."
                    )
                if worker.ready and worker.queue:
                    task = worker.queue.popleft()
                    if (
                        failure.code == "crashed" and task.attempts < _MAX_ATTEMPTS - 1
                    ):  # try again: the job may not be the cause
                        waiting.append(_QueuedJob(task.job, task.attempts + 1))
                    else:
                        yield task.job, failure
                waiting.extend(worker.queue)

    def _distribute(self, work_order: bytes, waiting: deque[_QueuedJob], upcoming: Iterator[_QueuedJob]) -> None:
        """Fill the queue of every worker. Start workers while there are enough jobs."""
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
    """A process and its queue of unfinished jobs. The first one is running."""

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
        """The results received so far."""
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
        """Seconds until this worker times out."""
        return self.busy_since + (timeout if self.ready else _START_SECONDS) - time.monotonic()

    def find_failure(self, timeout: float) -> JobFailure | None:
        """Why the running job failed; None if it did not."""
        if not self.queue:
            return None
        if self.dead or not self.process.is_alive():
            self.process.join(5)
            return JobFailure("crashed", f"its process died ({_describe_exit(self.process.exitcode)})")
        if self.remaining_seconds(timeout) <= 0:
            return JobFailure("timeout", f"not finished after {timeout:g} s")
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
    """A worker process: receives work functions and jobs until the connection closes."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print warnings
    import cv2

    import perception.data  # noqa: F401 - imported before the memory limit is set

    cv2.setNumThreads(0)
    _limit_memory(memory_limit)
    work = state = None
    connection.send("ready")
    try:
        while True:
            message = connection.recv_bytes()
            if message == b"order":
                work, state = pickle.loads(connection.recv_bytes())  # noqa: S301 - sent by the parent process
            else:
                assert work is not None
                connection.send(_run_job(work, state, pickle.loads(message)))  # noqa: S301
    except (EOFError, OSError):
        os._exit(0)


def _run_job(work: WorkFunction, context: object, job: object) -> object:
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
