"""Progress line: ``drive.mp4 120/222 frames, 8.1/s, 0:13 left``. A file gets only the final line."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TextIO

from perception.files.safe_names import escape_unprintable


class Progress:
    """A progress line on ``stream`` (None = silent); ``total`` is the expected number of frames, None = unknown."""

    def __init__(
        self, stream: TextIO | None, name: str, total: int | None, prefix: str = "", unit: str = "frames"
    ) -> None:
        self.stream, self.name, self.total, self.prefix = stream, escape_unprintable(name), total, prefix
        self.unit = unit
        self._begin, self._shown, self._count, self._text = time.monotonic(), 0.0, 0, ""

    def step(self) -> None:
        """Count one more frame."""
        self.set_count(self._count + 1)

    def set_count(self, count: int) -> None:
        """Set the number of finished frames and update the line."""
        self._count = count
        now = time.monotonic()
        rate = self._count / max(now - self._begin, 1e-6)
        known = self.total is not None and self._count <= self.total
        of = f"/{self.total}" if known else ""
        self._text = f"{self.prefix}{self.name} {self._count}{of} {self.unit}, {rate:.1f}/s".lstrip()
        if known and self.total is not None and count:
            left = round((self.total - self._count) / rate)
            self._text += f", {left // 60}:{left % 60:02d} left"
        if self.stream and self.stream.isatty() and now - self._shown > 0.2:
            self._shown = now
            write_now(self.stream, f"\r\x1b[K{self._text}")

    def finish(self) -> None:
        """Print the final line."""
        if self.stream and self._text:
            write_now(self.stream, f"\r\x1b[K{self._text}\n" if self.stream.isatty() else f"{self._text}\n")


def print_line(stream: TextIO | None, text: str) -> None:
    """Print a line. Control characters (of file names) are escaped: they could move the cursor."""
    write_now(stream, f"{escape_unprintable(text)}\n")


def write_now(stream: TextIO | None, text: str) -> None:
    """Write and flush the text. A closed stream (``| head``, ``2>&-``) is ignored."""
    if stream is None:
        return
    with suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()
