"""How long stages take, in memory that does not grow: p50, p99 and the longest."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

MIN_SECONDS = 1e-5
"""Seconds of the first bin; anything shorter falls into it."""
BINS_PER_DECADE = 50
"""Bins for each factor of ten: percentiles are right to 2.4 %."""
NUM_BINS = 8 * BINS_PER_DECADE


class DurationHistogram:
    """A histogram of durations on a logarithmic scale."""

    def __init__(self) -> None:
        self.count, self.total, self.longest = 0, 0.0, 0.0
        self._bins = np.zeros(NUM_BINS, np.int64)

    def add(self, seconds: float) -> None:
        self.count, self.total, self.longest = self.count + 1, self.total + seconds, max(self.longest, seconds)
        place = int(math.log10(max(seconds, MIN_SECONDS) / MIN_SECONDS) * BINS_PER_DECADE)
        self._bins[min(place, NUM_BINS - 1)] += 1

    def quantile(self, q: float) -> float:
        """Seconds that ``q`` of the durations do not exceed; 0 where there are none."""
        if not self.count:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self._bins), math.ceil(q * self.count)))
        return min(self.longest, MIN_SECONDS * 10 ** ((place + 0.5) / BINS_PER_DECADE))


class Timings:
    """Durations by the name of their stage, from any thread."""

    def __init__(self) -> None:
        self.stages: dict[str, DurationHistogram] = {}
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.stages.setdefault(stage, DurationHistogram()).add(seconds)

    @contextmanager
    def measure(self, stage: str) -> Iterator[Callable[[], float]]:
        """Measure a block as one run of ``stage``. Gives what tells afterwards how many seconds it took."""
        begin = time.perf_counter()
        end = begin
        yield lambda: end - begin
        end = time.perf_counter()
        self.add(stage, end - begin)

    def to_json(self) -> dict[str, dict[str, float]]:
        """Milliseconds: stage -> p50, p99, max, mean, and how many there were."""
        with self._lock:
            return {
                stage: {
                    "p50": round(1e3 * found.quantile(0.5), 2),
                    "p99": round(1e3 * found.quantile(0.99), 2),
                    "max": round(1e3 * found.longest, 2),
                    "mean": round(1e3 * found.total / found.count, 2),
                    "count": found.count,
                }
                for stage, found in self.stages.items()
            }
