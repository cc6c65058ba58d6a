"""What an image file says of itself before anything is decoded: its size, its turn, whether it is whole."""

from __future__ import annotations

import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

from perception.types import DataError

MAX_PIXELS = 100_000_000
MAX_BYTES = 8 * MAX_PIXELS
"""What the largest image takes where nothing is compressed: four channels of 16 bit."""
JPEG_SIGNATURE, PNG_SIGNATURE = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


FETCH_AGAIN = "Fetch the file again."


class ImageError(DataError):
    """An image file that is missing or damaged: skipped and counted in training, an error anywhere else."""


MAX_SEGMENTS = 100_000
"""More parts than this no JPEG or PNG has before its image."""


def read_image_bytes(path: Path, limit: int | None = None) -> bytes:
    """The content of an image file, or its first ``limit`` bytes.

    Raises PictureError where it is missing, no plain file or empty; DataError where it is over `MAX_BYTES`.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(f"{path} is no regular file. Expected an image. Remove it, or put the image there.")
        if found.st_size > MAX_BYTES:
            raise DataError(
                f"{path} has {found.st_size / 1e9:.1f} GB. Expected an image of at most {MAX_BYTES / 1e9} GB."
            )
        with path.open("rb") as file:
            data = file.read(found.st_size if limit is None else limit)
    except FileNotFoundError:
        raise ImageError(f"No image at {path}. Restore the file, or remove it from the annotations.") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error}. Check the disk and the permissions.") from error
    if not data:
        raise ImageError(f"{path} is empty. {FETCH_AGAIN}")
    return data


def check_image_size(width: int, height: int, path: Path | str) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path} says it has {width} x {height} = {width * height / 1e6:.0f} Mpx. At most {MAX_PIXELS // 10**6} "
            "Mpx are decoded. Scale or tile it first."
        )
    if width * height == 0:
        raise ImageError(f"{path} says it has {width} x {height} pixels. {FETCH_AGAIN}")


def read_exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, that EXIF data (a TIFF header and its first directory) gives; 1 where it gives none."""
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    order = "little" if exif.startswith(b"II") else "big"
    number = lambda at, count: int.from_bytes(exif[at : at + count], order)  # noqa: E731
    start = number(4, 4)
    for at in range(start + 2, min(start + 2 + 12 * number(start, 2), len(exif) - 11), 12):
        if number(at, 2) == 0x0112:
            turn = number(at + 8, {3: 2, 4: 4}.get(number(at + 2, 2), 0))
            return turn if 1 <= turn <= 8 else 1
    return 1


@dataclass(frozen=True, slots=True)
class PngHeader:
    """size: (height, width) as stored. bit_depth: bits per channel. color_type: PNG's number for the kind.
    orientation: as EXIF's."""

    size: tuple[int, int]
    bit_depth: int
    color_type: int
    orientation: int = 1


def check_png(data: bytes, path: Path | str) -> PngHeader:
    """What a PNG's header says, after checking the size and every chunk's check sum."""
    position, turn = len(PNG_SIGNATURE), 1
    width = height = depth = color = 0
    for _ in range(MAX_SEGMENTS):
        if position + 12 > len(data):
            break
        length = int.from_bytes(data[position : position + 4], "big")
        name, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            break
        if name == b"IHDR" and length == 13:
            width, height = (int.from_bytes(data[at : at + 4], "big") for at in (position + 8, position + 12))
            depth, color = data[position + 16], data[position + 17]
            check_image_size(width, height, path)
        if name == b"eXIf":
            turn = read_exif_orientation(data[position + 8 : end])
        if name == b"IEND" and depth:
            return PngHeader((height, width), depth, color, turn)
        position = end + 4
    raise ImageError(f"{path} is a truncated or damaged PNG, wrong from byte {position} on. {FETCH_AGAIN}")


def check_png_rows(data: bytes, path: Path | str) -> None:
    """Raise PictureError where a sound PNG, not interlaced, holds other than all its rows. Pillow does not say."""
    header, position, parts = check_png(data, path), len(PNG_SIGNATURE), []
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"IDAT":
            parts.append(data[position + 8 : position + 8 + length])
        position += 12 + length
    if data[28]:
        return
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(header.color_type, 1)
    expected = header.size[0] * (1 + -(-header.size[1] * header.bit_depth * channels // 8))
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(b"".join(parts), expected + 1)
    except zlib.error as error:
        raise ImageError(f"{path} is a damaged PNG: {error}. {FETCH_AGAIN}") from error
    if len(rows) != expected or not stream.eof:
        raise ImageError(f"{path} is a PNG of {len(rows)} of {expected} bytes, or more. {FETCH_AGAIN}")
