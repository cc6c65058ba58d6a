"""The table of times in an mp4 file, which OpenCV can only fill with a constant rate.

An mp4 file keeps for each frame how long it is shown, apart from the coded frames (ISO/IEC 14496-12: ``stts`` in
``moov``). OpenCV writes ``moov`` last, so it can be written anew with the true times and nothing else is touched.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path

CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")
TICKS = 90_000
"""Ticks per second, as in MPEG transport streams: exact for 24, 25, 30, 50 and 60 frames per second."""
MAX_TICKS = (1 << 32) - 1
HEADER = 8
MAX_INDEX = 1 << 28


def set_times(path: Path, times: Sequence[float], period: float) -> None:
    """Give each frame of a closed mp4 file of one video track its time.

    times: seconds, growing; the first frame becomes the start of the file. period: seconds that the last one is shown

    Raises ValueError where the file is of another make; it is then as it was.
    """
    with path.open("r+b") as file:
        begin, moov = _index(file)
        scale = TICKS if (times[-1] - times[0] + period) * TICKS < MAX_TICKS else 1000
        places = [round((time - times[0]) * scale) for time in times]
        shown = [max(1, b - a) for a, b in pairwise(places)] + [max(1, round(period * scale))]
        edited = _Index(shown, scale).edit(moov, 0, len(moov))
        file.seek(begin)
        file.write(edited)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def check_whole(path: Path) -> None:
    """Raise ValueError unless an mp4 file ends with its index, which is written when everything else has been."""
    with path.open("rb") as file:
        _index(file)


def _index(file) -> tuple[int, bytes]:
    """Where ``moov`` begins, and its bytes. ValueError unless it is the last part of the file."""
    end, place = file.seek(0, os.SEEK_END), 0
    while place < end:
        file.seek(place)
        head = file.read(16)
        size, kind = struct.unpack(">I4s", head[:HEADER])
        if size == 1:
            size = struct.unpack(">Q", head[HEADER:])[0]
        if kind == b"moov":
            if place + size != end or size > MAX_INDEX:
                raise ValueError("its index is not its last part")
            file.seek(place)
            return place, file.read(size)
        if size < HEADER:
            raise ValueError(f"a part of {size} bytes at {place}")
        place += size
    raise ValueError("it has no index")


class _Index:
    """Writes the durations of frames, in ticks, into an index."""

    def __init__(self, shown: list[int], scale: int) -> None:
        self.shown, self.scale = shown, scale
        self.movie_scale = 1000
        self._total = sum(shown)

    def edit(self, data: bytes, begin: int, end: int) -> bytes:
        parts = []
        for kind, first, last in _parts(data, begin, end):
            content = data[first + HEADER : last]
            if kind in CONTAINERS:
                content = self.edit(data, first + HEADER, last)
            elif kind == b"ctts":
                raise ValueError("its frames are not in the order in which they are shown")
            elif edit := getattr(self, f"_{kind.decode('latin-1')}", None):
                if content[0]:
                    raise ValueError(f"{kind!r} of version {content[0]}")
                content = edit(content)
            parts.append(struct.pack(">I4s", HEADER + len(content), kind) + content)
        return b"".join(parts)

    def _movie_ticks(self) -> int:
        return round(self._total * self.movie_scale / self.scale)

    def _mvhd(self, content: bytes) -> bytes:
        self.movie_scale = struct.unpack(">I", content[12:16])[0]
        return content[:16] + struct.pack(">I", self._movie_ticks()) + content[20:]

    def _tkhd(self, content: bytes) -> bytes:
        return content[:20] + struct.pack(">I", self._movie_ticks()) + content[24:]

    def _elst(self, content: bytes) -> bytes:
        if struct.unpack(">I", content[4:8])[0] != 1:
            raise ValueError("it has several edits")
        return content[:8] + struct.pack(">I", self._movie_ticks()) + content[12:]

    def _mdhd(self, content: bytes) -> bytes:
        return content[:12] + struct.pack(">II", self.scale, self._total) + content[20:]

    def _stts(self, content: bytes) -> bytes:
        entries = struct.iter_unpack(">II", content[8:])
        if sum(count for count, _ in entries) != len(self.shown):
            raise ValueError(f"it does not hold {len(self.shown)} frames")
        runs = [(len(list(run)), ticks) for ticks, run in groupby(self.shown)]
        return content[:4] + struct.pack(">I", len(runs)) + b"".join(struct.pack(">II", *run) for run in runs)


def _parts(data: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while begin < end:
        size, kind = struct.unpack(">I4s", data[begin : begin + HEADER])
        if size < HEADER or begin + size > end:
            raise ValueError(f"a part of {size} bytes within its index")
        yield kind, begin, begin + size
        begin += size
