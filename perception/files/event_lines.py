"""The lines of a metrics.jsonl, whatever a crash or a flipped bit made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def read_event_lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], dict[int, bytes]]:
    """The events of a log with the line of each; and number -> line of those that are none.

    An event is an object with a "step" that is a finite number from 0 on. A last line without its end, which a crash
    cut off, is in neither.
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
    """The event in a line; None where it is none."""
    try:
        event = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    step = event.get("step") if isinstance(event, dict) else None
    return event if isinstance(step, (int, float)) and not isinstance(step, bool) and 0 <= step < math.inf else None
