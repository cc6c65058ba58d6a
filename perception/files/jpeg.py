"""JPEG headers, and strict JPEG decoding: any damage is an error.

libjpeg fills missing parts with gray and only counts a warning. Here a warning is an error, except the warnings that
do not concern the pixels (`_repair_segments`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from perception.files.image_headers import (
    FETCH_AGAIN,
    MAX_SEGMENTS,
    ImageError,
    check_image_size,
    read_exif_orientation,
)

SCAN_MARKER, END_MARKER = b"\xff\xda", b"\xff\xd9"
MAX_SCANS = 500
"""Maximum number of scans; valid JPEGs have fewer."""
MAX_ZEROS = 16
"""Zero bytes in a row that count as lost data: with the standard's tables they would be 40 coefficients of -1."""
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame header."""


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Header of a JPEG.

    Attributes:
        size: (height, width) as stored.
        orientation: EXIF orientation, 1 to 8; 1 = upright.
        is_sequential: whether each pixel is coded in one scan.
        component_ids: ids of the components, one byte each.
        scan_offset: position of the first scan.
    """

    size: tuple[int, int]
    orientation: int
    is_sequential: bool
    component_ids: bytes
    scan_offset: int


def read_jpeg_header(data: bytes, path: Path | str) -> JpegHeader | None:
    """Read the segments before the first scan; None if ``data`` ends before it or is not a JPEG."""
    size, turn, sequential, components = (0, 0), None, True, b""
    for marker, begin, end in _iterate_segments(data):
        if marker in _FRAME_MARKERS and begin + 10 <= len(data):
            height, width = (int.from_bytes(data[at : at + 2], "big") for at in (begin + 5, begin + 7))
            check_image_size(width, height, path)
            size, sequential, components = (height, width), marker in (0xC0, 0xC1), data[begin + 10 : end : 3]
        if marker == 0xE1 and turn is None and data.startswith(b"Exif\0\0", begin + 4):
            turn = read_exif_orientation(data[begin + 10 : end])
        if marker == 0xDA:
            return JpegHeader(size, turn or 1, sequential, components, begin) if components else None
    return None


def _iterate_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of each segment up to the header of the first scan, like libjpeg."""
    position = 2
    for _ in range(MAX_SEGMENTS):
        if position + 4 > len(data) or data[position] != 0xFF:
            return
        marker = data[position + 1]
        if marker == 0xFF:
            filled = re.compile(rb"\xff*").match(data, position)
            position = filled.end() - 1 if filled else position + 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            position += 2
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, position, end
        if marker == 0xDA:
            return
        position = end


def decode_jpeg(data: bytes, path: Path | str, header: JpegHeader, reduction: int = 1) -> NDArray[np.uint8]:
    """Decode to uint8 RGB [H, W, 3], orientation as stored.

    Args:
        data: the encoded JPEG.
        path: the file, for messages.
        header: its header.
        reduction: 1, 2, 4 or 8: both sides become smaller by this factor.

    Raises:
        ImageError: data is missing, surplus or inconsistent.
    """
    try:
        try:
            image = _decode_strict(data, header, reduction)
        except ValueError:
            mended = _repair_segments(data, header)
            if mended == data:
                raise
            data, header = mended, check_jpeg(mended, path)
            image = _decode_strict(data, header, reduction)
        _check_scans(data, header)
        _check_zeros(data, header)
    except ValueError as error:
        raise ImageError(f"{path} is damaged or truncated: {error}. {FETCH_AGAIN}") from error
    return image


def _decode_strict(data: bytes, header: JpegHeader, reduction: int) -> NDArray[np.uint8]:
    height, width = (-(-side // reduction) for side in header.size)
    inks = len(header.component_ids) == 4
    room = np.empty((height, width, 4 if inks else 3), np.uint8)  # limits the memory, whatever libjpeg finds
    kind = "CMYK" if inks else "RGB"
    image = simplejpeg.decode_jpeg(data, kind, min_height=height, min_width=width, buffer=room, strict=True)
    if image.shape != room.shape:
        raise ValueError(
            f"it decodes to {image.shape[1]} x {image.shape[0]} pixels but its header has {width} x {height}"
        )
    if not inks:
        return image
    return ((image[..., :3].astype(np.uint16) * image[..., 3:] + 127) // 255).astype(np.uint8)  # 255 = no ink


def _check_scans(data: bytes, header: JpegHeader) -> None:
    """Raise ValueError if a component is in no scan: its pixels would be gray."""
    missing = set(header.component_ids)
    position, count = header.scan_offset, 0
    while position >= 0 and missing:
        number = data[position + 4] if position + 4 < len(data) else 0
        found = data[position + 5 : position + 5 + 2 * number : 2]
        if (
            data[position + 5 + 2 * number : position + 6 + 2 * number] == b"\0"
        ):  # the scan contains the mean of each block
            missing -= set(found)
        count += 1
        position = data.find(SCAN_MARKER, position + 2)
    if missing:
        raise ValueError(
            f"{len(missing)} of its {len(header.component_ids)} components are in none of its {count} scans"
        )


def _check_zeros(data: bytes, header: JpegHeader) -> None:
    """Raise ValueError if data was replaced by zeros, which libjpeg decodes without a warning."""
    if not header.is_sequential:
        return
    at = data.find(
        bytes(MAX_ZEROS), header.scan_offset, max(header.scan_offset, data.find(END_MARKER, header.scan_offset))
    )
    if at >= 0 and not _is_flat_image(data):
        raise ValueError(f"its data is zero from byte {at} on")


def _is_flat_image(data: bytes) -> bool:
    """Whether every Huffman table in the file codes the end of a block as zeros, as in flat images."""
    firsts = []
    for marker, begin, end in _iterate_segments(data):
        at = begin + 4
        while marker == 0xC4 and at + 17 < end:
            if data[at] & 0x10:
                firsts.append(data[at + 17])
            at += 17 + sum(data[at + 1 : at + 17])
    return bool(firsts) and not any(firsts)


def check_jpeg(data: bytes, path: Path | str) -> JpegHeader:
    """Read the header of a JPEG and check its size and its number of scans. Raises ImageError."""
    header = read_jpeg_header(data, path)
    if header is None:
        raise ImageError(f"{path} is a truncated or damaged JPEG ({len(data)} bytes). {FETCH_AGAIN}")
    if data.count(SCAN_MARKER) > MAX_SCANS:
        raise ImageError(f"{path} has more than {MAX_SCANS} scans. Save it again as a plain JPEG.")
    return header


def _repair_segments(data: bytes, header: JpegHeader) -> bytes:
    """The same image without the parts that cause a warning of libjpeg although the pixels are complete.

    Cameras and editors write JFIF and Adobe segments of unknown versions, damaged color profiles, progressive
    parameters in sequential scans, and zeros before the end marker.
    """
    parts, position = [data[:2]], 2
    for marker, begin, end in _iterate_segments(data):
        segment = data[begin:end]
        if marker == 0xE0 and segment[4:9] == b"JFIF\0":
            segment = segment[:9] + b"\1" + segment[10:]
        elif marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) > 15 and segment[15] > 2:
            segment = segment[:15] + (b"\2" if len(header.component_ids) == 4 else b"\1") + segment[16:]
        elif 0xE0 <= marker <= 0xEF:
            segment = b""
        elif marker == 0xDA and header.is_sequential and len(segment) > 5:
            segment = segment[: 5 + 2 * segment[4]] + b"\0\x3f\0" + segment[8 + 2 * segment[4] :]
        parts.append(segment)
        position = end
    rest = data[position:]
    at = rest.rfind(END_MARKER)
    if at > 0:
        pixels = rest[:at].rstrip(b"\0")
        rest = pixels + (b"\0" if pixels.endswith(b"\xff") else b"") + rest[at:]
    return b"".join([*parts, rest])
