"""The length that a video's container declares, and how reliable it is."""

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
"""Common names of codecs whose four letters are not the usual name."""
COMMON_CODECS = frozenset(
    ("AVC1", "FMP4", "H264", "JPEG", "MJPG", "MP4V", "MPG1", "MPG2", "VP80", "VP90", "X264", "XVID")
)
"""Codecs that every FFmpeg build decodes."""
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_MAX_BOXES = 1000


def explain_undecodable(codec: str) -> str:
    """Return the end of the error sentence for a video that opens but has no decodable frame."""
    name = CODEC_NAMES.get(codec, codec.strip())
    coded = f" Its codec is {name}, which this OpenCV may not support." if name else ""
    mend = "Convert it: ffmpeg -i IN -c:v libx264 OUT.mp4"
    if codec in COMMON_CODECS:
        coded, mend = (
            f" Its codec is {name}, which FFmpeg supports: the file is probably damaged or cut off.",
            "Copy it again.",
        )
    return f"opened, but no frame could be decoded.{coded} {mend}"


@dataclass(frozen=True, slots=True)
class DeclaredLength:
    """Reliability of a declared length.

    Attributes:
        is_exact: the container counts its frames (MP4, MOV, AVI). Others declare a duration, possibly of the audio.
        seconds: duration shown by an MP4 or MOV, shorter than all its frames if it was trimmed; 0 = unknown.
    """

    is_exact: bool = False
    seconds: float = 0.0


def read_declared_length(path: str) -> DeclaredLength:
    """Read it from the container; the default `DeclaredLength` if that is not possible."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(12)
            if head.startswith(b"RIFF"):
                return DeclaredLength(True)
            if head[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return DeclaredLength()
            seconds = 0.0
            for kind, begin, end in _iterate_boxes(file, 0, file.seek(0, os.SEEK_END)):
                if kind in (b"moof", b"sidx"):  # fragmented: no frame count
                    return DeclaredLength()
                if kind == b"moov":
                    seconds = _read_shown_seconds(file, begin, end)
            return DeclaredLength(True, seconds)
    except OSError:
        return DeclaredLength()


def _iterate_boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin and end of the content) of each box between two offsets."""
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
    """Duration in seconds of the first video track of a ``moov`` box; 0 if not found."""
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
    """A number of a box: 4 bytes at ``at`` in version 0, ``width`` bytes (0 = 8) at ``wide_at`` in version 1."""
    file.seek(box)
    wide = file.read(1) == b"\1"
    file.seek(box + (wide_at if wide else at))
    return int.from_bytes(file.read((width or 8) if wide else 4), "big")


def is_complete(path: str) -> bool:
    """Return whether a video with only a declared duration is complete, even if it ends earlier than declared."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(4096)
            size = file.seek(0, os.SEEK_END)
    except OSError:
        return False
    if not head.startswith(_EBML):
        return not head.startswith((b"FLV", b"0&\xb2u"))  # they declare the intended length
    at = head.find(_SEGMENT)
    if at < 0:
        return False
    length, width = _read_ebml_number(head[at + 4 : at + 12])
    unknown = length == (1 << 7 * width) - 1
    return unknown or at + 4 + width + length <= size


def _read_ebml_number(data: bytes) -> tuple[int, int]:
    """An EBML number and its length in bytes."""
    width = 9 - data[0].bit_length() if data and data[0] else 8
    return int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1), width
