"""Reading picture files safely: whatever the file, uint8 RGB [H, W, 3] upright, or an error that names it.

Decoders are lenient: libjpeg fills what is missing with gray and only prints a warning, PIL clips 16 bit to 8. Here a
damaged file is an error, 16 bit is rescaled, and the size is known before anything is decoded.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.data.files.picture_files import (
    JPEG,
    MAX_PIXELS,
    PNG,
    PictureError,
    check_jpeg,
    check_png,
    check_size,
    jpeg_header,
    read_bytes,
)
from perception.types import DataError

PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")

REDUCTIONS = {1: cv2.IMREAD_COLOR_RGB, **{n: cv2.IMREAD_COLOR_RGB | 8 * n for n in (2, 4, 8)}}
"""By how much a JPEG can be decoded smaller -> cv2's flags. Its own names for 16, 32 and 64 (reduced) say BGR too."""


_HEAD = 1 << 17
"""Bytes in which the size of nearly every picture is found."""


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture file that was read and checked, decoded when asked for.

    size: (height, width) upright
    """

    path: Path | str
    size: tuple[int, int]
    reducible: bool = False
    """Whether it can be decoded smaller: it is an upright JPEG."""
    _data: bytes | None = None
    _decoded: NDArray[np.uint8] | None = None

    def decode(self, reduction: int = 1) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3]; with a ``reduction`` of 2, 4 or 8 smaller by it, where the picture is `reducible`.

        A pixel of a reduced picture is the mean of the ``reduction`` x ``reduction`` source pixels that it covers
        (libjpeg's scaled inverse transform), the last row and column of fewer. Raises PictureError where the file is
        damaged.
        """
        if self._data is None:
            assert self._decoded is not None
            return self._decoded
        decode = _decode_jpeg if self.reducible else _decode
        image = np.asarray(decode(self._data, REDUCTIONS[reduction], self.path), np.uint8)
        if image.shape[:2] != tuple(-(-side // reduction) for side in self.size):
            raise PictureError(
                f"{self.path} says it has {self.size[1]} x {self.size[0]} pixels but decodes to {image.shape[1]} x "
                f"{image.shape[0]} at 1/{reduction}. Save it again with a picture editor."
            )
        return image


def open_image(path: Path) -> StoredPicture:
    """The picture file, read and checked as far as possible without decoding.

    Raises PictureError where the file is missing, damaged or no picture; DataError where it is over `MAX_PIXELS`.
    """
    return _check(read_bytes(path), path)


def decode_image(data: bytes, where: str) -> NDArray[np.uint8]:
    """The encoded picture ``data`` of a stream or a recording, by the same rules as `read_image`: uint8 RGB [H, W, 3].

    Its size is checked before it is decoded. Raises PictureError naming ``where`` if it is damaged or no picture,
    DataError if it is over `MAX_PIXELS`.
    """
    if not data:
        raise PictureError(f"{where} is empty.")
    return _check(data, where).decode()


def _check(data: bytes, path: Path | str) -> StoredPicture:
    image = None
    if data.startswith(JPEG):
        header = check_jpeg(data, path)
        if header.channels in (1, 3) and header.turn == 1:
            return StoredPicture(path, header.size, True, data)
        image = _decode_jpeg(data, REDUCTIONS[1], path)
        image = image if header.channels in (1, 3) else None  # Pillow knows CMYK better, but not when it is damaged
    elif data.startswith(PNG):
        header = check_png(data, path)
        if header.depth == 16:
            image = _orient(_rgb(_decode(data, cv2.IMREAD_UNCHANGED, path)), data)
        elif b"eXIf" not in header.chunks:
            return StoredPicture(path, header.size, False, data)
    if image is None:
        image = _read_by_pillow(data, path)
    return StoredPicture(path, image.shape[:2], _decoded=image)


def read_image(path: Path) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3], upright (EXIF orientation applied), 16 bit rescaled to 8, transparency dropped.

    Raises as `open_image` does.
    """
    return open_image(path).decode()


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture as `read_image` gives it, from its header alone where it is a plain JPEG or PNG.

    Raises PictureError where the file is missing or no picture, DataError where it is over `MAX_PIXELS`.
    """
    head = read_bytes(path, _HEAD)
    if head.startswith(JPEG):
        header = jpeg_header(head, path) or jpeg_header(read_bytes(path), path)
        if header is not None and header.turn:
            height, width = header.size
            return (width, height) if header.turn in (5, 6, 7, 8) else (height, width)
    elif head.startswith(PNG) and head[12:16] == b"IHDR" and b"eXIf" not in head:
        width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
        check_size(width, height, path)
        return height, width
    return open_image(path).size


def _decode(data: bytes, flags: int, path: Path | str) -> NDArray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise PictureError(f"{path} cannot be decoded: {error}. Fetch the file again.") from error
    if image is None:
        raise PictureError(f"{path} cannot be decoded. Fetch the file again.")
    return image


_stderr_lock = threading.Lock()


def _decode_jpeg(data: bytes, flags: int, path: Path | str) -> NDArray[np.uint8]:
    """RGB. libjpeg says that data is corrupt only by a line on the error stream, so the stream is watched meanwhile."""
    with _stderr_lock:
        try:
            kept = os.dup(2)
        except OSError:  # a daemon without an error stream
            return _decode(data, flags, path)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        try:
            os.dup2(writer, 2)
            try:
                image = _decode(data, flags, path)
            finally:
                os.dup2(kept, 2)
            try:
                said = os.read(reader, 1 << 16)
            except BlockingIOError:
                return image
        finally:
            for descriptor in (kept, reader, writer):
                os.close(descriptor)
    if b"Corrupt JPEG data" in said or b"Premature end of JPEG" in said:
        raise PictureError(f"{path} is damaged: {said.decode(errors='replace').strip()}. Fetch the file again.")
    if b"JFIF" in said or b"Adobe" in said:  # only the first warning is printed: look what this one hides
        plain = _without_applications(data)
        if plain != data:
            _decode_jpeg(plain, flags, path)
        return image
    os.write(2, said)  # somebody else's words
    return image


def _without_applications(data: bytes) -> bytes:
    """A JPEG without the segments of applications (JFIF, EXIF, Adobe ...) before its first scan."""
    parts, position = [data[:2]], 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if not 0xE0 <= data[position + 1] <= 0xEF:
            parts.append(data[position:end])
        position = end
    return b"".join([*parts, data[position:]])


def _rgb(image: NDArray) -> NDArray[np.uint8]:
    """16-bit gray [H, W] or BGR(A) [H, W, C] rescaled to 8-bit RGB."""
    if image.ndim == 2 or image.shape[2] in (1, 2):
        image = np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)
    scaled = (image[..., 2::-1].astype(np.uint32) * 255 + 32767) // 65535
    return np.ascontiguousarray(scaled, np.uint8)


def _orient(image: NDArray, data: bytes) -> NDArray:
    """Apply the EXIF orientation of ``data``; one that cannot be read is none."""
    from PIL import Image

    orientation = 1
    with warnings.catch_warnings(), contextlib.suppress(Exception):  # Pillow raises anything where EXIF is damaged
        warnings.simplefilter("ignore")
        orientation = Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _read_by_pillow(data: bytes, path: Path | str) -> NDArray[np.uint8]:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise DataError(f"{path} is no plain JPEG or PNG: reading it needs the package pillow.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            check_size(*image.size, path)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16") or (image.format == "PPM" and upright.mode == "I"):
                return _rgb(np.asarray(upright).astype(np.uint16))
            if upright.mode in ("I", "F"):
                raise DataError(f"{path} has 32 bits per pixel (mode {upright.mode}). Expected 8 or 16. Convert it.")
            return np.asarray(
                upright.convert("RGBA").convert("RGB") if upright.mode in ("P", "PA") else upright.convert("RGB")
            )
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error} At most {MAX_PIXELS // 10**6} Mpx are decoded.") from error
    except UnidentifiedImageError:
        raise PictureError(f"{path} is no picture: it begins with {data[:16]!r}. Fetch the file again.") from None
    except Exception as error:  # so do its readers of damaged files
        raise PictureError(f"{path} is truncated or damaged: {error}. Fetch the file again.") from error
