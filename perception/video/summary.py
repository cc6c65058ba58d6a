"""What a run of `perception predict` came to: ``summary.json``, and its last line on the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perception.files.safe_names import printable
from perception.video.event_log import Journal
from perception.video.stage_times import Timings

SUMMARY = "summary.json"


@dataclass
class Report:
    """What `predict` did.

    flagged:  frames with something that was not sound; invalid: those on which no one should act
    dropped:  frames of live sources that came faster than they were used; misses: results after their deadline
    failures: (source, reason) of each source that could not be read or written to its end
    full: a disk, a quota or the limit of a file's size is full: that ended it
    interrupted: number of the signal that ended it (Ctrl-C: 2, a closed window: 0); None = it came to its end
    """

    out: Path
    frames: int = 0
    boxes: int = 0
    flagged: int = 0
    invalid: int = 0
    dropped: int = 0
    misses: int | None = None
    seconds: float = 0.0
    interrupted: int | None = None
    full: bool = False
    failures: list[tuple[str, str]] = field(default_factory=list)
    journal: Journal = field(default_factory=Journal, repr=False)
    timings: Timings = field(default_factory=Timings, repr=False)

    def __str__(self) -> str:
        parts = [f"{self.frames} frames", f"{self.boxes} boxes"]
        if self.seconds:
            parts.append(f"{self.frames / self.seconds:.1f} frames/s")
        for stage, found in self.timings.to_json().items():
            if stage == "latency":
                parts.append(f"latency p50 {found['p50']:.0f} ms, p99 {found['p99']:.0f} ms")
        counted = (
            (self.invalid, "frames not valid"),
            (self.flagged, "frames flagged"),
            (self.dropped, "frames dropped"),
            (self.misses or 0, "deadlines missed"),
            (len(self.failures), "sources failed"),
        )
        parts += [f"{count} {what}" for count, what in counted if count]
        return f"{self.out}: {self.journal.now.name}: {', '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """``summary.json``."""
        return {
            "status": self.journal.now.name,
            "worst_status": self.journal.worst.name,
            "frames": self.frames,
            "boxes": self.boxes,
            "flagged": self.flagged,
            "invalid": self.invalid,
            "dropped": self.dropped,
            "deadline_misses": self.misses,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames / self.seconds, 2) if self.seconds else 0.0,
            "interrupted": self.interrupted is not None,
            "latency_ms": self.timings.to_json(),
            "failures": [{"source": printable(source), "reason": reason} for source, reason in self.failures],
            "events": self.journal.events,
            "events_not_kept": self.journal.count - len(self.journal.events),
        }
