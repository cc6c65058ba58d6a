"""Reading picture files safely: whatever the file, uint8 RGB [H, W, 3] upright, or an error that names it.

Decoders are lenient: libjpeg fills what is missing with gray, PIL clips 16 bit to 8. Here a damaged file is an error,
16 bit is rescaled, and the size is known before anything is decoded.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.files.image_headers import (
    AGAIN,
    JPEG,
    MAX_PIXELS,
    PNG,
    PictureError,
    PngHeader,
    check_png,
    check_size,
    read_bytes,
)
from perception.files.jpeg import JpegHeader, check_jpeg, decode_jpeg, jpeg_header
from perception.files.unsupported_formats import RAW, is_raw, unread
from perception.types import DataError

PICTURE_SUFFIXES = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".avif", ".tif", ".tiff",
        ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    )
)  # fmt: skip
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "AVIF", "TIFF", "GIF", "PPM")

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
    _data: bytes = b""
    _header: JpegHeader | PngHeader | None = None
    _decoded: NDArray[np.uint8] | None = None

    def decode(self, reduction: int = 1) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3]; with a ``reduction`` of 2, 4 or 8 smaller by it, where the picture is `reducible`.

        A pixel of a reduced picture is the mean of the ``reduction`` x ``reduction`` source pixels that it covers
        (libjpeg's scaled inverse transform), the last row and column of fewer. Raises PictureError where the file is
        damaged.
        """
        header = self._header
        if header is None:
            assert self._decoded is not None
            return self._decoded
        decoded = (
            decode_jpeg(self._data, self.path, header, reduction)
            if isinstance(header, JpegHeader)
            else _decode_png(self._data, self.path, header)
        )
        return np.asarray(upright(decoded, header.turn), np.uint8)


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
    if data.startswith(JPEG):
        header = check_jpeg(data, path)
        reducible = header.turn == 1 and len(header.components) in (1, 3)
        return StoredPicture(path, _turned(header.size, header.turn), reducible, data, header)
    if data.startswith(PNG):
        header = check_png(data, path)
        return StoredPicture(path, _turned(header.size, header.turn), False, data, header)
    image = _read_by_pillow(data, path)
    return StoredPicture(path, image.shape[:2], _decoded=image)


def _turned(size: tuple[int, int], turn: int) -> tuple[int, int]:
    return size if turn < 5 else (size[1], size[0])


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
        if header is not None:
            return _turned(header.size, header.turn)
    elif head.startswith(PNG) and head[12:16] == b"IHDR" and b"eXIf" not in head:
        width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
        check_size(width, height, path)
        return height, width
    return open_image(path).size


def _decode_png(data: bytes, path: Path | str, header: PngHeader) -> NDArray[np.uint8]:
    wide = header.depth == 16
    image = (
        decode_stored(data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION, path)
        if wide
        else decode_colours(data, path)
    )
    if image.shape[:2] != header.size:
        raise PictureError(
            f"{path} says it has {header.size[::-1]} pixels but decodes to {image.shape[1::-1]}. Save it again."
        )
    return _rgb(image) if wide else image


def decode_colours(data: bytes, path: Path | str) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] as stored, whatever the channels. Raises PictureError where OpenCV cannot decode it."""
    image = decode_stored(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, path)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)  # OpenCV 4.6 has no flag for RGB


def decode_stored(data: bytes, flags: int, path: Path | str) -> NDArray:
    """What OpenCV makes of encoded pixels with its ``flags``. Raises PictureError where it cannot decode them."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise PictureError(f"{path} cannot be decoded: {error}. {AGAIN}") from error
    if image is None:
        raise PictureError(f"{path} cannot be decoded. {AGAIN}")
    return image


def _rgb(image: NDArray) -> NDArray[np.uint8]:
    """16-bit gray [H, W] or BGR(A) [H, W, C] rescaled to 8-bit RGB."""
    if image.ndim == 2 or image.shape[2] in (1, 2):
        image = np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)
    scaled = (image[..., 2::-1].astype(np.uint32) * 255 + 32767) // 65535
    return np.ascontiguousarray(scaled, np.uint8)


def upright(image: NDArray, turn: int) -> NDArray:
    """The picture [H, W, ...] turned and mirrored as the EXIF orientation says."""
    if turn in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        image = image[::-1]
    if turn in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _read_by_pillow(data: bytes, path: Path | str) -> NDArray[np.uint8]:
    if other := unread(data[:4096], path):
        raise PictureError(f"{path} {other}.")
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise DataError(f"{path} is no plain JPEG or PNG: reading it needs the package pillow.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            check_size(*image.size, path)
            if image.format == "TIFF" and is_raw(dict(getattr(image, "tag_v2", {}))):
                raise PictureError(f"{path} {RAW}.")
            turned = ImageOps.exif_transpose(image)
            if turned.mode.startswith("I;16") or (image.format == "PPM" and turned.mode == "I"):
                return _rgb(np.asarray(turned).astype(np.uint16))
            if turned.mode in ("I", "F"):
                raise DataError(f"{path} has 32 bits per pixel (mode {turned.mode}). Expected 8 or 16. Convert it.")
            return np.asarray(
                turned.convert("RGBA").convert("RGB") if turned.mode in ("P", "PA") else turned.convert("RGB")
            )
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error} At most {MAX_PIXELS // 10**6} Mpx are decoded.") from error
    except UnidentifiedImageError:
        raise PictureError(f"{path} is no picture: it begins with {data[:16]!r}. {AGAIN}") from None
    except Exception as error:  # so do its readers of damaged files
        raise PictureError(f"{path} is truncated or damaged: {error}. {AGAIN}") from error
