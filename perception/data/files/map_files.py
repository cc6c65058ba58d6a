"""Reading files of numbers as they are stored: label maps, depth, disparity."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.data.files.picture_files import PNG, PictureError, check_png, check_png_rows, read_bytes
from perception.types import DataError


def read_map(path: Path) -> NDArray:
    """A picture of numbers as stored, [H, W] uint8 or uint16: label map, depth, disparity. Palettes give the index.

    Raises DataError where the file is missing, damaged, not a PNG, or has more than one channel.
    """
    try:
        data = read_bytes(path)
        if not data.startswith(PNG):
            raise DataError(f"{path} is not a PNG. Maps must be stored without loss: convert it to a gray PNG.")
        header = check_png(data, path)
        depth, colour = header.depth, header.colour
        if colour not in (0, 3) or (colour == 0 and depth in (2, 4)):
            kind = {2: "RGB", 4: "gray with alpha", 6: "RGBA"}.get(colour, f"{depth}-bit gray")
            raise DataError(
                f"{path} is a {kind} PNG{_colours(data)}. Expected one channel of ids or distances: gray, 8 or 16 bit, "
                "or a palette whose index is the id. Convert colours to ids first."
            )
        if colour == 0 and depth >= 8:
            return _decode(data, cv2.IMREAD_UNCHANGED, path)
        return _read_palette(data, path)
    except PictureError as error:
        raise DataError(str(error)) from error


def _read_palette(data: bytes, path: Path | str) -> NDArray[np.uint8]:
    from PIL import Image

    check_png_rows(data, path)
    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",))).astype(np.uint8)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{path} is a damaged PNG: {error}. Fetch the file again.") from error


def _colours(data: bytes) -> str:
    """The most frequent colours of an RGB map, for the message."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return ""
    pixels = image.reshape(-1, 3)[:: 1 + image.size // 600_000, ::-1]
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    most = counts.argsort()[::-1][:5]
    return " with colours " + ", ".join(f"{tuple(colours[i].tolist())}: {counts[i] / counts.sum():.0%}" for i in most)


def _decode(data: bytes, flags: int, path: Path) -> NDArray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path} cannot be decoded: {error}. Fetch the file again.") from error
    if image is None:
        raise DataError(f"{path} cannot be decoded. Fetch the file again.")
    return image
