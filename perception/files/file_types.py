"""Detection of images and videos by their first bytes. Names may be wrong, and pipes have none."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from perception.files.image_headers import JPEG_SIGNATURE
from perception.files.jpeg import END_MARKER, read_jpeg_header
from perception.files.unsupported_formats import describe_unsupported
from perception.types import DataError

HEAD_BYTES = 4096
"""Number of first bytes that are needed."""
_IMAGE_PATTERN = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM.{4}\0\0\0\0|II\*\0|MM\0\*|P[1-6]\s|....ftypavi[fs]",
    re.DOTALL,
)
_VIDEO_PATTERN = re.compile(
    rb"....(?:ftyp|moov|mdat|wide|free|skip|pnot)|RIFF....AVI |\x1aE\xdf\xa3|FLV\x01|\0\0\x01[\xb3\xba]"
    rb"|0&\xb2u\x8ef\xcf\x11|OggS|YUV4MPEG2|\.RMF|DKIF|\0{2,3}\x01[\x06\x09\x27\x40\x46\x67]|G.{187}G|.{4}G.{191}G",
    re.DOTALL,
)
_PLAYLIST_SIGNATURE = b"#EXTM3U"
_MAX_READ_BYTES, _MAX_HEADER_BYTES = 1 << 26, 1 << 20


def detect_file_type(head: bytes) -> Literal["image", "video", "playlist"] | None:
    """Detect the type of a file from ``head``, its first `HEAD_BYTES` bytes; None = unknown."""
    if head.startswith(_PLAYLIST_SIGNATURE) and b"#EXT-X-" in head:
        return "playlist"
    if describe_unsupported(head):
        return None
    if _IMAGE_PATTERN.match(head):
        return "image"
    return "video" if _VIDEO_PATTERN.match(head) else None


def has_trailing_index(head: bytes) -> bool:
    """Return whether a file is an MP4 or MOV with its index after the frames, so it cannot be played as a stream."""
    at = 0
    while at + 8 <= len(head):
        kind = head[at + 4 : at + 8]
        if kind not in (b"ftyp", b"wide", b"free", b"skip"):
            return kind == b"mdat"
        at += max(8, int.from_bytes(head[at : at + 4], "big"))
    return False


def is_animated(path: Path) -> bool:
    """Return whether a GIF has several frames, or a file several JPEGs."""
    with path.open("rb") as file:
        data = file.read(_MAX_READ_BYTES)
    if data.startswith(JPEG_SIGNATURE):
        return b"MPF\0" not in data[:HEAD_BYTES] and len(list(zip(split_jpegs(data), range(2), strict=False))) > 1
    return data.startswith(b"GIF8") and sum(1 for _ in zip(_find_gif_frames(data), range(2), strict=False)) > 1


def _find_gif_frames(data: bytes) -> Iterator[int]:
    """Offset of each frame of a GIF, up to the first damaged block."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    while at + 10 < len(data):
        if data[at] == 0x2C:
            yield at
            at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
        elif data[at] == 0x21:
            at += 2
        else:
            return
        while at < len(data) and data[at]:  # blocks of an image or an extension, up to an empty one
            at += 1 + data[at]
        at += 1


def _find_scan(data: bytes) -> int:
    """Offset of the first scan of a JPEG; 2 if it is not found."""
    try:
        header = read_jpeg_header(data, "a frame")
    except DataError:  # too large: decoding reports it
        return 2
    return header.scan_offset if header else 2


def split_jpegs(data: bytes | mmap.mmap) -> Iterator[bytes]:
    """Yield the consecutive JPEGs in ``data``. A truncated one ends where the next begins."""
    begin = data.find(JPEG_SIGNATURE)
    while begin >= 0:
        scan = begin + _find_scan(data[begin : begin + _MAX_HEADER_BYTES])
        end, following = data.find(END_MARKER, scan), data.find(JPEG_SIGNATURE, scan)
        if end < 0 or 0 <= following < end:
            end = following if following >= 0 else len(data)
        else:
            end += len(END_MARKER)
        yield data[begin:end]
        begin = data.find(JPEG_SIGNATURE, end)
