"""The status of each source of a run (OK, DEGRADED, LOST) and the events that changed it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Any

MAX_EVENTS = 1000
"""Maximum number of stored events; further events are only counted."""


class Status(IntEnum):
    """Status of a source; a higher value is worse."""

    OK = 0
    DEGRADED = 1
    LOST = 2


class EventLog:
    """Events of all sources of a run. Thread-safe. ``on_change`` gets one sentence for each change of status."""

    def __init__(self, on_change: Callable[[str], None] | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.num_events = 0
        self.worst_status = Status.OK
        self._status_of: dict[str, Status] = {}
        self._on_change = on_change
        self._begin = time.monotonic()
        self._lock = threading.Lock()

    def status(self, source: str) -> Status:
        """Return the current status of a source."""
        return self._status_of.get(source, Status.OK)

    @property
    def current_status(self) -> Status:
        """The current status of the worst source."""
        return max(self._status_of.values(), default=Status.OK)

    def record(self, source: str, status: Status, text: str) -> None:
        """Record an event (``text``) of ``source`` and set the source's status."""
        with self._lock:
            changed = status != self.status(source)
            self._status_of[source] = status
            self.worst_status = max(self.worst_status, status)
            self.num_events += 1
            if len(self.events) < MAX_EVENTS:
                seconds = round(time.monotonic() - self._begin, 3)
                self.events.append({"seconds": seconds, "source": source, "status": status.name, "event": text})
        if changed and self._on_change:
            self._on_change(f"{source}: {status.name}: {text}")
