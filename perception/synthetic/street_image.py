"""A synthetic street image with its labels, and the names of its classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perception.types import Camera

GENERATOR_VERSION = 1
"""Version of the generator. An image depends only on (version, seed, index, size)."""

OBJECT_CLASSES = ("person", "cyclist", "car", "truck", "traffic light", "traffic sign")
"""Classes with boxes. A cyclist is one box around rider and bicycle; the segmentation mask separates them."""

SCENE_CLASSES = ("clear", "overcast", "rain", "fog", "dusk", "night")
"""Weather or time of day: the label of the whole image."""

ROAD, SIDEWALK, BUILDING, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN = 7, 8, 11, 17, 19, 20
VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BICYCLE = 21, 22, 23, 24, 25, 26, 27, 33

LABEL_NAMES = {
    ROAD: "road", SIDEWALK: "sidewalk", BUILDING: "building", POLE: "pole", TRAFFIC_LIGHT: "traffic light",
    TRAFFIC_SIGN: "traffic sign", VEGETATION: "vegetation", TERRAIN: "terrain", SKY: "sky", PERSON: "person",
    RIDER: "rider", CAR: "car", TRUCK: "truck", BICYCLE: "bicycle",
}  # fmt: skip
"""Cityscapes labelIds in use (lane markings are road, tree trunks are vegetation), with their names."""

MAX_DEPTH = 120.0
"""Metres. Larger depth is marked as unknown."""

MIN_BOX_SIDE, MIN_VISIBLE_FRACTION = 4.0, 0.25
"""An object is an ignore region (neither object nor background) if a side of its visible box has fewer pixels than
this, or if less than this fraction of its pixels within the image is not occluded."""


@dataclass(frozen=True, slots=True)
class StreetImage:
    """A synthetic street image with all labels.

    Attributes:
        image: uint8 RGB [H, W, 3].
        label_ids: uint8 [H, W], Cityscapes labelIds (the keys of `LABEL_NAMES`).
        instance_map: uint16 [H, W], 1 + row in ``boxes`` of the pixel's object, 0 = none.
        boxes: float32 [N, 4], x1 y1 x2 y2 pixels, tight around the visible pixels.
        labels: int64 [N], index into `OBJECT_CLASSES`.
        areas: int64 [N], visible pixels.
        ignore: bool [N], too small or too occluded (`MIN_BOX_SIDE`, `MIN_VISIBLE_FRACTION`).
        track_ids: int64 [N], stable in a video.
        depth: float32 [H, W], metres along the optical axis to the painted surface; 0 = unknown (sky, far away).
        camera: intrinsics; pixel ``i`` covers ``[i, i + 1)``.
        camera_height: metres above the road.
        pitch: radians, positive = nose down.
        yaw: radians, positive = to the right of the road.
        roll: radians, positive = clockwise.
        scene_class: one of `SCENE_CLASSES`.
    """

    image: NDArray[np.uint8]
    label_ids: NDArray[np.uint8]
    instance_map: NDArray[np.uint16]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    areas: NDArray[np.int64]
    ignore: NDArray[np.bool_]
    track_ids: NDArray[np.int64]
    depth: NDArray[np.float32]
    camera: Camera
    camera_height: float
    pitch: float
    yaw: float
    roll: float
    scene_class: str
