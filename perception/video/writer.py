"""The interface of output writers."""

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
    """What a writer needs about a source.

    Attributes:
        folder: output folder of the run.
        name: relative output path of the source, without suffix.
        fps: frame rate; 0 = images.
        specs: the tasks by name.
        timings: gets the durations of the stages.
        notify: shows one sentence to the user.
    """

    folder: Path
    name: str
    fps: float
    specs: Mapping[str, TaskSpec]
    timings: Timings
    notify: Callable[[str], None] = lambda text: None


class Writer(Protocol):
    """One instance per run. ``open`` and ``close`` are called for each video, and once for all images."""

    def open(self, context: WriterContext) -> None:
        """Start a source."""
        ...

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
        """Write a frame. ``record`` is its line of ``predictions.jsonl``; a writer may add file names to it."""
        ...

    def close(self) -> None:
        """Finish the source."""
        ...
