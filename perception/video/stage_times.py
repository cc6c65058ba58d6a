"""Stage durations with constant memory: p50, p99 and maximum."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

MIN_SECONDS = 1e-5
"""Upper limit of the first bin, in seconds."""
BINS_PER_DECADE = 50
"""Bins per factor of ten: percentiles are accurate to 2.4 %."""
NUM_BINS = 8 * BINS_PER_DECADE


class DurationHistogram:
    """A histogram of durations on a logarithmic scale."""

    def __init__(self) -> None:
        self.count, self.total, self.longest = 0, 0.0, 0.0
        self._bins = np.zeros(NUM_BINS, np.int64)

    def add(self, seconds: float) -> None:
        """Add one duration."""
        self.count, self.total, self.longest = self.count + 1, self.total + seconds, max(self.longest, seconds)
        place = int(math.log10(max(seconds, MIN_SECONDS) / MIN_SECONDS) * BINS_PER_DECADE)
        self._bins[min(place, NUM_BINS - 1)] += 1

    def quantile(self, q: float) -> float:
        """Return the ``q`` quantile in seconds; 0 if there are no durations."""
        if not self.count:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self._bins), math.ceil(q * self.count)))
        return min(self.longest, MIN_SECONDS * 10 ** ((place + 0.5) / BINS_PER_DECADE))


class Timings:
    """Durations by stage name. Thread-safe."""

    def __init__(self) -> None:
        self.stages: dict[str, DurationHistogram] = {}
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Add one duration of a stage."""
        with self._lock:
            self.stages.setdefault(stage, DurationHistogram()).add(seconds)

    @contextmanager
    def measure(self, stage: str) -> Iterator[Callable[[], float]]:
        """Measure a block as one run of ``stage``. Yields a function that returns its seconds afterwards."""
        begin = time.perf_counter()
        end = begin
        yield lambda: end - begin
        end = time.perf_counter()
        self.add(stage, end - begin)

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return stage -> p50, p99, max and mean in milliseconds, and the count."""
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
