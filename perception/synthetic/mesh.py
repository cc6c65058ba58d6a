"""Shapes made of flat polygons: the basis of all objects on the street.

Local frame of a shape: x right, y up, z forward, metres; the origin is on the ground below its center. A face is a
convex polygon. Its vertices are ``anchor`` (rotates with the object) plus ``offset`` (does not rotate: round objects
and limbs are cards that face the camera). Colors are slots of a palette, so many objects can use one shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float, float]
Quad = Sequence[Point]
NEVER_GLOWS = 2.0
"""Value of `Mesh.glow_thresholds` for faces that never glow. Other faces glow if the scene's fraction of lights exceeds
their threshold."""


class Slot(IntEnum):
    """Index into an object's palette."""

    (
        BODY,
        SECOND,
        GLASS,
        DARK,
        METAL,
        HEADLIGHT,
        TAILLIGHT,
        SKIN,
        HAIR,
        TRIM,
        FACE,
        MARK,
        RED,
        AMBER,
        GREEN,
        WINDOW,
        LAMP,
    ) = range(17)


@dataclass(frozen=True, slots=True)
class Mesh:
    """Arrays over vertices [V] and faces [F].

    Attributes:
        anchors: float64 [V, 3], vertex positions that rotate with the object.
        offsets: float64 [V, 3], added without rotation.
        radii: [V], half widths at the vertices of a limb.
        vertex_counts: [F], number of vertices of each face.
        slots: [F], palette slot of the face's color.
        shades: [F], factor on this color.
        glow_thresholds: [F], see `NEVER_GLOWS`.
        labels: [F], Cityscapes labelIds.
        part_depths: [F], local z of the part that the face belongs to. Farther parts are painted first.
        is_one_sided: [F], not visible from behind.
        is_limb: [F], a rod with four vertices.
        half_extents: half width, height, half length.
    """

    anchors: NDArray[np.float64]
    offsets: NDArray[np.float64]
    radii: NDArray[np.float64]
    vertex_counts: NDArray[np.int64]
    slots: NDArray[np.int64]
    shades: NDArray[np.float64]
    glow_thresholds: NDArray[np.float64]
    labels: NDArray[np.int64]
    part_depths: NDArray[np.float64]
    is_one_sided: NDArray[np.bool_]
    is_limb: NDArray[np.bool_]
    half_extents: Point


@dataclass(slots=True)
class MeshBuilder:
    """Collects faces in painting order.

    ``label`` and ``part_depth`` (local z of the part's center) apply to all faces added afterwards. Parts are painted
    from far to near; the faces of a part are painted in the order of addition.
    """

    label: int = 0
    part_depth: float = 0.0
    vertices: list[tuple[float, ...]] = field(default_factory=list)
    faces: list[tuple[float, ...]] = field(default_factory=list)

    def add_polygon(
        self,
        points: Sequence[Point],
        slot: int,
        shade: float = 1.0,
        glow: float = NEVER_GLOWS,
        outward: Point | None = None,
    ) -> None:
        """Add a flat face; visible only from the side of ``outward``, or from both sides if it is None."""
        points = list(points)
        if outward is not None and np.dot(_normal(points), outward) < 0:
            points.reverse()
        self.vertices += [(*point, 0.0, 0.0, 0.0, 0.0) for point in points]
        self._add_face(len(points), slot, shade, glow, outward is not None)

    def add_disc(
        self,
        center: Point,
        radii: tuple[float, float],
        slot: int,
        shade: float = 1.0,
        glow: float = NEVER_GLOWS,
        corners: int = 10,
        radius_factors: Sequence[float] = (),
    ) -> None:
        """Add a round card that faces the camera; ``radius_factors`` scales the radius of each corner."""
        for corner in range(corners):
            angle = 2 * math.pi * corner / corners
            scale = radius_factors[corner % len(radius_factors)] if radius_factors else 1.0
            self.vertices.append(
                (*center, radii[0] * scale * math.cos(angle), radii[1] * scale * math.sin(angle), 0.0, 0.0)
            )
        self._add_face(corners, slot, shade, glow, False)

    def add_limb(
        self,
        start: Point,
        end: Point,
        radii: tuple[float, float],
        slot: int,
        shade: float = 1.0,
        glow: float = NEVER_GLOWS,
    ) -> None:
        """Add a rod between two points; ``radii`` are its half widths as seen by the camera."""
        for point, radius in ((start, radii[0]), (start, -radii[0]), (end, -radii[1]), (end, radii[1])):
            self.vertices.append((*point, 0.0, 0.0, 0.0, radius))
        self._add_face(4, slot, shade, glow, False, True)

    def add_wheel(self, x: float, y: float, z: float, radius: float, side: float) -> None:
        """Add a tire and its rim in the plane of constant ``x``, visible from ``side`` (-1 or 1)."""
        for scale, slot in ((1.0, Slot.DARK), (0.62, Slot.METAL), (0.2, Slot.DARK)):
            angles = [2 * math.pi * corner / 12 for corner in range(12)]
            ring = [(x, y + radius * scale * math.cos(a), z + radius * scale * math.sin(a)) for a in angles]
            self.add_polygon(ring, slot, outward=(side, 0, 0))

    def add_prism(
        self, profile: Sequence[tuple[float, float, float]], slot: int, shades: Sequence[float] = ()
    ) -> list[list[Point]]:
        """Sweep a convex side profile of (z, y, half width) across x. Return left, right and edge faces."""
        left = [(-w, y, z) for z, y, w in profile]
        right = [(w, y, z) for z, y, w in profile]
        faces = [left, right]
        middle = np.mean(left + right, axis=0)
        for i in range(len(profile)):
            j = (i + 1) % len(profile)
            faces.append([left[i], left[j], right[j], right[i]])
        for i, face in enumerate(faces):
            self.add_polygon(
                face, slot, shades[i] if i < len(shades) else 1.0, outward=tuple(np.mean(face, axis=0) - middle)
            )
        return faces

    def add_box(self, low: Point, high: Point, slot: int, shade: float = 1.0, has_bottom: bool = False) -> None:
        """Add an upright box, by default without its underside."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        for x, out in ((x0, -1.0), (x1, 1.0)):
            self.add_polygon([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)], slot, shade, outward=(out, 0, 0))
        for z, out in ((z0, -1.0), (z1, 1.0)):
            self.add_polygon([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], slot, shade, outward=(0, 0, out))
        self.add_polygon([(x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)], slot, shade, outward=(0, 1, 0))
        if has_bottom:
            self.add_polygon(
                [(x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)], slot, shade * 0.6, outward=(0, -1, 0)
            )

    def _add_face(self, count: int, slot: int, shade: float, glow: float, one_sided: bool, limb: bool = False) -> None:
        self.faces.append((count, slot, shade, glow, self.label, self.part_depth, one_sided, limb))

    def build(self) -> Mesh:
        """Return all collected faces as arrays."""
        vertices, faces = np.array(self.vertices), np.array(self.faces)
        reach = np.abs(vertices[:, :3]) + np.abs(vertices[:, 3:6]) + np.abs(vertices[:, 6:])
        size: Point = tuple(reach.max(0).tolist())
        counts, slots, labels = (faces[:, column].astype(np.int64) for column in (0, 1, 4))
        return Mesh(
            anchors=vertices[:, :3], offsets=vertices[:, 3:6], radii=vertices[:, 6], vertex_counts=counts, slots=slots,
            shades=faces[:, 2], glow_thresholds=faces[:, 3], labels=labels, part_depths=faces[:, 5],
            is_one_sided=faces[:, 6] > 0,
            is_limb=faces[:, 7] > 0, half_extents=size,
        )  # fmt: skip


def crop_quad(quad: Quad, left: float, right: float, low: float, high: float) -> list[Point]:
    """Return the part of a quad (low left, low right, high right, high left) between fractions of its sides."""
    a, b, c, d = (np.asarray(corner, np.float64) for corner in quad)

    def at(u: float, v: float) -> Point:
        return tuple(((a * (1 - u) + b * u) * (1 - v) + (d * (1 - u) + c * u) * v).tolist())

    return [at(left, low), at(right, low), at(right, high), at(left, high)]


def _normal(points: Sequence[Point]) -> NDArray[np.float64]:
    third = len(points) // 3 or 1
    a, b, c = (np.asarray(points[i]) for i in (0, third, min(2 * third, len(points) - 1)))
    return np.cross(b - a, c - a)
