"""The report of `perception predict`: ``summary.json`` and the last line on the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perception.files.safe_names import escape_unprintable
from perception.video.event_log import EventLog
from perception.video.stage_times import Timings

SUMMARY = "summary.json"


@dataclass
class PredictReport:
    """Result of `predict`.

    Attributes:
        out: output folder.
        frames: number of predicted frames.
        boxes: number of boxes in all frames.
        flagged: frames with at least one flag.
        invalid: frames whose prediction is not valid and must not be acted on.
        dropped: frames of live sources that were not consumed in time.
        deadline_misses: results after their deadline; None = no deadline.
        seconds: duration of the run.
        stop_signal: number of the signal that stopped the run (Ctrl-C: 2, closed window: 0); None = it finished.
        is_disk_full: a full disk, a quota or a file size limit ended the run.
        failures: (source, reason) of each source that could not be read or written completely.
        event_log: status changes of the sources.
        timings: durations of the stages.
    """

    out: Path
    frames: int = 0
    boxes: int = 0
    flagged: int = 0
    invalid: int = 0
    dropped: int = 0
    deadline_misses: int | None = None
    seconds: float = 0.0
    stop_signal: int | None = None
    is_disk_full: bool = False
    failures: list[tuple[str, str]] = field(default_factory=list)
    event_log: EventLog = field(default_factory=EventLog, repr=False)
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
            (self.deadline_misses or 0, "deadlines missed"),
            (len(self.failures), "sources failed"),
        )
        parts += [f"{count} {what}" for count, what in counted if count]
        return f"{self.out}: {self.event_log.current_status.name}: {', '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        return {
            "status": self.event_log.current_status.name,
            "worst_status": self.event_log.worst_status.name,
            "frames": self.frames,
            "boxes": self.boxes,
            "flagged": self.flagged,
            "invalid": self.invalid,
            "dropped": self.dropped,
            "deadline_misses": self.deadline_misses,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames / self.seconds, 2) if self.seconds else 0.0,
            "interrupted": self.stop_signal is not None,
            "latency_ms": self.timings.to_json(),
            "failures": [{"source": escape_unprintable(source), "reason": reason} for source, reason in self.failures],
            "events": self.event_log.events,
            "events_omitted": self.event_log.num_events - len(self.event_log.events),
        }
