"""What a film's container says of its length, and how far that is to be believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

NAMES = {
    "AV01": "AV1", "HEVC": "H.265", "HEV1": "H.265", "HVC1": "H.265", "VVC1": "H.266", "APCN": "ProRes",
    "APCH": "ProRes", "APCS": "ProRes", "APCO": "ProRes", "AP4H": "ProRes", "AP4X": "ProRes",
}  # fmt: skip
"""Of codecs that people know by another name than their four letters."""
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_BOXES = 1000


def undecodable(codec: str) -> str:
    """The sentence's end for a film that opens and gives no frame."""
    name = NAMES.get(codec, codec.strip())
    coded = f" It is coded as {name}, which this OpenCV may not decode." if name else ""
    return f"opened but has no frame that can be decoded.{coded} Convert it: ffmpeg -i IN -c:v libx264 OUT.mp4"


def is_exact(path: str) -> bool:
    """Whether the container counts its frames: MP4 and MOV, AVI. Others tell a duration, which may be the sound's."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(12)
            if head.startswith(b"RIFF"):
                return True
            return head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and not _in_fragments(file)
    except OSError:
        return False


def _in_fragments(file: BinaryIO) -> bool:
    return any(kind in (b"moof", b"sidx") for kind in _boxes(file))


def _boxes(file: BinaryIO) -> Iterator[bytes]:
    end, place = file.seek(0, os.SEEK_END), 0
    for _ in range(_BOXES):
        if place + 8 > end:
            return
        file.seek(place)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:], "big") if size == 1 else size
        yield head[4:8]
        if size < 8:
            return
        place += size


def is_whole(path: str) -> bool:
    """Whether the end of a film that only tells a duration is its end, even if it comes earlier than told."""
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
    length, width = _number(head[at + 4 : at + 12])
    unknown = length == (1 << 7 * width) - 1
    return unknown or at + 4 + width + length <= size


def _number(data: bytes) -> tuple[int, int]:
    """An EBML number, and how many bytes it takes."""
    width = 9 - data[0].bit_length() if data and data[0] else 8
    return int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1), width
