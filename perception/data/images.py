"""Reading picture files safely: whatever the file, uint8 RGB [H, W, 3] upright, or an error that names it.

Decoders are lenient: libjpeg fills what is missing with gray and only prints a warning, PIL clips 16 bit to 8. Here a
damaged file is an error, 16 bit is rescaled, and the size is known before anything is decoded.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.types import DataError

MAX_PIXELS = 100_000_000
PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class PictureError(DataError):
    """A picture file that is missing or damaged: skipped and counted in training, an error anywhere else."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3], upright (EXIF orientation applied), 16 bit rescaled to 8, transparency dropped.

    Raises PictureError where the file is missing, damaged or no picture; DataError where it is over `MAX_PIXELS`.
    """
    data = _bytes(path)
    if data.startswith(_JPEG):
        if _check_jpeg(data, path) in (1, 3):
            return _swapped(_decode_jpeg(data, path))
    elif data.startswith(_PNG):
        depth, _, names = _check_png(data, path)
        if depth == 16:
            return _orient(_rgb(_decode(data, cv2.IMREAD_UNCHANGED, path)), data)
        if b"eXIf" not in names:
            return _swapped(_decode(data, cv2.IMREAD_COLOR, path))
    return _read_by_pillow(data, path)


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture as `read_image` gives it, from its header alone.

    Raises PictureError where the file is missing or no picture, DataError where it is over `MAX_PIXELS`.
    """
    try:
        from PIL import Image
    except ImportError:
        return read_image(path).shape[:2]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error} At most {MAX_PIXELS // 10**6} Mpx are decoded.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise PictureError(f"{path} is missing or no picture: {error}. Fetch the file again.") from error
    _check_size(width, height, path)
    return (width, height) if turned else (height, width)


def read_map(path: Path) -> NDArray:
    """A picture of numbers as stored, [H, W] uint8 or uint16: label map, depth, disparity. Palettes give the index.

    Raises DataError where the file is missing, damaged, not a PNG, or has more than one channel.
    """
    try:
        data = _bytes(path)
        if not data.startswith(_PNG):
            raise DataError(f"{path} is not a PNG. Maps must be stored without loss: convert it to a gray PNG.")
        depth, colour, _ = _check_png(data, path)
        if colour not in (0, 3) or (colour == 0 and depth in (2, 4)):
            kind = {2: "RGB", 4: "gray with alpha", 6: "RGBA"}.get(colour, f"{depth}-bit gray")
            raise DataError(
                f"{path} is a {kind} PNG{_colours(data)}. Expected one channel of ids or distances: gray, 8 or 16 bit, "
                "or a palette whose index is the id. Convert colours to ids first."
            )
        if colour == 0 and depth >= 8:
            return _decode(data, cv2.IMREAD_UNCHANGED, path)
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(data))).astype(np.uint8)
    except PictureError as error:
        raise DataError(str(error)) from error


def _colours(data: bytes) -> str:
    """The most frequent colours of an RGB map, for the message."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return ""
    colours, counts = np.unique(image.reshape(-1, 3)[:, ::-1], axis=0, return_counts=True)
    most = counts.argsort()[::-1][:5]
    return " with colours " + ", ".join(f"{tuple(colours[i].tolist())}: {counts[i]} px" for i in most)


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PictureError(f"No picture at {path}. Restore the file, or remove it from the annotations.") from None
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error}. Check the disk and the permissions.") from error
    if not data:
        raise PictureError(f"{path} is empty. Fetch the file again.")
    return data


def _check_size(width: int, height: int, path: Path) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path} says it has {width} x {height} = {width * height / 1e6:.0f} Mpx. At most {MAX_PIXELS // 10**6} "
            "Mpx are decoded. Scale or tile it first."
        )
    if width * height == 0:
        raise PictureError(f"{path} says it has {width} x {height} pixels. Fetch the file again.")


def _check_jpeg(data: bytes, path: Path) -> int:
    """The number of colour channels, after checking the size and that the data goes on to its end marker."""
    position, channels = 2, 0
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _SIZE_MARKERS and position + 10 <= len(data):
            height, width = (int.from_bytes(data[at : at + 2], "big") for at in (position + 5, position + 7))
            channels = data[position + 9]
            _check_size(width, height, path)
        if marker == 0xDA:
            if channels and data.find(b"\xff\xd9", position) > 0:
                return channels
            break
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise PictureError(f"{path} is a truncated or damaged JPEG ({len(data)} bytes). Fetch the file again.")


def _check_png(data: bytes, path: Path) -> tuple[int, int, set[bytes]]:
    """(bit depth, colour type, names of the chunks), after checking the size and every chunk's check sum."""
    position, names = len(_PNG), set()
    depth = colour = 0
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        name, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            break
        if name == b"IHDR" and length == 13:
            width, height = (int.from_bytes(data[at : at + 4], "big") for at in (position + 8, position + 12))
            depth, colour = data[position + 16], data[position + 17]
            _check_size(width, height, path)
        names.add(name)
        if name == b"IEND" and depth:
            return depth, colour, names
        position = end + 4
    raise PictureError(f"{path} is a truncated or damaged PNG, wrong from byte {position} on. Fetch the file again.")


def _decode(data: bytes, flags: int, path: Path) -> NDArray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise PictureError(f"{path} cannot be decoded: {error}. Fetch the file again.") from error
    if image is None:
        raise PictureError(f"{path} cannot be decoded. Fetch the file again.")
    return image


def _swapped(image: NDArray) -> NDArray[np.uint8]:
    """BGR to RGB."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


_stderr_lock = threading.Lock()


def _decode_jpeg(data: bytes, path: Path) -> NDArray:
    """BGR. libjpeg says that data is corrupt only by a line on the error stream, so the stream is watched meanwhile."""
    with _stderr_lock:
        try:
            kept = os.dup(2)
        except OSError:  # a daemon without an error stream
            return _decode(data, cv2.IMREAD_COLOR, path)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        try:
            os.dup2(writer, 2)
            try:
                image = _decode(data, cv2.IMREAD_COLOR, path)
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
    os.write(2, said)  # somebody else's words
    return image


def _rgb(image: NDArray) -> NDArray[np.uint8]:
    """16-bit gray [H, W] or BGR(A) [H, W, C] rescaled to 8-bit RGB."""
    if image.ndim == 2 or image.shape[2] in (1, 2):
        image = np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)
    scaled = (image[..., 2::-1].astype(np.uint32) * 255 + 32767) // 65535
    return np.ascontiguousarray(scaled, np.uint8)


def _orient(image: NDArray, data: bytes) -> NDArray:
    """Apply the EXIF orientation of ``data``."""
    from PIL import Image

    orientation = Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _read_by_pillow(data: bytes, path: Path) -> NDArray[np.uint8]:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise DataError(f"{path} is no plain JPEG or PNG: reading it needs the package pillow.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(*image.size, path)
        if image.mode.startswith("I;16"):
            return _orient(_rgb(np.asarray(image)), data)
        if image.mode in ("I", "F"):
            raise DataError(f"{path} has 32 bits per pixel (mode {image.mode}). Expected 8 or 16. Convert it.")
        upright = ImageOps.exif_transpose(image)
        return np.asarray(
            upright.convert("RGBA").convert("RGB") if upright.mode in ("P", "PA") else upright.convert("RGB")
        )
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error} At most {MAX_PIXELS // 10**6} Mpx are decoded.") from error
    except UnidentifiedImageError:
        raise PictureError(f"{path} is no picture: it begins with {data[:16]!r}. Fetch the file again.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise PictureError(f"{path} is truncated or damaged: {error}. Fetch the file again.") from error
