"""Rotation of a network input about its center, like a camera roll: image, labels and intrinsics together."""

from __future__ import annotations

import dataclasses
import os
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.ops.image import PAD_VALUE
from perception.types import Annotation, Camera, DenseMap, Instances, Sample

if TYPE_CHECKING:
    from albumentations import Compose

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise its import requests the latest version from a server


def roll_sample(sample: Sample, degrees: float, min_visible: float, rng: np.random.Generator) -> Sample:
    """Rotate a sample by a random angle of up to ``degrees`` in both directions, with albumentations.

    A roll is the only camera motion that keeps every distance along the optical axis. Points rotate by R about the
    center c. The camera keeps its focal length, and its principal point p moves to R (p - c) + c. This is exact for
    fx == fy; otherwise a skew of up to (fx - fy) sin(angle) is dropped. Shear and random perspective are not
    available: they are not motions of a pinhole camera, so depth and intrinsics would be wrong.

    The new corners are padding: gray, invalid. A box becomes the bounding box of the visible part of the rotated box.
    If this part has less than ``min_visible`` of the area of the box, or less than 1 px, it is an ignore region.

    Args:
        sample: image, annotations and camera in input pixels.
        degrees: largest angle.
        min_visible: visible fraction of a box below which it becomes an ignore region.
        rng: source of randomness.
    """
    maps = {task: a for task, a in sample.annotations.items() if isinstance(a, DenseMap)}
    planes = {
        f"{part}_{i}": _to_channels_last(getattr(a, part))
        for i, a in enumerate(maps.values())
        for part in ("values", "valid")
    }
    boxes = [a.boxes for a in sample.annotations.values() if isinstance(a, Instances)]
    points = np.concatenate([_box_corners(b).reshape(-1, 2) for b in boxes] + [_principal_point(sample.camera)])
    change = _rotation_transform(degrees, tuple(planes))
    change.set_random_seed(int(rng.integers(2**31)))
    turned = change(
        image=sample.image,
        keypoints=points - 0.5,
        **planes,  # pyright: ignore[reportArgumentType]
    )  # albumentations has the origin at a pixel center
    points = np.asarray(turned["keypoints"], np.float64).reshape(-1, 2) + 0.5
    annotations: dict[str, Annotation | None] = dict(sample.annotations)
    for i, (task, dense) in enumerate(maps.items()):
        values = turned[f"values_{i}"]
        annotations[task] = DenseMap(
            np.ascontiguousarray(np.moveaxis(values, -1, 0)) if dense.values.ndim == 3 else values,
            turned[f"valid_{i}"].astype(bool),
            label_space=dense.label_space,
        )
    at = 0
    for task, target in sample.annotations.items():
        if isinstance(target, Instances):
            count = len(target.boxes)
            quads = points[at : at + 4 * count].reshape(-1, 4, 2)
            annotations[task], at = _clip_instances(target, quads, sample.image.shape[:2], min_visible), at + 4 * count
    camera = sample.camera
    if camera is not None:
        camera = Camera(camera.fx, camera.fy, float(points[-1, 0]), float(points[-1, 1]))
    return dataclasses.replace(sample, image=turned["image"], annotations=annotations, camera=camera)


def _to_channels_last(plane: NDArray) -> NDArray:
    """[C, H, W] as [H, W, C], bool as uint8."""
    plane = np.ascontiguousarray(np.moveaxis(plane, 0, -1)) if plane.ndim == 3 else plane
    return plane.astype(np.uint8) if plane.dtype == bool else plane


def _box_corners(boxes: NDArray) -> NDArray:
    """[N, 4] boxes to their corners [N, 4, 2], in order around the box."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2).astype(np.float64)


def _principal_point(camera: Camera | None) -> NDArray:
    return np.array([[0.0, 0.0] if camera is None else [camera.cx, camera.cy]])


def _clip_instances(target: Instances, quads: NDArray, size: tuple[int, int], min_visible: float) -> Instances:
    height, width = size
    sight = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    boxes = np.zeros((len(quads), 4), np.float32)
    shares = np.zeros(len(quads))
    for i, quad in enumerate(quads):
        area, outline = cv2.intersectConvexConvex(quad.astype(np.float32), sight)
        if outline is not None and area > 0:
            outline = outline.reshape(-1, 2)
            boxes[i] = *outline.min(0), *outline.max(0)
            shares[i] = area / max((target.boxes[i, 2:] - target.boxes[i, :2]).prod(), 1e-9)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    sides = boxes[:, 2:] - boxes[:, :2]
    inside = (sides > 0).all(1)
    ignore = (shares < min_visible) | (sides < 1).any(1)
    if target.ignore is not None:
        ignore |= target.ignore
    return Instances(
        boxes=boxes[inside],
        labels=target.labels[inside],
        ignore=ignore[inside],
        labeled_classes=target.labeled_classes,
        partial_classes=target.partial_classes,
        track_ids=None if target.track_ids is None else target.track_ids[inside],
    )


@lru_cache(maxsize=16)
def _rotation_transform(degrees: float, names: tuple[str, ...]) -> Compose:
    import albumentations as changes

    rotate = changes.Rotate(limit=(-degrees, degrees), fill=PAD_VALUE, fill_mask=0, p=1)
    points = changes.KeypointParams("xy", remove_invisible=False)
    return changes.Compose([rotate], keypoint_params=points, additional_targets=dict.fromkeys(names, "mask"))
