"""Frame timestamps: presentation times if available, strictly increasing."""

from __future__ import annotations

MAX_DRIFT = 1.0
"""Maximum drift in seconds of a live stream's times from the wall clock before they are realigned."""


class FrameClock:
    """Assigns timestamps in seconds from the start of a video.

    ``period`` is the time between frames (seconds) if they have no times. With ``is_live``, timestamps follow the wall
    clock; the stream's own times only smooth them.
    """

    def __init__(self, period: float, is_live: bool) -> None:
        self.period, self.is_live = period, is_live
        self._last = -1.0
        self._count = 0
        self._offset: float | None = None
        self._begin: float | None = None

    def stamp(self, presentation_time: float | None, arrival_time: float) -> float:
        """Return the time of the next frame.

        Args:
            presentation_time: the stream's own time in seconds, None = unknown.
            arrival_time: by `time.monotonic`.
        """
        wanted = (
            self._live_time(presentation_time, arrival_time) if self.is_live else self._file_time(presentation_time)
        )
        self._last = wanted if wanted > self._last else self._last + self.period / 2
        self._count += 1
        return self._last

    def _file_time(self, presentation_time: float | None) -> float:
        known = presentation_time is not None and (presentation_time > 0 or self._count == 0)
        return presentation_time if known and presentation_time is not None else self._count * self.period

    def _live_time(self, presentation_time: float | None, arrival_time: float) -> float:
        self._begin = arrival_time if self._begin is None else self._begin
        passed = arrival_time - self._begin
        if presentation_time is None:
            return passed
        if self._offset is None or abs(presentation_time + self._offset - passed) > MAX_DRIFT:
            self._offset = passed - presentation_time
        return presentation_time + self._offset
