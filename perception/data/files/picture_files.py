"""What a picture file says of itself before anything is decoded: its size, its turn, whether it is whole."""

from __future__ import annotations

import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

from perception.types import DataError

MAX_PIXELS = 100_000_000
MAX_BYTES = 8 * MAX_PIXELS
"""What the largest picture takes where nothing is compressed: four channels of 16 bit."""
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class PictureError(DataError):
    """A picture file that is missing or damaged: skipped and counted in training, an error anywhere else."""


MAX_SCANS = 500
MAX_SEGMENTS = 100_000
"""More parts than this no JPEG or PNG has before its picture."""


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The content of a picture file, or its first ``limit`` bytes.

    Raises PictureError where it is missing, no plain file or empty; DataError where it is over `MAX_BYTES`.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise PictureError(f"{path} is no regular file. Expected a picture. Remove it, or put the picture there.")
        if found.st_size > MAX_BYTES:
            raise DataError(
                f"{path} has {found.st_size / 1e9:.1f} GB. Expected a picture of at most {MAX_BYTES / 1e9} GB."
            )
        with path.open("rb") as file:
            data = file.read(found.st_size if limit is None else limit)
    except FileNotFoundError:
        raise PictureError(f"No picture at {path}. Restore the file, or remove it from the annotations.") from None
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error}. Check the disk and the permissions.") from error
    if not data:
        raise PictureError(f"{path} is empty. Fetch the file again.")
    return data


def check_size(width: int, height: int, path: Path | str) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path} says it has {width} x {height} = {width * height / 1e6:.0f} Mpx. At most {MAX_PIXELS // 10**6} "
            "Mpx are decoded. Scale or tile it first."
        )
    if width * height == 0:
        raise PictureError(f"{path} says it has {width} x {height} pixels. Fetch the file again.")


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """size: (height, width) as stored. turn: the EXIF orientation; 1 = upright, 0 = unclear."""

    size: tuple[int, int]
    channels: int
    turn: int


def check_jpeg(data: bytes, path: Path | str) -> JpegHeader:
    """What a JPEG's header says, after checking the size and that the data goes on to its end marker."""
    header = jpeg_header(data, path)
    if header is None or data.rfind(b"\xff\xd9") < 0 or data.rfind(b"\xff\xd9") < data.find(b"\xff\xda"):
        raise PictureError(f"{path} is a truncated or damaged JPEG ({len(data)} bytes). Fetch the file again.")
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise PictureError(f"{path} goes over its pixels more than {MAX_SCANS} times. Save it again as a plain JPEG.")
    return header


def jpeg_header(data: bytes, path: Path | str) -> JpegHeader | None:
    """What the segments before a JPEG's first scan say; None where ``data`` ends before it, or is none."""
    position, channels, size, turns = 2, 0, (0, 0), []
    for _ in range(MAX_SEGMENTS):
        if position + 4 > len(data) or data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:
            filled = re.compile(rb"\xff*").match(data, position)
            position = filled.end() - 1 if filled else position + 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # they have no length
            position += 2
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _SIZE_MARKERS and position + 10 <= len(data):
            height, width = (int.from_bytes(data[at : at + 2], "big") for at in (position + 5, position + 7))
            size, channels = (height, width), data[position + 9]
            check_size(width, height, path)
        if marker == 0xE1 and data.startswith(b"Exif\0\0", position + 4) and end <= len(data):
            turns.append(_turn(data[position + 10 : end]))
        if marker == 0xDA:
            return JpegHeader(size, channels, turns[0] if len(turns) == 1 else int(not turns)) if channels else None
        position = end
    return None


def _turn(exif: bytes) -> int:
    """The orientation that EXIF data (a TIFF header and its first directory) gives; 1 = upright, 0 = unclear."""
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 0
    order = "little" if exif.startswith(b"II") else "big"
    number = lambda at, count: int.from_bytes(exif[at : at + count], order)  # noqa: E731
    start = number(4, 4)
    entries = range(start + 2, start + 2 + 12 * number(start, 2), 12)
    if not entries or entries[-1] + 12 > len(exif):
        return 0
    return next((number(at + 8, 2) for at in entries if number(at, 2) == 0x0112), 1)


@dataclass(frozen=True, slots=True)
class PngHeader:
    """size: (height, width). depth: bits per channel. colour: PNG's number for the kind. chunks: their names."""

    size: tuple[int, int]
    depth: int
    colour: int
    chunks: set[bytes]


def check_png(data: bytes, path: Path | str) -> PngHeader:
    """What a PNG's header says, after checking the size and every chunk's check sum."""
    position, names = len(PNG), set()
    width = height = depth = colour = 0
    for _ in range(MAX_SEGMENTS):
        if position + 12 > len(data):
            break
        length = int.from_bytes(data[position : position + 4], "big")
        name, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            break
        if name == b"IHDR" and length == 13:
            width, height = (int.from_bytes(data[at : at + 4], "big") for at in (position + 8, position + 12))
            depth, colour = data[position + 16], data[position + 17]
            check_size(width, height, path)
        names.add(name)
        if name == b"IEND" and depth:
            return PngHeader((height, width), depth, colour, names)
        position = end + 4
    raise PictureError(f"{path} is a truncated or damaged PNG, wrong from byte {position} on. Fetch the file again.")


def check_png_rows(data: bytes, path: Path | str) -> None:
    """Raise PictureError where a sound PNG, not interlaced, holds other than all its rows. Pillow does not say."""
    header, position, parts = check_png(data, path), len(PNG), []
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"IDAT":
            parts.append(data[position + 8 : position + 8 + length])
        position += 12 + length
    if data[28]:
        return
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(header.colour, 1)
    expected = header.size[0] * (1 + -(-header.size[1] * header.depth * channels // 8))
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(b"".join(parts), expected + 1)
    except zlib.error as error:
        raise PictureError(f"{path} is a damaged PNG: {error}. Fetch the file again.") from error
    if len(rows) != expected or not stream.eof:
        raise PictureError(f"{path} is a PNG of {len(rows)} of {expected} bytes, or more. Fetch the file again.")
