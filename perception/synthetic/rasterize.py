"""From things on the street to pixels: which face is seen where, and at which depth.

Painter's algorithm: far things first. Every face gets a number; the picture of face numbers then looks up colour,
label, object and the plane whose depth is exact at each pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic.canvas import POLE
from perception.synthetic.mesh import NEVER
from perception.synthetic.view import View
from perception.synthetic.world import Thing, World

NEAR = 0.6
SUBPIXEL = 4
"""Bits of a pixel's fraction that the rasteriser is given."""


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """Everything in view, in painting order. Row 0 of the face arrays [F + 1] is the bare ground and sky.

    ids:    uint16 [H, W], the face seen at each pixel
    planes: float32 [F + 1, 3], inverse depth = a * x + b * y + c at pixel centres; ``near``, ``far``: its bounds
    normals: float64 [F + 1, 3] of the road frame (right, up, forward), towards the camera
    things: the object of each face, -1 = none; ``drawn`` int64 [T]: pixels of each thing before others covered it
    bounds: int64 [T, 4], x1 y1 x2 y2 around the pixels that each thing can cover
    spots:  float64 [T, 3] where each thing stands (right of the camera, up, ahead)
    """

    ids: NDArray[np.uint16]
    planes: NDArray[np.float32]
    near: NDArray[np.float32]
    far: NDArray[np.float32]
    normals: NDArray[np.float64]
    labels: NDArray[np.uint8]
    slots: NDArray[np.int64]
    shades: NDArray[np.float64]
    glows: NDArray[np.float64]
    colours: NDArray[np.float64]
    things: NDArray[np.int64]
    drawn: NDArray[np.int64]
    bounds: NDArray[np.int64]
    spots: NDArray[np.float64]


def place(world: World, view: View, things: list[Thing]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(spots [T, 3] right of the camera, up, ahead; headings [T] against straight ahead)."""
    ahead = np.array([thing.along for thing in things]) - view.along
    across = np.array([thing.across for thing in things]) - view.across
    bend = world.curvature * ahead
    spots = np.stack([across + 0.5 * bend * ahead, np.zeros(len(things)), ahead], 1)
    return spots, np.array([thing.turn for thing in things]) + np.arctan(bend)


def visible(world: World, view: View) -> tuple[list[Thing], NDArray[np.float64], NDArray[np.float64]]:
    """The things that can reach into the picture, far to near, with their spots and headings."""
    spots, headings = place(world, view, world.things)
    radius = np.array([max(t.mesh.size[0] * t.scale[0], t.mesh.size[2] * t.scale[2]) for t in world.things])
    forward = spots @ (view.rotation[2] * (1, -1, 1))
    sideways = spots @ (view.rotation[0] * (1, -1, 1))
    limit = 0.5 * view.size[1] / view.camera.fx * 1.1
    seen = (forward + radius > NEAR) & (np.abs(sideways) - radius * 1.5 < limit * (forward + radius))
    rows = np.flatnonzero(seen)
    half = np.array([abs(np.cos(t.turn)) * t.mesh.size[2] * t.scale[2] for t in world.things])
    layer = np.array([t.layer for t in world.things])
    key = forward + np.where(layer > 0, layer, -half)
    rows = rows[np.argsort(-key[rows], kind="stable")]
    return [world.things[row] for row in rows], spots[rows], headings[rows]


@dataclass(frozen=True, slots=True, eq=False)
class Shapes:
    """All polygons of all things in view, before any is dropped: arrays over faces [F] and their vertices [V].

    owner:  row of the thing; ``starts``, ``counts``: its vertices
    points: float64 [V, 3] right of the camera, up, ahead; ``seen`` the same in the camera's frame
    normals: float64 [F, 3] (right, up, ahead) of any length; ``towards``: positive where it points to the camera
    """

    owner: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    points: NDArray[np.float64]
    seen: NDArray[np.float64]
    normals: NDArray[np.float64]
    towards: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is painted: ``rows`` of the shapes in painting order. The other arrays are over all shapes or vertices.

    nearest, farthest: metres of depth [F]; ``clipped``: reaches behind the near plane
    pixels: float64 [V, 2], pixel indices; ``low``, ``high``: their bounds [F, 2]
    """

    rows: NDArray[np.int64]
    nearest: NDArray[np.float64]
    farthest: NDArray[np.float64]
    clipped: NDArray[np.bool_]
    pixels: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def paint(world: World, view: View) -> tuple[Faces, list[Thing]]:
    """Draw everything that stands on the street."""
    things, spots, headings = visible(world, view)
    shapes = _shapes(things, spots, headings, view)
    plan = _plan(shapes, view, _joined(things, "one_sided"), _joined(things, "parts") * np.cos(headings)[shapes.owner])
    rows, owner = plan.rows, shapes.owner[plan.rows]
    labels, slots = _joined(things, "labels")[rows], _joined(things, "slots")[rows]
    bounds = _bounds(view, plan, owner, len(things))
    ids, drawn = _draw(view, shapes, plan, things, bounds, labels == POLE)
    facing = shapes.normals[rows] * np.sign(shapes.towards[rows] + 1e-12)[:, None]
    facing /= np.linalg.norm(facing, axis=1, keepdims=True) + 1e-12
    faces = Faces(
        ids=ids,
        planes=np.concatenate([np.zeros((1, 3), np.float32), _planes(view, shapes.seen[shapes.starts[rows]], facing)]),
        near=_led(1 / np.maximum(plan.nearest[rows], NEAR), 1.0).astype(np.float32),
        far=_led(1 / np.maximum(plan.farthest[rows], NEAR), 0.0).astype(np.float32),
        normals=np.concatenate([[[0.0, 1.0, 0.0]], facing]),
        labels=_led(labels, 0).astype(np.uint8),
        slots=_led(slots, 0),
        shades=_led(_joined(things, "shades")[rows], 1.0),
        glows=_led(_joined(things, "glows")[rows], NEVER),
        colours=np.concatenate([np.zeros((1, 3)), np.stack([thing.palette for thing in things])[owner, slots]]),
        things=_led(owner, -1),
        drawn=drawn,
        bounds=bounds,
        spots=spots,
    )
    return faces, things


def _joined(things: list[Thing], name: str) -> NDArray:
    """One array of all things' shapes, joined."""
    return np.concatenate([getattr(thing.mesh, name) for thing in things])


def _led(values: NDArray, first: float) -> NDArray:
    """``values`` after the row of the bare ground."""
    return np.concatenate([np.array([first], values.dtype), values])


def _shapes(things: list[Thing], spots: NDArray, headings: NDArray, view: View) -> Shapes:
    owner = np.repeat(np.arange(len(things)), [len(thing.mesh.counts) for thing in things])
    counts = _joined(things, "counts")
    starts = np.cumsum(counts) - counts
    points = _vertices(things, spots, headings, starts[_joined(things, "limb")])
    third = np.maximum(counts // 3, 1)
    a, b, c = points[starts], points[starts + third], points[starts + np.minimum(2 * third, counts - 1)]
    normals = np.cross(b - a, c - a)
    towards = np.einsum("fk,fk->f", normals, np.array([0.0, view.height, 0.0]) - a)
    return Shapes(owner, starts, counts, points, view.to_camera(points), normals, towards)


def _plan(shapes: Shapes, view: View, one_sided: NDArray[np.bool_], parts: NDArray[np.float64]) -> Plan:
    """Drop what is behind the camera, beside the picture, turned away or smaller than a pixel; sort the rest."""
    depth, starts = shapes.seen[:, 2], shapes.starts
    nearest, farthest = np.minimum.reduceat(depth, starts), np.maximum.reduceat(depth, starts)
    pixels = view.project(np.where(depth[:, None] > NEAR, shapes.seen, (0.0, 0.0, 1.0))) - 0.5
    low, high = np.minimum.reduceat(pixels, starts), np.maximum.reduceat(pixels, starts)
    inside = ((high > -1) & (low < view.size[::-1])).all(1) & ((high - low).max(1) > 0.7)
    clipped = nearest <= NEAR
    keep = (farthest > NEAR) & (inside | clipped) & (~one_sided | (shapes.towards > 0))
    rows = np.flatnonzero(keep)
    rows = rows[np.lexsort((rows, -parts[rows], shapes.owner[rows]))]
    return Plan(rows, nearest, farthest, clipped, pixels, low, high)


def _vertices(things: list[Thing], spots: NDArray, headings: NDArray, limbs: NDArray[np.int64]) -> NDArray[np.float64]:
    """All vertices [V, 3], right of the camera, above the ground, ahead. ``limbs``: first vertex of every limb."""
    counts = [len(thing.mesh.anchors) for thing in things]
    scale = np.repeat(np.array([thing.scale for thing in things]), counts, axis=0)
    local = _joined(things, "anchors") * scale
    cos, sin = np.repeat(np.cos(headings), counts), np.repeat(np.sin(headings), counts)
    points = np.repeat(spots, counts, axis=0)
    points[:, 0] += local[:, 0] * cos + local[:, 2] * sin
    points[:, 1] += local[:, 1]
    points[:, 2] += local[:, 2] * cos - local[:, 0] * sin
    points += _joined(things, "offsets") * scale
    along = points[limbs + 2] - points[limbs]
    length = np.hypot(along[:, 0], along[:, 1]) + 1e-9
    normal = np.stack([-along[:, 1] / length, along[:, 0] / length, np.zeros(len(limbs))], 1)
    normal[length < 1e-6] = (1.0, 0.0, 0.0)
    radii = _joined(things, "radii") * scale[:, 0]
    for corner in range(4):
        points[limbs + corner] += normal * radii[limbs + corner, None]
    return points


def _planes(view: View, points: NDArray[np.float64], normals: NDArray[np.float64]) -> NDArray[np.float32]:
    """Coefficients [F, 3] of inverse depth over pixel indices, of planes through ``points`` (camera's frame)."""
    camera = view.camera
    normals = (normals * (1.0, -1.0, 1.0)) @ view.rotation.T
    distance = np.einsum("fk,fk->f", normals, points)
    distance = np.where(np.abs(distance) < 1e-6, 1e-6, distance)
    a, b = normals[:, 0] / camera.fx / distance, normals[:, 1] / camera.fy / distance
    c = normals[:, 2] / distance + a * (0.5 - camera.cx) + b * (0.5 - camera.cy)
    return np.stack([a, b, c], 1).astype(np.float32)


def _bounds(view: View, plan: Plan, owner: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Whole-pixel rectangle [T, 4] within the picture around the painted faces of each thing."""
    height, width = view.size
    bounds = np.tile(np.array([width, height, 0, 0], np.float64), (count, 1))
    owners, first = np.unique(owner, return_index=True)
    if len(owners):
        near = plan.clipped[plan.rows, None]
        bounds[owners, :2] = np.minimum.reduceat(np.where(near, 0.0, plan.low[plan.rows] - 1), first)
        bounds[owners, 2:] = np.maximum.reduceat(np.where(near, (width, height), plan.high[plan.rows] + 3), first)
    return np.clip(bounds, 0, (width, height, width, height)).astype(np.int64)


def _draw(
    view: View, shapes: Shapes, plan: Plan, things: list[Thing], bounds: NDArray[np.int64], poles: NDArray[np.bool_]
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Fill the faces in order. Also counts what each boxed thing, without its ``poles``, covers when it is painted."""
    ids = np.zeros(view.size, np.uint16)
    drawn = np.zeros(len(things), np.int64)
    fixed = to_fixed(plan.pixels)
    starts, cuts = shapes.starts[plan.rows].tolist(), plan.clipped[plan.rows].tolist()
    ends = (shapes.starts + shapes.counts)[plan.rows].tolist()
    owners, firsts = np.unique(shapes.owner[plan.rows], return_index=True)
    for thing, first, last in zip(owners.tolist(), firsts.tolist(), [*firsts[1:].tolist(), len(starts)], strict=True):
        for number in range(first, last):
            start, end = starts[number], ends[number]
            polygon = clip(view, shapes.seen[start:end]) if cuts[number] else fixed[start:end]
            if len(polygon) > 2:
                cv2.fillConvexPoly(ids, polygon, number + 1, cv2.LINE_8, SUBPIXEL)
        x1, y1, x2, y2 = bounds[thing].tolist()
        if things[thing].kind >= 0 and x1 < x2 and y1 < y2:
            lowest = first + 1 + int(poles[first:last].sum())
            covered = cv2.inRange(ids[y1:y2, x1:x2], lowest, last)  # type: ignore[call-overload]
            drawn[thing] = cv2.countNonZero(covered)
    return ids, drawn


def to_fixed(pixels: NDArray[np.float64]) -> NDArray[np.int32]:
    """Pixel indices as the rasteriser's fixed-point numbers."""
    return np.rint(np.clip(pixels, -30000, 30000) * (1 << SUBPIXEL)).astype(np.int32)


def clip(view: View, points: NDArray[np.float64]) -> NDArray[np.int32]:
    """The part of a polygon (camera's frame) beyond the near plane, in fixed-point pixels; [0, 2] where nothing is."""
    kept = []
    for start, end in zip(points, np.roll(points, -1, 0), strict=True):
        if start[2] > NEAR:
            kept.append(start)
        if (start[2] > NEAR) != (end[2] > NEAR):
            kept.append(start + (NEAR - start[2]) / (end[2] - start[2]) * (end - start))
    return to_fixed(view.project(np.array(kept)) - 0.5) if kept else np.zeros((0, 2), np.int32)
