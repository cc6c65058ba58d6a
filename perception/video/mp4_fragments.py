"""Crash-safe mp4 files: fragments while writing, then an ordinary index with the true frame times.

OpenCV's FFmpeg writes the index (``moov``) of an mp4 file only when it closes the file, with a constant frame rate. A
killed process or a full disk loses the video. The streaming format ``.ismv`` is the same container in self-contained
fragments (``moof``, ISO/IEC 14496-12). `write_index` first appends an ordinary index with the time of each frame, and
then turns the fragment headers into a part of the media data.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

FRAGMENTED_SUFFIX = ".ismv"
CONTAINER_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"traf")
TICKS_PER_SECOND = 90_000
"""As in MPEG transport streams: exact for 24, 25, 30, 50 and 60 frames per second."""
MAX_TICKS = (1 << 32) - 1
HEADER_BYTES = 8
MAX_INDEX_BYTES = 1 << 28
NON_KEYFRAME_FLAG = 0x10000
"""Flag of a frame that depends on earlier frames."""


class EncodedFrame(NamedTuple):
    """Offset and size of an encoded frame in the file, in bytes, and whether it decodes without earlier frames."""

    offset: int
    size: int
    is_keyframe: bool


def write_index(path: Path, times: Sequence[float], last_duration: float) -> int:
    """Add an ordinary index to a closed file of fragments.

    Args:
        path: the file.
        times: ascending seconds, one per frame; the first frame becomes the start of the file.
        last_duration: seconds for which the last frame is shown.

    Returns:
        The number of frames in the file; fewer than ``times`` if the disk was full.

    Raises:
        ValueError: the file has another structure. It remains playable.
        OSError: no space is left. The file remains playable.
    """
    with path.open("r+b") as file:
        begin, moov, frames, end = _read_fragments(file)
        times = times[: len(frames)]
        if not times:
            return 0
        scale = TICKS_PER_SECOND if (times[-1] - times[0] + last_duration) * TICKS_PER_SECOND < MAX_TICKS else 1000
        places = [round((time - times[0]) * scale) for time in times]
        shown = [max(1, b - a) for a, b in pairwise(places)] + [max(1, round(last_duration * scale))]
        index = _IndexBuilder(shown, frames[: len(times)], scale).build(moov)
        file.truncate(end)
        try:
            _write_at(file, end, index)
        except OSError:
            file.truncate(end)
            raise
        _write_at(file, begin, struct.pack(">I4sQ", 1, b"mdat", end - begin))
        _write_at(file, HEADER_BYTES, b"isom\0\0\2\0isommp41")
        return len(frames)


def _write_at(file: BinaryIO, offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _read_fragments(file: BinaryIO) -> tuple[int, bytes, list[EncodedFrame], int]:
    """Offset and content of ``moov``, the frames of all complete fragments, and the end of these fragments."""
    length, place, found = file.seek(0, os.SEEK_END), 0, dict[bytes, tuple[int, bytes]]()
    frames: list[EncodedFrame] = []
    end = 0
    while place + HEADER_BYTES <= length:
        file.seek(place)
        size, kind = struct.unpack(">I4s", file.read(HEADER_BYTES))
        if size < HEADER_BYTES or place + size > length or kind == b"mfra":
            break
        if kind in (b"ftyp", b"moov", b"moof"):
            if size > MAX_INDEX_BYTES:
                raise ValueError(f"a box of {size} bytes at byte {place} is too large")
            found[kind] = place, file.read(size - HEADER_BYTES)
        elif kind == b"mdat" and b"moof" in found:
            frames += _read_frames(*found.pop(b"moof"))
            end = place + size
        place += size
    if len(found.get(b"ftyp", (0, b""))[1]) != 16 or b"moov" not in found or not end:
        raise ValueError("it has no fragments")
    return *found[b"moov"], frames, end


def _read_frames(begin: int, moof: bytes) -> Iterator[EncodedFrame]:
    """The frames of the fragment at offset ``begin``."""
    size = flags = 0
    for kind, content in _iterate_boxes(moof, recursive=True):
        has = int.from_bytes(content[1:4], "big")
        if kind == b"tfhd":
            optional = _read_optional_numbers(content, 8, has, (0x2, 0x8, 0x10, 0x20))
            if has & 0x1:
                raise ValueError("its fragments use another base offset")
            size, flags = optional.get(0x10, 0), optional.get(0x20, 0)
        elif kind == b"trun":
            count, at = struct.unpack(">I", content[4:8])[0], 8 + 4 * bool(has & 0x1) + 4 * bool(has & 0x4)
            start = _read_optional_numbers(content, 8, has, (0x1, 0x4))
            if has & 0x800 or 0x1 not in start:
                raise ValueError("its frames are not in display order")
            place = begin + start[0x1]
            for number in range(count):
                own = _read_optional_numbers(content, at, has, (0x100, 0x200, 0x400))
                at += 4 * len(own)
                default = start.get(0x4, flags) if number == 0 else flags
                yield EncodedFrame(place, own.get(0x200, size), not own.get(0x400, default) & NON_KEYFRAME_FLAG)
                place += own.get(0x200, size)


def _read_optional_numbers(content: bytes, offset: int, flags: int, bits: Sequence[int]) -> dict[int, int]:
    """Flag -> 32-bit number, for the consecutive optional numbers that ``flags`` marks as present."""
    there = [bit for bit in bits if flags & bit]
    return dict(zip(there, struct.unpack_from(f">{len(there)}I", content, offset), strict=True))


class _IndexBuilder:
    """Converts the index of fragments into an ordinary one. durations: ticks per frame."""

    def __init__(self, durations: list[int], frames: Sequence[EncodedFrame], ticks_per_second: int) -> None:
        self.frames, self.ticks_per_second = frames, ticks_per_second
        self.total_ticks = sum(durations)
        runs = [(len(list(run)), ticks) for ticks, run in groupby(durations)]
        keys = [number for number, frame in enumerate(frames, 1) if frame.is_keyframe]
        self._tables = {
            b"stts": _encode_table(len(runs), *(number for run in runs for number in run)),
            b"stsc": _encode_table(1, 1, 1, 1),
            b"stsz": _encode_table(0, len(frames), *(frame.size for frame in frames)),
            b"stco": _encode_box(
                b"co64", struct.pack(f">II{len(frames)}Q", 0, len(frames), *(f.offset for f in frames))
            ),
        }
        self._keyframe_table = _encode_box(b"stss", _encode_table(len(keys), *keys)) if len(keys) < len(frames) else b""

    def build(self, moov: bytes) -> bytes:
        """Return the new ``moov`` box for the content of the old one."""
        return _encode_box(b"moov", self._rewrite_boxes(moov))

    def _rewrite_boxes(self, data: bytes) -> bytes:
        parts = []
        for kind, content in _iterate_boxes(data):
            if kind == b"mvex":  # declares fragments
                continue
            if kind == b"stco":
                parts.append(self._tables[kind] + self._keyframe_table)
                continue
            if kind in CONTAINER_BOXES:
                content = self._rewrite_boxes(content)
            elif kind in self._tables:
                content = self._tables[kind]
            elif kind in (b"mvhd", b"tkhd", b"mdhd"):
                content = self._set_duration(kind, content)
            parts.append(_encode_box(kind, content))
        return b"".join(parts)

    def _set_duration(self, kind: bytes, content: bytes) -> bytes:
        """Set a header's duration: the media header in its own time scale, the others in milliseconds."""
        wide = content[0] == 1  # 64-bit times
        at = 20 if wide else 12  # after two dates
        if kind == b"tkhd":  # track id and a reserved field
            before, at = content[at : at + 8], at + 8
        else:
            before, at = struct.pack(">I", self.ticks_per_second if kind == b"mdhd" else 1000), at + 4
        total = self.total_ticks if kind == b"mdhd" else round(self.total_ticks * 1000 / self.ticks_per_second)
        begin, after = content[: at - len(before)], content[at + (8 if wide else 4) :]
        return begin + before + struct.pack(">Q" if wide else ">I", total) + after


def _encode_table(*numbers: int) -> bytes:
    return struct.pack(f">I{len(numbers)}I", 0, *numbers)


def _encode_box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", HEADER_BYTES + len(content), kind) + content


def _iterate_boxes(data: bytes, recursive: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each box. recursive: also of boxes within `CONTAINER_BOXES`."""
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < HEADER_BYTES or at + size > len(data):
            raise ValueError(f"its index has an invalid box of {size} bytes")
        content = data[at + HEADER_BYTES : at + size]
        yield kind, content
        if recursive and kind in CONTAINER_BOXES:
            yield from _iterate_boxes(content, recursive=True)
        at += size
