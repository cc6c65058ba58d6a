"""What is written of a video: one writer per file. `WRITERS` names them all; a new one is an entry there."""

from __future__ import annotations

from collections.abc import Callable

from perception.types import PerceptionError
from perception.video.writer import Writer
from perception.video.writers.images import AnnotatedFrameWriter
from perception.video.writers.maps import MapWriter
from perception.video.writers.mcap import McapWriter
from perception.video.writers.records import JsonlWriter
from perception.video.writers.rrd import RerunWriter
from perception.video.writers.window import WindowWriter

WRITERS: dict[str, Callable[[], Writer]] = {
    "maps": MapWriter,
    "jsonl": JsonlWriter,
    "mp4": AnnotatedFrameWriter,
    "rrd": RerunWriter,
    "mcap": McapWriter,
    "window": WindowWriter,
}
"""In the order in which they are told of a frame: what adds to its record comes before what writes the record."""


def make_writers(names: set[str]) -> list[Writer]:
    """Raises PerceptionError for a name that is none of `WRITERS`."""
    if unknown := sorted(names - set(WRITERS)):
        raise PerceptionError(f"No way to save {', '.join(unknown)}. There are: {', '.join(WRITERS)}.")
    return [make() for name, make in WRITERS.items() if name in names]
