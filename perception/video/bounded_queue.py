"""Work side by side: a bounded queue between two threads, and iterators that run ahead in a thread of their own.

OpenCV, ONNX Runtime and torch let other threads run while they compute, so threads are enough.
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
"""Seconds between two looks at whether to go on, while waiting."""


class QueueClosed(Exception):
    """The other side has closed the channel, and nothing is left in it."""


class BoundedQueue(Generic[T]):
    """A queue of at most ``size`` items that either side may end.

    drop_oldest: where it is full, ``put`` drops the oldest item and counts it in ``dropped``, instead of waiting
    """

    def __init__(self, size: int, drop_oldest: bool = False) -> None:
        self.size, self.drop_oldest, self.dropped = size, drop_oldest, 0
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = self._abandoned = False
        self._error: BaseException | None = None

    def put(self, item: T) -> None:
        """Add an item, waiting for room. Raises Closed where the reader has gone."""
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
        """The oldest item. Raises Closed after the last one, what the writer failed with, or TimeoutError."""
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
        """Whether there is something to get, an end or an error included, within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._items) or self._finished or self._abandoned, seconds)

    def finish(self, error: BaseException | None = None) -> None:
        """The writer's end: the reader still gets what is in the channel, then Closed or ``error``."""
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def abandon(self) -> None:
        """The reader's end: what is in the channel is dropped, and the writer's next ``put`` raises Closed."""
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
    """The same items, made in a thread that is at most ``buffer_size`` of them ahead; errors arrive in their place.

    check_stop: called again and again while it waits; what it raises ends the wait
    Closing it closes ``items`` in their own thread and waits for that, for at most ``join_timeout`` seconds.
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
