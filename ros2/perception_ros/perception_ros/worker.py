"""A worker that always processes the newest image, so that latency stays bounded if the network is too slow."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np


class LatestItemWorker:
    """Calls ``process(item)`` in a separate thread for the newest item; older items are dropped and counted.

    ``on_error`` is called with an exception of ``process``; the worker continues.
    """

    def __init__(self, process: Callable[[Any], None], on_error: Callable[[Exception], None]) -> None:
        self._process, self._on_error = process, on_error
        self._pending: Any = None
        self._condition = threading.Condition()
        self._closed = False
        self.received = self.dropped = self.processed = self.failed = 0
        self._latencies: deque[float] = deque(maxlen=300)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, item: Any) -> None:
        """Replace the pending item. Never blocks."""
        with self._condition:
            self.received += 1
            self.dropped += self._pending is not None
            self._pending = item
            self._condition.notify()

    def close(self, timeout: float = 5.0) -> None:
        """Stop after the current item."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join(timeout)

    def latency_percentiles(self) -> tuple[float, float]:
        """Return median and 99th percentile of the last 300 processing times, in seconds; NaN before the first."""
        if not self._latencies:
            return float("nan"), float("nan")
        low, high = np.percentile(list(self._latencies), [50, 99])
        return float(low), float(high)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._pending is not None)
                if self._closed:
                    return
                item, self._pending = self._pending, None
            begin = time.perf_counter()
            try:
                self._process(item)
            except Exception as error:  # a bad image must not stop the node
                self.failed += 1
                self._on_error(error)
            else:
                self.processed += 1
                self._latencies.append(time.perf_counter() - begin)
