"""A bounded queue between two threads, and iterators that prefetch in a separate thread.

OpenCV, ONNX Runtime and torch release the GIL while they compute, so threads are sufficient.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

from perception.video import threads

T = TypeVar("T")
POLL_SECONDS = 0.1
"""Seconds between two calls of ``check_stop`` while waiting."""


class QueueClosed(Exception):
    """The other side has closed the queue, and it is empty."""


class BoundedQueue(Generic[T]):
    """A queue of at most ``size`` items that either side can end.

    With ``drop_oldest``, ``put`` on a full queue drops the oldest item, counted in ``dropped``, instead of waiting.
    """

    def __init__(self, size: int, drop_oldest: bool = False) -> None:
        self.size, self.drop_oldest, self.dropped = size, drop_oldest, 0
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = self._abandoned = False
        self._error: BaseException | None = None

    def put(self, item: T) -> None:
        """Add an item; wait while the queue is full. Raises QueueClosed if the reader has abandoned the queue."""
        with self._changed:
            while len(self._items) >= self.size and not self._abandoned:
                if self.drop_oldest:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if self._abandoned:
                raise QueueClosed
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> T:
        """Return the oldest item. Raises QueueClosed after the last one, the writer's error, or TimeoutError."""
        limit = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._items:
                if self._error is not None:
                    raise self._error
                if self._finished or self._abandoned:
                    raise QueueClosed
                left = None if limit is None else limit - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError
                self._changed.wait(left)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds`` until there is an item, the end or an error. Return whether there is."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._items) or self._finished or self._abandoned, seconds)

    def finish(self, error: BaseException | None = None) -> None:
        """End by the writer: the reader still gets the queued items, then QueueClosed or ``error``."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def abandon(self) -> None:
        """End by the reader: the queued items are dropped, and the next ``put`` raises QueueClosed."""
        with self._changed:
            self._abandoned = True
            self._items.clear()
            self._changed.notify_all()


def prefetch(
    items: Iterable[T],
    buffer_size: int = 2,
    name: str = "ahead",
    join_timeout: float = 10.0,
    check_stop: Callable[[], None] | None = None,
) -> Generator[T]:
    """Yield the same items, produced in a thread at most ``buffer_size`` items ahead. Errors keep their position.

    While waiting it calls ``check_stop`` repeatedly; an exception from it ends the wait. Closing the generator closes
    ``items`` in their thread and waits for that, for at most ``join_timeout`` seconds.
    """
    queue: BoundedQueue[T] = BoundedQueue(buffer_size)

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                queue.put(item)
        except QueueClosed:
            pass
        except BaseException as problem:
            error = problem
        finally:
            try:
                if isinstance(items, Generator):
                    items.close()
            except BaseException as problem:
                error = error or problem
            queue.finish(error)

    worker = threads.start_thread(work, name)
    try:
        while True:
            while check_stop is not None and not queue.wait(POLL_SECONDS):
                check_stop()
            try:
                item = queue.get()
            except QueueClosed:
                return
            yield item
    finally:
        queue.abandon()
        worker.join(join_timeout)
