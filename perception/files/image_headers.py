"""Checks of image files without decoding: size, orientation, completeness."""

from __future__ import annotations

import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

from perception.types import DataError

MAX_PIXELS = 100_000_000
MAX_BYTES = 8 * MAX_PIXELS
"""Size of the largest image without compression: four channels of 16 bit."""
JPEG_SIGNATURE, PNG_SIGNATURE = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


FETCH_AGAIN = "Fetch the file again."


class ImageError(DataError):
    """An image file is missing or damaged. Training skips and counts it; elsewhere it is an error."""


MAX_SEGMENTS = 100_000
"""Maximum number of segments or chunks of a JPEG or PNG that are read."""


def read_image_bytes(path: Path, limit: int | None = None) -> bytes:
    """Read an image file, or its first ``limit`` bytes.

    Raises:
        ImageError: it is missing, not a regular file, or empty.
        DataError: it has more than `MAX_BYTES` bytes.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(f"{path} is not a regular file. Expected an image. Remove it, or put the image there.")
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
    """Raise DataError if an image has more than `MAX_PIXELS` pixels, ImageError if it has none."""
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path} has {width} x {height} = {width * height / 1e6:.0f} Mpx by its header. At most "
            f"{MAX_PIXELS // 10**6} Mpx are decoded. Scale or tile it first."
        )
    if width * height == 0:
        raise ImageError(f"{path} has {width} x {height} pixels by its header. {FETCH_AGAIN}")


def read_exif_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, in EXIF data (a TIFF header and its first directory); 1 if it has none."""
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
    """Header of a PNG.

    Attributes:
        size: (height, width) as stored.
        bit_depth: bits per channel.
        color_type: number of the color type in the PNG standard.
        orientation: EXIF orientation, 1 to 8; 1 = upright.
    """

    size: tuple[int, int]
    bit_depth: int
    color_type: int
    orientation: int = 1


def check_png(data: bytes, path: Path | str) -> PngHeader:
    """Read the header of a PNG and check its size and the check sum of every chunk. Raises ImageError."""
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
    raise ImageError(f"{path} is a truncated or damaged PNG from byte {position} on. {FETCH_AGAIN}")


def check_png_rows(data: bytes, path: Path | str) -> None:
    """Raise ImageError if a PNG without interlacing has too few or too many rows, which Pillow does not report."""
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
        raise ImageError(
            f"{path} is a PNG with {len(rows)} bytes of pixels or more. Expected {expected}. {FETCH_AGAIN}"
        )
