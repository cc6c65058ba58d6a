"""One line on a terminal: ``drive.mp4 120/222 frames, 8.1/s, 0:13 left``; at its end only, where it is a file."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TextIO

from perception.files.safe_names import printable


class Progress:
    """stream: None = silent; length: frames that are expected, None = unknown; prefix: before each line; unit: of what
    is counted."""

    def __init__(
        self, stream: TextIO | None, name: str, length: int | None, prefix: str = "", unit: str = "frames"
    ) -> None:
        self.stream, self.name, self.length, self.prefix = stream, printable(name), length, prefix
        self.unit = unit
        self._begin, self._shown, self._count, self._text = time.monotonic(), 0.0, 0, ""

    def step(self) -> None:
        """One more frame."""
        self.reach(self._count + 1)

    def reach(self, count: int) -> None:
        """So many frames are done."""
        self._count = count
        now = time.monotonic()
        rate = self._count / max(now - self._begin, 1e-6)
        known = self.length is not None and self._count <= self.length
        of = f"/{self.length}" if known else ""
        self._text = f"{self.prefix}{self.name} {self._count}{of} {self.unit}, {rate:.1f}/s".lstrip()
        if known and self.length is not None and count:
            left = round((self.length - self._count) / rate)
            self._text += f", {left // 60}:{left % 60:02d} left"
        if self.stream and self.stream.isatty() and now - self._shown > 0.2:
            self._shown = now
            tell(self.stream, f"\r\x1b[K{self._text}")

    def done(self) -> None:
        if self.stream and self._text:
            tell(self.stream, f"\r\x1b[K{self._text}\n" if self.stream.isatty() else f"{self._text}\n")


def say(stream: TextIO | None, text: str) -> None:
    """A line, with what is in file names shown and not sent: they may move the cursor."""
    tell(stream, f"{printable(text)}\n")


def tell(stream: TextIO | None, text: str) -> None:
    """Write it at once; that nobody reads it any more (``| head``, ``2>&-``) does not end the work."""
    if stream is None:
        return
    with suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()
