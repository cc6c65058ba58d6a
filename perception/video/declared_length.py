"""What a video's container says of its length, and how far that is to be believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CODEC_NAMES = {
    "AV01": "AV1", "HEVC": "H.265", "HEV1": "H.265", "HVC1": "H.265", "VVC1": "H.266", "APCN": "ProRes",
    "APCH": "ProRes", "APCS": "ProRes", "APCO": "ProRes", "AP4H": "ProRes", "AP4X": "ProRes",
}  # fmt: skip
"""Of codecs that people know by another name than their four letters."""
COMMON_CODECS = frozenset(
    ("AVC1", "FMP4", "H264", "JPEG", "MJPG", "MP4V", "MPG1", "MPG2", "VP80", "VP90", "X264", "XVID")
)
"""Codecs that every FFmpeg decodes."""
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_MAX_BOXES = 1000


def explain_undecodable(codec: str) -> str:
    """The sentence's end for a video that opens and gives no frame."""
    name = CODEC_NAMES.get(codec, codec.strip())
    coded = f" It is coded as {name}, which this OpenCV may not decode." if name else ""
    mend = "Convert it: ffmpeg -i IN -c:v libx264 OUT.mp4"
    if codec in COMMON_CODECS:
        coded, mend = f" It is coded as {name}, which FFmpeg decodes: it is probably damaged or cut.", "Copy it again."
    return f"opened but has no frame that can be decoded.{coded} {mend}"


@dataclass(frozen=True, slots=True)
class DeclaredLength:
    """exact: the container counts its frames, as MP4, MOV and AVI do; others tell a duration, maybe the sound's.

    seconds: that an MP4 or MOV shows of its frames, which is less than all where it was trimmed; 0 = unknown
    """

    is_exact: bool = False
    seconds: float = 0.0


def read_declared_length(path: str) -> DeclaredLength:
    try:
        with Path(path).open("rb") as file:
            head = file.read(12)
            if head.startswith(b"RIFF"):
                return DeclaredLength(True)
            if head[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return DeclaredLength()
            seconds = 0.0
            for kind, begin, end in _iterate_boxes(file, 0, file.seek(0, os.SEEK_END)):
                if kind in (b"moof", b"sidx"):  # in fragments: no frame is counted
                    return DeclaredLength()
                if kind == b"moov":
                    seconds = _read_shown_seconds(file, begin, end)
            return DeclaredLength(True, seconds)
    except OSError:
        return DeclaredLength()


def _iterate_boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin and end of its content) of each box between two places."""
    for _ in range(_MAX_BOXES):
        if begin + 8 > end:
            return
        file.seek(begin)
        head = file.read(16)
        size, width = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, width = int.from_bytes(head[8:], "big"), 16
        yield head[4:8], begin + width, min(begin + size, end)
        if size < 8:
            return
        begin += size


def _read_shown_seconds(file: BinaryIO, begin: int, end: int) -> float:
    """Seconds that the first track of images is shown, by a ``moov`` box; 0 where that is not to be found."""
    scale = 0
    for kind, inner, last in _iterate_boxes(file, begin, end):
        if kind == b"mvhd":
            scale = _read_field(file, inner, 12, 20, 4)
        if kind == b"trak":
            duration, handler = 0, b""
            for part, at, stop in _iterate_boxes(file, inner, last):
                if part == b"tkhd":
                    duration = _read_field(file, at, 20, 28, 0)
                for name, where, _ in _iterate_boxes(file, at, stop) if part == b"mdia" else ():
                    if name == b"hdlr":
                        file.seek(where + 8)
                        handler = file.read(4)
            if handler == b"vide":
                return duration / scale if scale else 0.0
    return 0.0


def _read_field(file: BinaryIO, box: int, at: int, wide_at: int, width: int) -> int:
    """A number of a box of version 0 (4 bytes) or 1 (``width`` bytes, 0 = 8), each at its place."""
    file.seek(box)
    wide = file.read(1) == b"\1"
    file.seek(box + (wide_at if wide else at))
    return int.from_bytes(file.read((width or 8) if wide else 4), "big")


def is_complete(path: str) -> bool:
    """Whether the end of a video that only tells a duration is its end, even if it comes earlier than told."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(4096)
            size = file.seek(0, os.SEEK_END)
    except OSError:
        return False
    if not head.startswith(_EBML):
        return not head.startswith((b"FLV", b"0&\xb2u"))  # they tell what they were meant to have
    at = head.find(_SEGMENT)
    if at < 0:
        return False
    length, width = _read_ebml_number(head[at + 4 : at + 12])
    unknown = length == (1 << 7 * width) - 1
    return unknown or at + 4 + width + length <= size


def _read_ebml_number(data: bytes) -> tuple[int, int]:
    """An EBML number, and how many bytes it takes."""
    width = 9 - data[0].bit_length() if data and data[0] else 8
    return int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1), width
