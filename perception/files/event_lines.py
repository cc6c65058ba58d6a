"""Lenient reading of metrics.jsonl, which may have damaged lines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def read_event_lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], dict[int, bytes]]:
    """Read the events of a log.

    An event is an object with a "step" that is a finite number >= 0. An unfinished last line is ignored.

    Returns:
        Events with their lines, and line number -> line for the damaged ones.
    """
    events, damaged = [], {}
    *lines, _cut = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        event = parse_event(line)
        if event is None:
            damaged[number] = line
        else:
            events.append((line, event))
    return events, damaged


def parse_event(line: bytes) -> dict[str, Any] | None:
    """Parse the event in a line; None if the line is not an event."""
    try:
        event = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    step = event.get("step") if isinstance(event, dict) else None
    return event if isinstance(step, (int, float)) and not isinstance(step, bool) and 0 <= step < math.inf else None
