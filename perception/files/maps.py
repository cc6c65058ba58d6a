"""Readers of maps with the stored numbers unchanged (segmentation masks, depth, disparity), and of color masks."""

from __future__ import annotations

import io
import re
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.files.arrays import ARRAY_SUFFIXES, read_map_array
from perception.files.image_headers import (
    JPEG_SIGNATURE,
    MAX_PIXELS,
    PNG_SIGNATURE,
    ImageError,
    check_image_size,
    check_png,
    check_png_rows,
    read_image_bytes,
)
from perception.files.images import IMAGE_SUFFIXES, decode_color, decode_with_flags
from perception.types import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MAP_SUFFIXES = IMAGE_SUFFIXES | {*ARRAY_SUFFIXES, ".pfm", ".pnm", ".exr"}
"""Suffixes of files that count as maps. They include JPEG, which is refused with its own error."""

_EXR = b"\x76\x2f\x31\x01"
_MAX_WORDS = 1 << 22
"""Largest count of numbers in a text file: Python stores each one as an object."""
_PGM = re.compile(rb"P[25]%s+(\d{1,9})%s+(\d{1,9})%s+(\d{1,5})\s" % ((rb"(?:\s|#[^\n]*\n)",) * 3))
_SINGLE_CHANNEL_MODES = ("1", "L", "P", "I", "F", "I;16", "I;16L", "I;16B")
"""Pillow's modes with one channel."""
_LOSSY_MESSAGE = (
    "is a JPEG or has lossy compression, which changes the numbers at every border. Create it again from the "
    "original data, as a PNG."
)
_COLORS_HINT = (
    "If colors are classes, give segmentation_masks the option colors: ...; if all channels are equal, the option "
    "values: {0: ..., 255: ...}. If distances are encoded in colors (CARLA: 1000 m * (R + 256 G + "
    "65536 B) / 16777215), decode them first, to .npy or a 16-bit PNG."
)


def read_map(path: Path, array_name: str | None = None, merge_channels: bool = False) -> NDArray:
    """Read a map with its stored numbers: ids, distances or disparities.

    Formats: PNG, TIFF, BMP, PGM, PFM, GIF, lossless WebP, EXR if OpenCV supports it, .npy and .npz. The size is checked
    before decoding.

    Args:
        path: the file.
        array_name: name of the array in a .npz.
        merge_channels: treat equal channels as one, and drop transparency.

    Returns:
        [H, W] with the stored dtype. Palette images give the index, 1-bit images give bool.

    Raises:
        DataError: the file is missing, damaged, lossy, or has more than one channel.
    """
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return read_map_array(path, array_name)
    try:
        data = _read_lossless(path)
        if data.startswith(PNG_SIGNATURE):
            return _read_png(data, path, merge_channels)
        if data.startswith(_EXR):
            return _select_channel(_read_exr(data, path), path, merge_channels)
        if data[:2] in (b"P2", b"P5"):
            return _read_pgm(data, path)
        image = _open_with_pillow(data, path)
        if image.mode == "P" and image.format != "TIFF" and _is_gray(image):
            return np.asarray(image.convert("L"))  # GIF and BMP always have a palette
        if image.mode in _SINGLE_CHANNEL_MODES:
            return np.asarray(image)
        return _select_channel(np.asarray(image), path, merge_channels)
    except ImageError as error:
        raise DataError(str(error)) from error


def read_colors(path: Path) -> NDArray[np.uint8]:
    """Read colors as stored, uint8 RGB [H, W, 3]. Palettes and gray become RGB, transparency is dropped.

    Raises:
        DataError: the file is missing, damaged, lossy, or has more than 8 bits per channel.
    """
    try:
        data = _read_lossless(path)
        if data.startswith(PNG_SIGNATURE):
            if check_png(data, path).bit_depth == 16:
                raise DataError(f"{path} has 16 bits per channel. Expected colors of 8 bits.")
            return decode_color(data, path)
        image = _open_with_pillow(data, path)
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise DataError(f"{path} has more than 8 bits per channel. Expected colors of 8 bits.")
        return np.asarray(image.convert("RGB"))
    except ImageError as error:
        raise DataError(str(error)) from error


def _read_lossless(path: Path) -> bytes:
    if path.suffix.lower() in ARRAY_SUFFIXES:
        raise DataError(f"{path} is an array. Expected a color image, because the option colors is set.")
    data = read_image_bytes(path)
    if data.startswith(JPEG_SIGNATURE) or (data[8:12] == b"WEBP" and b"VP8L" not in data[:4096]):
        raise DataError(f"{path} {_LOSSY_MESSAGE}")
    return data


def _read_png(data: bytes, path: Path, merge_channels: bool) -> NDArray:
    header = check_png(data, path)
    depth, color = header.bit_depth, header.color_type
    if color == 0 and depth >= 8:
        return decode_with_flags(data, cv2.IMREAD_UNCHANGED, path)
    if color == 3 or (color == 0 and depth == 1):
        return _read_palette(data, path)
    if merge_channels and color != 0:
        return _select_channel(decode_with_flags(data, cv2.IMREAD_UNCHANGED, path), path, merge_channels)
    kind = {2: "RGB", 4: "gray with alpha", 6: "RGBA"}.get(color, f"{depth}-bit gray")
    raise DataError(
        f"{path} is a {kind} PNG{_describe_frequent_colors(data)}. Expected one channel of ids or distances: "
        f"gray with 8 or 16 bit, or a palette whose index is the id. {_COLORS_HINT}"
    )


def _read_palette(data: bytes, path: Path) -> NDArray:
    from PIL import Image

    check_png_rows(data, path)
    try:
        return np.array(Image.open(io.BytesIO(data), formats=("PNG",)))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{path} is a damaged PNG: {error}. Fetch the file again.") from error


def _select_channel(values: NDArray, path: Path, merge_channels: bool) -> NDArray:
    """The single channel of [H, W] or [H, W, C]. ``merge_channels`` drops alpha and merges equal channels."""
    if values.ndim == 2:
        return values
    channels = values[..., : {2: 1, 4: 3}.get(values.shape[2], values.shape[2])]
    if merge_channels and (channels == channels[..., :1]).all():
        return np.ascontiguousarray(channels[..., 0])
    raise DataError(
        f"{path} has {values.shape[2]} channels{' that differ' if merge_channels else ''}. "
        f"Expected one, of ids or distances. {_COLORS_HINT}"
    )


def _read_pgm(data: bytes, path: Path) -> NDArray:
    """Gray PNM; other readers rescale its numbers to 8 or 16 bits."""
    header = _PGM.match(data[:4096])
    if header is None:
        raise DataError(f"{path} is a damaged PGM. Fetch the file again.")
    width, height, largest = map(int, header.groups())
    check_image_size(width, height, path)
    rest, kind = data[header.end() :], np.dtype(np.uint8 if largest < 256 else ">u2")
    if data.startswith(b"P2"):
        if width * height > _MAX_WORDS:
            raise DataError(f"{path} is {width} x {height} pixels as text. Convert it to PNG.")
        words = rest.split(maxsplit=width * height)[: width * height]
        values = np.array([int(word) for word in words if word.isdigit() and len(word) < 6])
    else:
        values = np.frombuffer(rest[: len(rest) // kind.itemsize * kind.itemsize], kind, count=-1)[: width * height]
    if values.size != width * height or values.max() > largest:
        raise DataError(f"{path} is a truncated or damaged PGM. Fetch the file again.")
    return values.reshape(height, width).astype(np.uint8 if largest < 256 else np.uint16)


def _read_exr(data: bytes, path: Path) -> NDArray:
    window = re.search(rb"dataWindow\0box2i\0\x10\0\0\0(.{16})", data[:65536], re.DOTALL)
    if window is None:
        raise DataError(f"{path} is a damaged EXR: it has no size. Fetch the file again.")
    left, top, right, bottom = struct.unpack("<4i", window[1])
    if right < left or bottom < top:
        raise DataError(f"{path} is a damaged EXR: {right - left} x {bottom - top} pixels. Fetch the file again.")
    check_image_size(right - left + 1, bottom - top + 1, path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise DataError(
            f"{path} is an EXR, which this OpenCV cannot read (most builds have no support; others need the variable "
            "OPENCV_IO_ENABLE_OPENEXR=1). Convert it to .npy, or to a TIFF of 32-bit floats."
        )
    return image


def _open_with_pillow(data: bytes, path: Path) -> PILImage:
    """The first page of an image, as a ``PIL.Image``."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DataError(f"{path} is not a PNG. Reading it needs the package pillow: install it.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("TIFF", "BMP", "PPM", "GIF", "WEBP"))
            check_image_size(*image.size, path)
            if image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
                raise DataError(f"{path} {_LOSSY_MESSAGE}")
            bits = getattr(image, "tag_v2", {}).get(258, (8,))  # Pillow truncates 16-bit colors to 8 bits
            if image.mode not in _SINGLE_CHANNEL_MODES and max(np.ravel(bits)) > 8:
                raise DataError(f"{path} has {max(np.ravel(bits))} bits in each of several channels. Expected one.")
            image.load()
            return image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: {error} At most {MAX_PIXELS // 10**6} Mpx are decoded. Scale or tile it first."
        ) from error
    except UnidentifiedImageError:
        raise DataError(
            f"{path} is not a readable map: it begins with {data[:16]!r}. Expected PNG, TIFF (integers or "
            "32-bit floats), BMP, PGM, PFM, GIF, .npy or .npz. Convert it."
        ) from None
    except Exception as error:  # Pillow raises any kind of error for damaged files
        raise DataError(f"{path} is truncated or damaged: {error}. Fetch the file again.") from error


def _is_gray(image: PILImage) -> bool:
    colors = np.array(image.getpalette()).reshape(-1, 3)
    return bool((colors == colors[:, :1]).all())


def _describe_frequent_colors(data: bytes) -> str:
    """The most frequent colors of an RGB image, for the message."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return ""
    pixels = image.reshape(-1, 3)[:: 1 + image.size // 600_000, ::-1]
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    most = counts.argsort()[::-1][:5]
    return " with colors " + ", ".join(f"{tuple(colors[i].tolist())}: {counts[i] / counts.sum():.0%}" for i in most)
