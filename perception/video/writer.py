"""The interface of what writes a video: it is given each source, each frame, and the end of each source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from perception.runtime.result import Result
from perception.runtime.sources import Frame
from perception.types import TaskSpec
from perception.video.stage_times import Timings


@dataclass(frozen=True)
class WriterContext:
    """A source that begins. folder: of the run; name: of the source within it, without suffix; fps: 0 = images.

    notify: tells the user a sentence
    """

    folder: Path
    name: str
    fps: float
    specs: Mapping[str, TaskSpec]
    timings: Timings
    notify: Callable[[str], None] = lambda text: None


class Writer(Protocol):
    """One for a run; ``open`` and ``close`` for each of its videos, and once for all of its images."""

    def open(self, context: WriterContext) -> None: ...

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
        """A frame. record: its line of ``predictions.jsonl``, to which names of files may be added."""
        ...

    def close(self) -> None: ...
