"""Whether results come in time (M3): the latency of each frame against a deadline."""

from __future__ import annotations

import dataclasses
import time

from perception.runtime.sources import Shot
from perception.types import Prediction
from perception.video.stage_times import Timings


class Watch:
    """The last step of a pipeline. deadline: seconds from a frame's arrival to its result; None = there is none.

    misses: results that were late
    """

    def __init__(self, timings: Timings, deadline: float | None = None) -> None:
        self.deadline, self.misses = deadline, 0
        self._timings = timings

    def __call__(self, shot: Shot, prediction: Prediction) -> Prediction:
        latency = time.monotonic() - shot.arrived
        self._timings.add("latency", latency)
        if self.deadline is None or latency <= self.deadline:
            return prediction
        self.misses += 1
        late = f"late: {1e3 * latency:.0f} ms, deadline {1e3 * self.deadline:.0f} ms"
        return dataclasses.replace(prediction, flags=(*prediction.flags, late))
