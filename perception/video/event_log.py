"""What happened to the sources of a run: OK, DEGRADED, LOST, and every event on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Any

KEPT = 1000
"""Events that are kept; the others are only counted."""


class Status(IntEnum):
    """How a source does; the worse, the higher."""

    OK = 0
    DEGRADED = 1
    LOST = 2


class Journal:
    """Events of all sources of a run, from any thread. tell: called with a sentence for each change of status."""

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.count = 0
        self.worst = Status.OK
        self._now: dict[str, Status] = {}
        self._tell = tell
        self._begin = time.monotonic()
        self._lock = threading.Lock()

    def status(self, source: str) -> Status:
        """How a source does now."""
        return self._now.get(source, Status.OK)

    @property
    def now(self) -> Status:
        """How the source does that does worst now."""
        return max(self._now.values(), default=Status.OK)

    def note(self, source: str, status: Status, text: str) -> None:
        """Something happened to ``source``, which is ``status`` from now on."""
        with self._lock:
            changed = status != self.status(source)
            self._now[source] = status
            self.worst = max(self.worst, status)
            self.count += 1
            if len(self.events) < KEPT:
                seconds = round(time.monotonic() - self._begin, 3)
                self.events.append({"seconds": seconds, "source": source, "status": status.name, "event": text})
        if changed and self._tell:
            self._tell(f"{source}: {status.name}: {text}")
