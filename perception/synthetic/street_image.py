"""What a made street image carries, and the names of everything in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perception.types import Camera

GENERATOR_VERSION = 1
"""Of the generator: an image is a function of (version, seed, index, size)."""

OBJECT_CLASSES = ("person", "cyclist", "car", "truck", "traffic light", "traffic sign")
"""What is boxed. A cyclist is one box around rider and bicycle; the segmentation mask tells the two apart."""

SCENE_CLASSES = ("clear", "overcast", "rain", "fog", "dusk", "night")
"""Weather or time of day: the label of the whole image."""

ROAD, SIDEWALK, BUILDING, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN = 7, 8, 11, 17, 19, 20
VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BICYCLE = 21, 22, 23, 24, 25, 26, 27, 33

LABEL_NAMES = {
    ROAD: "road", SIDEWALK: "sidewalk", BUILDING: "building", POLE: "pole", TRAFFIC_LIGHT: "traffic light",
    TRAFFIC_SIGN: "traffic sign", VEGETATION: "vegetation", TERRAIN: "terrain", SKY: "sky", PERSON: "person",
    RIDER: "rider", CAR: "car", TRUCK: "truck", BICYCLE: "bicycle",
}  # fmt: skip
"""Cityscapes' labelIds that occur (lane markings are road, tree trunks vegetation), and their names."""

MAX_DEPTH = 120.0
"""Metres; depth beyond is not given."""

MIN_BOX_SIDE, MIN_VISIBLE_FRACTION = 4.0, 0.25
"""A thing whose visible box has a side shorter than this many pixels, or of which less than this fraction of its
pixels within the image is left by what stands in front, is an ignore region: neither object nor background."""


@dataclass(frozen=True, slots=True)
class StreetImage:
    """An image of a made street and every label of it.

    image:      uint8 RGB [H, W, 3]
    label_ids:  uint8 [H, W], Cityscapes' labelIds (the keys of `LABELS`)
    instances:  uint16 [H, W], 1 + row of ``boxes`` that owns the pixel, 0 = none
    boxes:      float32 [N, 4], x1 y1 x2 y2 pixels, tight around the visible pixels
    labels:     int64 [N], index into `CLASSES`
    areas:      int64 [N], visible pixels
    ignore:     bool [N], too small or too hidden to ask for (`MIN_BOX_SIDE`, `MIN_VISIBLE_FRACTION`)
    identities: int64 [N], stable through a video
    depth:      float32 [H, W], metres along the optical axis to the painted surface; 0 = unknown (sky, far away)
    camera:     intrinsics; pixel ``i`` covers ``[i, i + 1)``
    height, pitch, yaw, roll: pose of the camera: metres above the road, radians (positive = nose down, to the right of
        the road, clockwise)
    scene:      one of `SCENES`
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
