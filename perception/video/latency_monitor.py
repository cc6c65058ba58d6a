"""Latency monitor (M3): compares the latency of each frame with a deadline."""

from __future__ import annotations

import dataclasses
import time

from perception.runtime.sources import Frame
from perception.types import Prediction
from perception.video.stage_times import Timings


class LatencyMonitor:
    """The last post-processor of a pipeline: flags late results and counts them in ``deadline_misses``.

    The deadline is in seconds from a frame's arrival to its result; None = no deadline.
    """

    def __init__(self, timings: Timings, deadline: float | None = None) -> None:
        self.deadline, self.deadline_misses = deadline, 0
        self._timings = timings

    def __call__(self, frame: Frame, prediction: Prediction) -> Prediction:
        """Return the prediction, flagged if it is late."""
        latency = time.monotonic() - frame.arrival_time
        self._timings.add("latency", latency)
        if self.deadline is None or latency <= self.deadline:
            return prediction
        self.deadline_misses += 1
        late = f"late: {1e3 * latency:.0f} ms, deadline {1e3 * self.deadline:.0f} ms"
        return dataclasses.replace(prediction, flags=(*prediction.flags, late))
