"""One worker that always takes the newest picture: latency stays bounded when pictures come faster than the network."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np


class NewestOnly:
    """Calls ``work(item)`` in a thread of its own for the newest `put` item; older ones are dropped and counted.

    failed: called with an exception that ``work`` raised; the worker goes on
    """

    def __init__(self, work: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
        self._work, self._failed = work, failed
        self._waiting: Any = None
        self._change = threading.Condition()
        self._ended = False
        self.received = self.dropped = self.done = self.errors = 0
        self._latencies: deque[float] = deque(maxlen=300)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, item: Any) -> None:
        """Never waits."""
        with self._change:
            self.received += 1
            self.dropped += self._waiting is not None
            self._waiting = item
            self._change.notify()

    def close(self, timeout: float = 5.0) -> None:
        """End after the item in work."""
        with self._change:
            self._ended = True
            self._change.notify()
        self._thread.join(timeout)

    def latencies(self) -> tuple[float, float]:
        """Seconds of work, median and 99th percentile of the last 300; NaN before the first."""
        if not self._latencies:
            return float("nan"), float("nan")
        low, high = np.percentile(list(self._latencies), [50, 99])
        return float(low), float(high)

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._ended or self._waiting is not None)
                if self._ended:
                    return
                item, self._waiting = self._waiting, None
            begin = time.perf_counter()
            try:
                self._work(item)
            except Exception as error:  # a node must outlive a bad picture
                self.errors += 1
                self._failed(error)
            else:
                self.done += 1
                self._latencies.append(time.perf_counter() - begin)
