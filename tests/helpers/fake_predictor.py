"""A stand-in for an exported network."""

from __future__ import annotations

import numpy as np

from perception.runtime.result import Result
from perception.types import Instances, Prediction, TaskSpec


class FakePredictor:
    """Sees the same car in every image. cameras: that it was given"""

    def __init__(self) -> None:
        self.specs = {"detection": TaskSpec("detection", "instances", ("boxes", "scores", "labels"), ("car",))}
        self.cameras = []

    def letterbox_size(self, size) -> None: ...

    def __call__(self, image, camera, size):
        self.cameras.append(camera)
        boxes = np.array([[1, 2, 3, 4]], np.float32)
        found = Instances(boxes, np.array([0]), np.array([0.9], np.float32))
        return Result(Prediction({"detection": found}, image.shape[:2]), self.specs, image, camera)
