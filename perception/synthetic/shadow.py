"""Shadows on the ground: from the sun, and ambient occlusion below objects."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic.rasterize import NEAR_PLANE, SUBPIXEL_BITS, clip_to_near_plane, to_fixed_point
from perception.synthetic.street_image import BUILDING, PERSON, POLE, VEGETATION
from perception.synthetic.view import CameraView
from perception.synthetic.world import StreetObject, World

UNIT_CIRCLE = np.array([(math.cos(k * math.pi / 6), math.sin(k * math.pi / 6)) for k in range(12)])


def cast_shadows(
    world: World, view: CameraView, objects: list[StreetObject], positions: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the fraction of light that reaches the ground, [H, W] in 0-1; undefined where an object covers it."""
    mask = np.full(view.size, 255, np.uint8)
    sun, bright = world.light.sun_direction, max(world.light.sun_color) > 0.3
    reach = -np.array([sun[0], sun[2]]) / max(sun[1], 0.2)
    headings = world.curvature * positions[:, 2] + np.array([thing.yaw for thing in objects])
    outlines: list[NDArray] = []
    under: list[NDArray] = []
    for thing, spot, heading in zip(objects, positions, headings, strict=True):
        half_width, height, half_length = (
            part * scale for part, scale in zip(thing.mesh.half_extents, thing.scale, strict=True)
        )
        if spot[2] > 70 or height < 0.5:
            continue
        label = int(thing.mesh.labels[0])
        foot = spot[[0, 2]]
        if label in (26, 27):
            corners = _rectangle(foot, heading, half_width, half_length)
            under.append(_rectangle(foot, heading, half_width * 1.02, half_length * 0.98))
            if bright:
                outlines.append(_hull(corners, corners * 0.9 + foot * 0.1 + reach * height * 0.9))
        elif label == BUILDING:
            if bright:
                offset = np.array([math.cos(heading), -math.sin(heading)]) * half_width * 0.5
                corners = _rectangle(foot + offset, heading, half_width * 0.5, half_length)
                outlines.append(_hull(corners, corners + reach * height))
        elif label == VEGETATION and half_width < 6:
            crown = UNIT_CIRCLE * half_width * 0.75
            under.append(foot + UNIT_CIRCLE * 0.3)
            if bright:
                outlines.append(foot + crown * 1.1 + reach * height * 0.6)
                outlines.append(_strip(foot, foot + reach * height * 0.5, 0.18))
        elif label == POLE:
            if bright:
                outlines.append(_strip(foot, foot + reach * height, 0.1))
        elif label in (PERSON, 33):
            under.append(foot + UNIT_CIRCLE * (0.34, 0.28 if label == PERSON else 0.7))
            if bright:
                outlines.append(_strip(foot, foot + reach * height, 0.24))
    _fill_polygons(mask, view, outlines, 70)
    if not bright:
        mask = cv2.blur(mask, (5, 5))
    dark = np.full(view.size, 255, np.uint8)
    _fill_polygons(dark, view, under, 95 if not bright else 110)
    dark = cv2.blur(dark, (7, 3))
    soft = cv2.blur(mask, (3, 3)) if bright else mask
    return cv2.multiply(soft, dark, scale=1 / 255 / 255, dtype=cv2.CV_32F)  # type: ignore[return-value]


def _rectangle(foot: NDArray, heading: float, half_width: float, half_length: float) -> NDArray[np.float64]:
    cos, sin = math.cos(heading), math.sin(heading)
    side, forward = np.array([cos, -sin]) * half_width, np.array([sin, cos]) * half_length
    return np.array([foot - side - forward, foot + side - forward, foot + side + forward, foot - side + forward])


def _strip(start: NDArray, end: NDArray, half_width: float) -> NDArray[np.float64]:
    along = end - start
    normal = np.array([-along[1], along[0]]) / (math.hypot(*along) + 1e-9) * half_width
    return np.array([start - normal, start + normal, end + normal, end - normal])


def _hull(low: NDArray, high: NDArray) -> NDArray[np.float64]:
    return cv2.convexHull(np.concatenate([low, high]).astype(np.float32))[:, 0].astype(np.float64)


def _fill_polygons(mask: NDArray[np.uint8], view: CameraView, polygons: list[NDArray], value: int) -> None:
    """Fill polygons on the ground (right, ahead)."""
    if not polygons:
        return
    counts = np.array([len(outline) for outline in polygons], np.int64)
    flat = np.concatenate(polygons)
    seen = view.to_camera(np.stack([flat[:, 0], np.zeros(len(flat)), flat[:, 1]], 1))
    behind = seen[:, 2] <= NEAR_PLANE
    fixed = to_fixed_point(view.project(np.where(behind[:, None], (0.0, 0.0, 1.0), seen)) - 0.5)
    ends = np.cumsum(counts)
    cut = np.logical_or.reduceat(behind, ends - counts)
    for start, end, clipped in zip((ends - counts).tolist(), ends.tolist(), cut.tolist(), strict=True):
        polygon = clip_to_near_plane(view, seen[start:end]) if clipped else fixed[start:end]
        if len(polygon):
            cv2.fillConvexPoly(mask, polygon, value, cv2.LINE_8, SUBPIXEL_BITS)
