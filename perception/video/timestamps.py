"""When each frame is to be seen: presentation times where there are any, always growing."""

from __future__ import annotations

DRIFT = 1.0
"""Seconds that the times of a live stream may differ from the clock on the wall before they are set anew."""


class Clock:
    """Stamps in seconds from the start of a video.

    period: seconds between frames where nothing is known
    live:   times follow the wall clock, which a stream's own times only make smoother
    """

    def __init__(self, period: float, live: bool) -> None:
        self.period, self.live = period, live
        self._last = -1.0
        self._count = 0
        self._offset: float | None = None
        self._begin: float | None = None

    def stamp(self, presented: float | None, arrived: float) -> float:
        """The time of the next frame; presented: the stream's own time, None = unknown; arrived: `time.monotonic`."""
        wanted = self._live(presented, arrived) if self.live else self._file(presented)
        self._last = wanted if wanted > self._last else self._last + self.period / 2
        self._count += 1
        return self._last

    def _file(self, presented: float | None) -> float:
        known = presented is not None and (presented > 0 or self._count == 0)
        return presented if known and presented is not None else self._count * self.period

    def _live(self, presented: float | None, arrived: float) -> float:
        self._begin = arrived if self._begin is None else self._begin
        passed = arrived - self._begin
        if presented is None:
            return passed
        if self._offset is None or abs(presented + self._offset - passed) > DRIFT:
            self._offset = passed - presented
        return presented + self._offset
