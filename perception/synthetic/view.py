"""The camera on the road: sample its pose, project points, compute pixel rays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from perception.types import Camera


@dataclass(frozen=True, slots=True, eq=False)
class CameraView:
    """A camera with its pose.

    Attributes:
        camera: intrinsics.
        size: (height, width) in pixels.
        camera_height: metres above the road.
        across: metres to the right of the center line.
        along: metres along the road.
        pitch: radians, positive = nose down.
        yaw: radians, positive = to the right.
        roll: radians, positive = clockwise.
        rotation: float64 [3, 3], from the road frame (right, down, forward) to the camera frame (right, down, optical
            axis).
    """

    camera: Camera
    size: tuple[int, int]
    camera_height: float
    across: float
    along: float
    pitch: float
    yaw: float
    roll: float
    rotation: NDArray[np.float64]

    def to_camera(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert points [N, 3] (right of the camera, above the ground, ahead; metres) to the camera frame."""
        relative = points * (1.0, -1.0, 1.0)
        relative[:, 1] += self.camera_height
        return relative @ self.rotation.T

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Project points [N, 3] in the camera frame, in front of the camera, to pixels [N, 2]."""
        inverse = 1.0 / points[:, 2]
        return np.stack(
            [
                points[:, 0] * inverse * self.camera.fx + self.camera.cx,
                points[:, 1] * inverse * self.camera.fy + self.camera.cy,
            ],
            1,
        )

    def compute_rays(self) -> NDArray[np.float32]:
        """Return [3, H, W]: road-frame direction (right, down, forward) per pixel, for one metre of depth."""
        height, width = self.size
        x = (np.arange(width) + 0.5 - self.camera.cx) / self.camera.fx
        y = (np.arange(height) + 0.5 - self.camera.cy) / self.camera.fy
        turn = self.rotation.T
        rays = np.empty((3, height, width), np.float32)
        for i in range(3):
            rows, columns = (turn[i, 1] * y + turn[i, 2]).astype(np.float32), (turn[i, 0] * x).astype(np.float32)
            np.add(rows[:, None], columns[None, :], out=rays[i])
        return rays


def create_view(
    camera: Camera,
    size: tuple[int, int],
    camera_height: float,
    across: float,
    along: float,
    angles: tuple[float, float, float],
) -> CameraView:
    """Create a view. ``angles``: pitch (positive = nose down), yaw (to the right), roll (clockwise), radians."""
    pitch, yaw, roll = angles
    turn_y = np.array([[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]])
    turn_x = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    turn_z = np.array([[math.cos(roll), math.sin(roll), 0], [-math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    return CameraView(camera, size, camera_height, across, along, pitch, yaw, roll, turn_z @ turn_x @ turn_y)


def sample_view(rng: Random, size: tuple[int, int], lane_center: float) -> CameraView:
    """Sample a camera behind a windshield, at car to truck height, in the lane around ``lane_center``."""
    height, width = size
    focal = rng.uniform(0.6, 1.1) * width
    camera = Camera(
        focal, focal, width / 2 + rng.uniform(-0.01, 0.01) * width, height / 2 + rng.uniform(-0.02, 0.02) * height
    )
    angles = (rng.gauss(0.012, 0.03), rng.gauss(0.0, 0.03), rng.gauss(0.0, 0.008))
    return create_view(
        camera,
        size,
        rng.choice((rng.uniform(1.2, 1.7), rng.uniform(1.2, 2.2))),
        lane_center + rng.gauss(0, 0.3),
        0.0,
        angles,
    )
