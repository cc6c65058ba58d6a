"""Strict image reading: every file gives uint8 RGB [H, W, 3] upright, or an error with its path.

Decoders are lenient: libjpeg fills missing parts with gray, PIL clips 16 bit to 8. Here a damaged file is an error,
16 bit is rescaled, and the size is checked before decoding.
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
    FETCH_AGAIN,
    JPEG_SIGNATURE,
    MAX_PIXELS,
    PNG_SIGNATURE,
    ImageError,
    PngHeader,
    check_image_size,
    check_png,
    read_image_bytes,
)
from perception.files.jpeg import JpegHeader, check_jpeg, decode_jpeg, read_jpeg_header
from perception.files.unsupported_formats import RAW_PREVIEW_MESSAGE, describe_unsupported, is_raw_preview
from perception.types import DataError

IMAGE_SUFFIXES = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".avif", ".tif", ".tiff",
        ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    )
)  # fmt: skip
PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "AVIF", "TIFF", "GIF", "PPM")

_HEAD_BYTES = 1 << 17
"""Bytes that contain the size of nearly every image."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image file that was read and checked, and is decoded on demand.

    Attributes:
        path: the file, or a description for messages.
        size: (height, width) upright.
        is_reducible: whether it can be decoded at a smaller size: it is an upright JPEG.
    """

    path: Path | str
    size: tuple[int, int]
    is_reducible: bool = False
    _data: bytes = b""
    _header: JpegHeader | PngHeader | None = None
    _decoded: NDArray[np.uint8] | None = None

    def decode(self, reduction: int = 1) -> NDArray[np.uint8]:
        """Decode to uint8 RGB [H, W, 3], upright.

        A pixel of a reduced image is the mean of the ``reduction`` x ``reduction`` source pixels that it covers
        (libjpeg's scaled inverse transform). The last row and column may cover fewer.

        Args:
            reduction: 1, 2, 4 or 8: both sides become smaller by this factor if the image `is_reducible`.

        Raises:
            ImageError: the file is damaged.
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
        return np.asarray(apply_orientation(decoded, header.orientation), np.uint8)


def open_image(path: Path) -> StoredImage:
    """Read an image file and check it as far as possible without decoding.

    Raises:
        ImageError: the file is missing, damaged or not an image.
        DataError: it has more than `MAX_PIXELS` pixels.
    """
    return _open_bytes(read_image_bytes(path), path)


def decode_image(data: bytes, where: str) -> NDArray[np.uint8]:
    """Decode an encoded image from a stream or a recording, with the same rules as `read_image`.

    Args:
        data: the encoded image. Its size is checked before decoding.
        where: description for messages.

    Returns:
        uint8 RGB [H, W, 3].

    Raises:
        ImageError: it is damaged or not an image.
        DataError: it has more than `MAX_PIXELS` pixels.
    """
    if not data:
        raise ImageError(f"{where} is empty.")
    return _open_bytes(data, where).decode()


def _open_bytes(data: bytes, path: Path | str) -> StoredImage:
    if data.startswith(JPEG_SIGNATURE):
        header = check_jpeg(data, path)
        reducible = header.orientation == 1 and len(header.component_ids) in (1, 3)
        return StoredImage(path, _orient_size(header.size, header.orientation), reducible, data, header)
    if data.startswith(PNG_SIGNATURE):
        header = check_png(data, path)
        return StoredImage(path, _orient_size(header.size, header.orientation), False, data, header)
    image = _read_with_pillow(data, path)
    return StoredImage(path, image.shape[:2], _decoded=image)


def _orient_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size if orientation < 5 else (size[1], size[0])


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file to uint8 RGB [H, W, 3], upright (EXIF orientation applied).

    16 bit is rescaled to 8, transparency is dropped. Raises the errors of `open_image`.
    """
    return open_image(path).decode()


def read_image_size(path: Path) -> tuple[int, int]:
    """Return the upright (height, width) of an image. For plain JPEG and PNG files only the header is read.

    Raises:
        ImageError: the file is missing or not an image.
        DataError: it has more than `MAX_PIXELS` pixels.
    """
    head = read_image_bytes(path, _HEAD_BYTES)
    if head.startswith(JPEG_SIGNATURE):
        header = read_jpeg_header(head, path) or read_jpeg_header(read_image_bytes(path), path)
        if header is not None:
            return _orient_size(header.size, header.orientation)
    elif head.startswith(PNG_SIGNATURE) and head[12:16] == b"IHDR" and b"eXIf" not in head:
        width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
        check_image_size(width, height, path)
        return height, width
    return open_image(path).size


def _decode_png(data: bytes, path: Path | str, header: PngHeader) -> NDArray[np.uint8]:
    wide = header.bit_depth == 16
    image = (
        decode_with_flags(data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION, path)
        if wide
        else decode_color(data, path)
    )
    if image.shape[:2] != header.size:
        raise ImageError(
            f"{path} has {header.size[::-1]} pixels by its header, but decodes to {image.shape[1::-1]}. Save it again."
        )
    return _to_rgb8(image) if wide else image


def decode_color(data: bytes, path: Path | str) -> NDArray[np.uint8]:
    """Decode to uint8 RGB [H, W, 3], orientation as stored. Raises ImageError if OpenCV cannot decode it."""
    image = decode_with_flags(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, path)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)  # OpenCV 4.6 has no flag for RGB


def decode_with_flags(data: bytes, flags: int, path: Path | str) -> NDArray:
    """Decode an image with OpenCV and its ``flags``. Raises ImageError if OpenCV cannot decode it."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{path} cannot be decoded: {error}. {FETCH_AGAIN}") from error
    if image is None:
        raise ImageError(f"{path} cannot be decoded. {FETCH_AGAIN}")
    return image


def _to_rgb8(image: NDArray) -> NDArray[np.uint8]:
    """16-bit gray [H, W] or BGR(A) [H, W, C] rescaled to 8-bit RGB."""
    if image.ndim == 2 or image.shape[2] in (1, 2):
        image = np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)
    scaled = (image[..., 2::-1].astype(np.uint32) * 255 + 32767) // 65535
    return np.ascontiguousarray(scaled, np.uint8)


def apply_orientation(image: NDArray, orientation: int) -> NDArray:
    """Rotate and mirror an image [H, W, ...] by its EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _read_with_pillow(data: bytes, path: Path | str) -> NDArray[np.uint8]:
    if other := describe_unsupported(data[:4096], path):
        raise ImageError(f"{path} {other}.")
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise DataError(
            f"{path} is not a plain JPEG or PNG. Reading it needs the package pillow: install it."
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
            check_image_size(*image.size, path)
            if image.format == "TIFF" and is_raw_preview(dict(getattr(image, "tag_v2", {}))):
                raise ImageError(f"{path} {RAW_PREVIEW_MESSAGE}.")
            turned = ImageOps.exif_transpose(image)
            if turned.mode.startswith("I;16") or (image.format == "PPM" and turned.mode == "I"):
                return _to_rgb8(np.asarray(turned).astype(np.uint16))
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
        raise ImageError(f"{path} is not an image: it begins with {data[:16]!r}. {FETCH_AGAIN}") from None
    except Exception as error:  # Pillow raises any kind of error for damaged files
        raise ImageError(f"{path} is truncated or damaged: {error}. {FETCH_AGAIN}") from error
