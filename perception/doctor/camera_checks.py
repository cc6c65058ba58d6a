"""Plausibility checks of camera intrinsics."""

from __future__ import annotations

import math

from perception.types import Camera


def find_camera_issue(camera: Camera, size: tuple[int, int]) -> str:
    """Check intrinsics against an image size.

    Args:
        camera: intrinsics in pixels of the image.
        size: (height, width) of the image.

    Returns:
        One sentence about what is implausible; "" if nothing is.
    """
    height, width = size
    across, down = camera.cx / (width / 2), camera.cy / (height / 2)
    if abs(across - down) < 0.1 * max(across, down) and not 0.75 < across < 1.35:
        return (
            f"the principal point ({camera.cx:g}, {camera.cy:g}) is not near the center of {width} x {height} pixels. "
            f"It would be in an image {across:.2g} times as large: the intrinsics seem to be for another resolution."
        )
    if not (0 <= camera.cx <= width and 0 <= camera.cy <= height):
        return f"the principal point ({camera.cx:g}, {camera.cy:g}) is outside the image of {width} x {height} pixels."
    if not 0.8 < camera.fx / camera.fy < 1.25:
        return f"fx {camera.fx:g} and fy {camera.fy:g} differ a lot: were the images stretched?"
    angle = 2 * math.degrees(math.atan(width / 2 / camera.fx))
    if not 5 < angle < 150:
        return (
            f"fx {camera.fx:g} for {width} pixels is a field of view of {angle:.0f} degrees. "
            "Expected 5 to 150. Give fx in pixels, not in millimetres or as a fraction of the width."
        )
    return ""
