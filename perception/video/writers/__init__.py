"""Output writers, one per file. To add a writer, add an entry to `WRITERS`."""

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
"""Name -> writer, in calling order: writers that extend a frame's record come before the one that stores it."""


def make_writers(names: set[str]) -> list[Writer]:
    """Create the named writers, in the order of `WRITERS`. Raises PerceptionError for an unknown name."""
    if unknown := sorted(names - set(WRITERS)):
        raise PerceptionError(f"No way to save {', '.join(unknown)}. There are: {', '.join(WRITERS)}.")
    return [make() for name, make in WRITERS.items() if name in names]
