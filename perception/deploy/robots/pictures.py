"""The picture in a sensor_msgs/Image or CompressedImage."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.types import Camera, PerceptionError

IMAGE, COMPRESSED, CAMERA_INFO = (
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/CameraInfo",
)

PLAIN = {"rgb8": (3, None), "bgr8": (3, cv2.COLOR_BGR2RGB), "8UC3": (3, cv2.COLOR_BGR2RGB),
         "rgba8": (4, cv2.COLOR_RGBA2RGB), "bgra8": (4, cv2.COLOR_BGRA2RGB), "8UC4": (4, cv2.COLOR_BGRA2RGB),
         "mono8": (1, cv2.COLOR_GRAY2RGB), "8UC1": (1, cv2.COLOR_GRAY2RGB),
         "mono16": (1, cv2.COLOR_GRAY2RGB), "16UC1": (1, cv2.COLOR_GRAY2RGB),
         "rgb16": (3, None), "bgr16": (3, cv2.COLOR_BGR2RGB),
         "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY), "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
         "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2), "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2)}  # fmt: skip
"""Encoding -> channels, and how they become RGB. OpenCV names a Bayer pattern by its second row, ROS by its first."""

BAYER = {"bayer_rggb": cv2.COLOR_BayerBG2RGB, "bayer_bggr": cv2.COLOR_BayerRG2RGB,
         "bayer_gbrg": cv2.COLOR_BayerGR2RGB, "bayer_grbg": cv2.COLOR_BayerGB2RGB}  # fmt: skip

HALF = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
"""Encodings with half as many rows again for colour."""


def decode(message: Any, kind: str, where: str) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3]. kind: `IMAGE` or `COMPRESSED`. Raises PerceptionError naming ``where`` and what is wrong."""
    if kind == COMPRESSED:
        found = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR) if len(message.data) else None
        if found is None:
            raise PerceptionError(f"{where}: no picture of format '{message.format}' in {len(message.data)} bytes.")
        return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)
    name = message.encoding
    bayer = BAYER.get(name.removesuffix("16").removesuffix("8"))
    if name in HALF:
        rows = _rows(message, message.height * 3 // 2, 1, 1, where)
        return np.asarray(cv2.cvtColor(rows[..., 0], HALF[name]), np.uint8)
    if bayer is None and name not in PLAIN:
        known = ", ".join([*PLAIN, *(f"{pattern}8" for pattern in BAYER), *HALF])
        raise PerceptionError(f"{where}: encoding '{name}' is not supported. Expected one of {known}.")
    channels, conversion = (1, bayer) if bayer is not None else PLAIN[name]
    wide = name.endswith("16") or name == "16UC1"
    pixels = _rows(message, message.height, channels, 2 if wide else 1, where)
    if wide:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.array(pixels if conversion is None else cv2.cvtColor(pixels, conversion), np.uint8)


def _rows(message: Any, height: int, channels: int, bytes: int, where: str) -> NDArray:
    """[height, width, channels] of a message whose rows may be padded."""
    data = np.frombuffer(message.data, np.uint8)
    used = message.width * channels * bytes
    step = message.step or used
    if message.width < 1 or height < 1 or step < used or len(data) < step * (height - 1) + used:
        raise PerceptionError(
            f"{where}: {len(data)} bytes in rows of {message.step} do not hold {message.width}x{message.height} pixels "
            f"of encoding '{message.encoding}'."
        )
    padded = np.zeros(step * height, np.uint8)
    padded[: min(len(data), len(padded))] = data[: len(padded)]
    rows = np.ascontiguousarray(padded.reshape(height, step)[:, :used])
    if bytes == 2:
        rows = rows.view(np.dtype(">u2" if message.is_bigendian else "<u2")).astype(np.uint16)
    return rows.reshape(height, message.width, channels)


def lens(message: Any, size: tuple[int, int]) -> Camera | None:
    """The camera of a sensor_msgs/CameraInfo, whose pixels have their centre at whole numbers.

    None where it is uncalibrated or of another resolution than ``size``.
    """
    k = np.asarray(message.K if hasattr(message, "K") else message.k, float)
    if (message.height, message.width) != size or not (k[0] > 0 and k[4] > 0):
        return None
    return Camera(float(k[0]), float(k[4]), float(k[2]) + 0.5, float(k[5]) + 0.5)
