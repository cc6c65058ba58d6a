"""Decodes the image of a sensor_msgs/Image or CompressedImage."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.files.image_headers import FETCH_AGAIN, check_image_size
from perception.files.images import decode_image
from perception.files.safe_names import escape_unprintable
from perception.types import PerceptionError

IMAGE, COMPRESSED_IMAGE, CAMERA_INFO = (
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/CameraInfo",
)

COLOR_ENCODINGS = {"rgb8": (3, None), "bgr8": (3, cv2.COLOR_BGR2RGB), "8uc3": (3, cv2.COLOR_BGR2RGB),
         "rgba8": (4, cv2.COLOR_RGBA2RGB), "bgra8": (4, cv2.COLOR_BGRA2RGB), "8uc4": (4, cv2.COLOR_BGRA2RGB),
         "mono8": (1, cv2.COLOR_GRAY2RGB), "8uc1": (1, cv2.COLOR_GRAY2RGB), "mono16": (1, cv2.COLOR_GRAY2RGB),
         "rgb16": (3, None), "bgr16": (3, cv2.COLOR_BGR2RGB),
         "rgba16": (4, cv2.COLOR_RGBA2RGB), "bgra16": (4, cv2.COLOR_BGRA2RGB),
         "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY), "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
         "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2), "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
         "yuy2": (2, cv2.COLOR_YUV2RGB_YUY2), "yvyu": (2, cv2.COLOR_YUV2RGB_YVYU)}  # fmt: skip
"""Encoding -> channels and conversion to RGB. OpenCV names a Bayer pattern by its second row, ROS by its first."""

BAYER_ENCODINGS = {"bayer_rggb": cv2.COLOR_BayerBG2RGB, "bayer_bggr": cv2.COLOR_BayerRG2RGB,
         "bayer_gbrg": cv2.COLOR_BayerGR2RGB, "bayer_grbg": cv2.COLOR_BayerGB2RGB}  # fmt: skip

YUV420_ENCODINGS = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21,
        "i420": cv2.COLOR_YUV2RGB_I420, "yv12": cv2.COLOR_YUV2RGB_YV12}  # fmt: skip
"""Encodings with H / 2 additional rows for color."""
YUV444_ENCODINGS = ("nv24", "nv42")
"""Encodings with 2 H additional rows for color: one pair per pixel."""
DEPTH_ENCODINGS = ("16uc1", "32fc1", "64fc1", "16sc1", "32sc1")
"""Encodings of depth and similar data (REP 118)."""


def decode_image_message(message: Any, ros_type: str, where: str) -> NDArray[np.uint8]:
    """Decode a message to uint8 RGB [H, W, 3].

    Args:
        message: sensor_msgs/Image or CompressedImage.
        ros_type: `IMAGE` or `COMPRESSED_IMAGE`.
        where: start of the error message.

    Returns:
        uint8 RGB [H, W, 3].

    Raises:
        PerceptionError: the message cannot be decoded as an image.
    """
    try:
        return _decode_compressed(message, where) if ros_type == COMPRESSED_IMAGE else _decode_raw(message, where)
    except cv2.error as error:  # size not supported by the conversion
        name = (
            message.format
            if ros_type == COMPRESSED_IMAGE
            else f"{message.encoding} of {message.width}x{message.height}"
        )
        raise PerceptionError(f"{where}: its pixels do not fit '{escape_unprintable(name)}': {error.err}.") from error


def _decode_compressed(message: Any, where: str) -> NDArray[np.uint8]:
    """Decode by the format string of image_transport: "jpeg", or "bayer_rggb8; jpeg compressed bgr8"."""
    encoding, _, rest = str(message.format).partition(";")
    encoding, target = encoding.strip().lower(), rest.rpartition("compressed")[2].strip()
    if "compresseddepth" in message.format.lower() or encoding in DEPTH_ENCODINGS:
        raise PerceptionError(f"{where}: format '{escape_unprintable(message.format)}' is depth, not an image.")
    try:
        image = decode_image(bytes(message.data), where)
    except PerceptionError as error:
        told = f"{len(message.data)} bytes of format '{escape_unprintable(message.format)}'"
        raise PerceptionError(f"{str(error).removesuffix(FETCH_AGAIN).rstrip()} It has {told}.") from error
    raw = encoding if encoding in YUV420_ENCODINGS or encoding in YUV444_ENCODINGS else _bayer_pattern(encoding)
    gray = image[..., 0]
    if not raw or target.startswith("mono") or not all(np.array_equal(gray, image[..., i]) for i in (1, 2)):
        return image
    gray = np.ascontiguousarray(gray)  # the raw sensor data was compressed as a gray image
    if raw in BAYER_ENCODINGS:
        return np.asarray(cv2.cvtColor(gray, BAYER_ENCODINGS[raw]), np.uint8)
    if len(gray) % 3:
        raise PerceptionError(
            f"{where}: a gray image of format '{escape_unprintable(message.format)}' does not have the rows of that "
            "color encoding."
        )
    return _decode_planes(gray, raw)


def _bayer_pattern(encoding: str) -> str:
    """Strip the bit depth: "bayer_rggb8" -> "bayer_rggb"; "" for other encodings."""
    name = encoding.removesuffix("16").removesuffix("8")
    return name if name in BAYER_ENCODINGS and name != encoding else ""


def _decode_raw(message: Any, where: str) -> NDArray[np.uint8]:
    name = str(message.encoding).strip().lower()
    if message.width * message.height:
        check_image_size(message.width, message.height, where)
    if name in YUV420_ENCODINGS or name in YUV444_ENCODINGS:
        share = 3 if name in YUV444_ENCODINGS else 1.5
        return _decode_planes(_unpack_rows(message, int(message.height * share), 1, 1, where)[..., 0], name)
    bayer = _bayer_pattern(name)
    if name in DEPTH_ENCODINGS:
        raise PerceptionError(
            f"{where}: encoding '{escape_unprintable(message.encoding)}' is depth or similar, not an image."
        )
    if not bayer and name not in COLOR_ENCODINGS:
        known = ", ".join(
            [*COLOR_ENCODINGS, *(f"{pattern}8" for pattern in BAYER_ENCODINGS), *YUV420_ENCODINGS, *YUV444_ENCODINGS]
        )
        raise PerceptionError(
            f"{where}: encoding '{escape_unprintable(message.encoding)}' is not supported. Expected one of {known}."
        )
    channels, conversion = (1, BAYER_ENCODINGS[bayer]) if bayer else COLOR_ENCODINGS[name]
    wide = name.endswith("16")
    pixels = _unpack_rows(message, message.height, channels, 2 if wide else 1, where)
    if wide:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.array(pixels if conversion is None else cv2.cvtColor(pixels, conversion), np.uint8)


def _decode_planes(rows: NDArray[np.uint8], encoding: str) -> NDArray[np.uint8]:
    """Decode luma rows followed by color rows: [H * 3 / 2, W] or [H * 3, W]."""
    if encoding in YUV420_ENCODINGS:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(rows), YUV420_ENCODINGS[encoding]), np.uint8)
    height, width = len(rows) // 3, rows.shape[1]
    color = rows[height:].reshape(height, width, 2)
    first, second = (1, 0) if encoding == "nv24" else (0, 1)
    luma = cv2.LUT(np.ascontiguousarray(rows[:height]), _full_range_table(16, 219, 0))
    red, blue = (
        cv2.LUT(np.ascontiguousarray(color[..., i]), _full_range_table(128, 224, 128)) for i in (first, second)
    )
    return np.asarray(cv2.cvtColor(cv2.merge([luma, red, blue]), cv2.COLOR_YCrCb2RGB), np.uint8)


def _full_range_table(zero: int, span: int, to: int) -> NDArray[np.uint8]:
    """Lookup table from video range (16 to 235 or 240) to 0 to 255."""
    return np.clip(np.rint((np.arange(256) - zero) * 255 / span + to), 0, 255).astype(np.uint8)


def _unpack_rows(message: Any, height: int, channels: int, channel_bytes: int, where: str) -> NDArray:
    """[height, width, channels] of a message with possibly padded rows."""
    data = np.frombuffer(message.data, np.uint8)
    used = message.width * channels * channel_bytes
    step = message.step or used
    if height != message.height and len(data) == used * height:
        step = used  # drivers disagree about the step of planar encodings
    if message.width < 1 or height < 1 or step < used or len(data) < step * (height - 1) + used:
        raise PerceptionError(
            f"{where}: {len(data)} bytes in rows of {message.step} are too few for {message.width}x{message.height} "
            f"pixels of encoding '{escape_unprintable(message.encoding)}'."
        )
    padded = np.zeros(step * height, np.uint8)
    padded[: min(len(data), len(padded))] = data[: len(padded)]
    rows = np.ascontiguousarray(padded.reshape(height, step)[:, :used])
    if channel_bytes == 2:
        rows = rows.view(np.dtype(">u2" if message.is_bigendian else "<u2")).astype(np.uint16)
    return rows.reshape(height, message.width, channels)
