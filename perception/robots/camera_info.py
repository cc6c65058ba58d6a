"""The camera that a sensor_msgs/CameraInfo describes, where what it says is certain for an image of its topic."""

from __future__ import annotations

from typing import Any

import numpy as np

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
    """By its name, as image_proc and drivers of stereo cameras give it: image_rect, image_rect_color, rect/image."""
    return bool({"rect", "rectified"} & set(topic.lower().replace("_", "/").split("/")))


def parse_camera_info(message: Any, size: tuple[int, int], rectified: bool = False) -> tuple[Camera | None, str]:
    """The camera of a CameraInfo, whose pixels have their center at whole numbers, and what is wrong with it.

    message:   sensor_msgs/CameraInfo of ROS 2, or of ROS 1
    size:      (height, width) of the image
    rectified: the image has no distortion any more: the camera is that of P, else that of K (of P where K is zero)

    None with a sentence where it is not calibrated, of another resolution, or where drivers disagree about the pixels
    that it means: binning, or a region of interest beside a whole image. A region of the image's size is followed.
    Distortion is not corrected: networks learn from images as cameras give them, and it changes metres little but at
    the border of a fisheye lens.
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
            f"its CameraInfo says that {message.binning_x}x{message.binning_y} pixels are binned (binning_x, _y), "
            "and drivers disagree about which pixels K is for then."
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
        problem = "its lens is a fisheye: metres hold in the middle of the image only. A rectified topic is better."
    return Camera(fx, fy, cx + 0.5, cy + 0.5), problem


def read_distortion(message: Any) -> Any:
    return np.asarray(getattr(message, "d", getattr(message, "D", ())), float)
