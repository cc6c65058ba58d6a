"""Reads the camera from a sensor_msgs/CameraInfo, if it is unambiguous for the image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.types import Camera

FISHEYE_MODELS = (
    "equidistant",
    "fisheye",
    "kannala_brandt",
    "kannala_brandt4",
    "omni",
    "omnidirectional",
    "mei",
    "ds",
    "eucm",
)


def is_rectified(topic: str) -> bool:
    """Return whether a topic is rectified, by its name: image_rect, image_rect_color, rect/image.

    These names are used by image_proc and by drivers of stereo cameras.
    """
    return bool({"rect", "rectified"} & set(topic.lower().replace("_", "/").split("/")))


def parse_camera_info(message: Any, size: tuple[int, int], rectified: bool = False) -> tuple[Camera | None, str]:
    """Return the camera of a CameraInfo (which has pixel centers at integers), and its problem as a sentence.

    The camera is None if it is not calibrated, has another resolution, or is ambiguous between drivers: binning, or a
    region of interest with a full image. A region of interest of the image's size is applied. Distortion is not
    corrected: networks are trained on unrectified images, and it changes metres little except near the border of a
    fisheye lens.

    Args:
        message: sensor_msgs/CameraInfo of ROS 2 or ROS 1.
        size: (height, width) of the image.
        rectified: the image is rectified: use P, else K (P if K is zero).

    Returns:
        The camera or None, and a sentence ("" = no problem).
    """
    k, p = (np.asarray(getattr(message, name, getattr(message, name.upper(), ())), float).ravel() for name in "kp")
    of_k = k[[0, 4, 2, 5]] if len(k) == 9 else np.zeros(4)
    of_p = p[[0, 5, 2, 6]] if len(p) == 12 else np.zeros(4)
    known = [numbers for numbers in (of_k, of_p) if np.isfinite(numbers).all() and (numbers[:2] > 0).all()]
    if not known:
        return None, "its CameraInfo is not calibrated: no focal length in K or P."
    best = of_p if rectified else of_k
    fx, fy, cx, cy = next((numbers for numbers in known if numbers is best), known[0]).tolist()
    if message.binning_x > 1 or message.binning_y > 1:
        return None, (
            f"its CameraInfo has a binning of {message.binning_x}x{message.binning_y} pixels (binning_x, _y), "
            "and drivers disagree whether K then refers to binned pixels."
        )
    region = message.roi
    whole, place = (message.height, message.width), (region.y_offset, region.x_offset)
    part = (region.height or whole[0], region.width or whole[1])
    if part != whole or place != (0, 0):
        if size != part or size == whole:
            return None, (
                f"its CameraInfo has a region of interest of {part[1]}x{part[0]} pixels of {whole[1]}x{whole[0]}, and "
                f"the image has {size[1]}x{size[0]}."
            )
        cx, cy = cx - place[1], cy - place[0]
    elif size != whole:
        return None, f"its CameraInfo is for {whole[1]}x{whole[0]} pixels, and the image has {size[1]}x{size[0]}."
    problem = ""
    if not rectified and str(message.distortion_model).lower() in FISHEYE_MODELS and np.any(read_distortion(message)):
        problem = "its lens is a fisheye: metres are accurate only near the image center. Use a rectified topic."
    return Camera(fx, fy, cx + 0.5, cy + 0.5), problem


def read_distortion(message: object) -> NDArray[np.float64]:
    """Return the distortion coefficients of a CameraInfo of ROS 2 or ROS 1."""
    return np.asarray(getattr(message, "d", getattr(message, "D", ())), float)
