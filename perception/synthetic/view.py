"""The camera on the road: sampling its pose, projecting points, and the rays through its pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from perception.types import Camera


@dataclass(frozen=True, slots=True, eq=False)
class CameraView:
    """A camera ``camera_height`` metres above the road, ``across`` metres right of its center line, ``along`` metres
    down it.

    rotation: float64 [3, 3], from the road frame (right, down, forward) to the camera's (right, down, optical axis)
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
        """Points [N, 3] (right of the camera, above the ground, ahead; metres) in the camera's frame."""
        relative = points * (1.0, -1.0, 1.0)
        relative[:, 1] += self.camera_height
        return relative @ self.rotation.T

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels [N, 2] of points [N, 3] in the camera's frame, in front of it."""
        inverse = 1.0 / points[:, 2]
        return np.stack(
            [
                points[:, 0] * inverse * self.camera.fx + self.camera.cx,
                points[:, 1] * inverse * self.camera.fy + self.camera.cy,
            ],
            1,
        )

    def compute_rays(self) -> NDArray[np.float32]:
        """[3, H, W]: (right, down, forward) in the road frame of the ray that gains one metre of depth, per pixel."""
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
    """``angles``: pitch (positive = nose down), yaw (to the right) and roll (clockwise), radians."""
    pitch, yaw, roll = angles
    turn_y = np.array([[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]])
    turn_x = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    turn_z = np.array([[math.cos(roll), math.sin(roll), 0], [-math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    return CameraView(camera, size, camera_height, across, along, pitch, yaw, roll, turn_z @ turn_x @ turn_y)


def sample_view(rng: Random, size: tuple[int, int], lane_center: float) -> CameraView:
    """A camera behind a windscreen, between a low car's and a truck's, somewhere in the lane around ``lane_center``."""
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
