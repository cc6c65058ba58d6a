"""A street: the road, and the things that stand and move along it.

Road frame: ``along`` metres forward on the center line, ``across`` metres to its right. Seen from a place on a road of
curvature ``k``, the point (along, across) lies ``across + k * along**2 / 2`` to the right and ``along`` ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perception.synthetic.ground import Road
from perception.synthetic.light import Light
from perception.synthetic.mesh import Mesh
from perception.synthetic.street_image import OBJECT_CLASSES

PERSON_CLASS, CYCLIST_CLASS, CAR_CLASS, TRUCK_CLASS, TRAFFIC_LIGHT_CLASS, TRAFFIC_SIGN_CLASS = range(
    len(OBJECT_CLASSES)
)

BACKDROP_DISTANCE = 135.0
"""Metres to the backdrop that closes the street."""


@dataclass(slots=True)
class StreetObject:
    """An object on the street.

    along, across: metres in the road frame; ``yaw`` radians to the right of the road's direction
    class_index:  index into `CLASSES`, -1 = not boxed; ``track_id`` stays with it
    speed, lateral_speed: m/s along and across the road
    paint_offset: metres behind its middle at which it is painted, so that what stands beside it is painted over it; 0
    = by its
           near end
    mesh_at: shape at a time in seconds, for what moves its limbs
    """

    mesh: Mesh
    palette: NDArray[np.float64]
    along: float
    across: float
    yaw: float = 0.0
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    class_index: int = -1
    track_id: int = -1
    speed: float = 0.0
    lateral_speed: float = 0.0
    paint_offset: float = 0.0
    mesh_at: Callable[[float], Mesh] | None = None

    @property
    def half_extent(self) -> tuple[float, float]:
        """Half of its extent along and across the road, metres."""
        cos, sin = abs(math.cos(self.yaw)), abs(math.sin(self.yaw))
        width, length = self.mesh.half_extents[0] * self.scale[0], self.mesh.half_extents[2] * self.scale[2]
        return cos * length + sin * width, sin * length + cos * width


@dataclass(slots=True)
class World:
    """A street of some length. ``crossings`` are the middles of side streets, ``curvature`` in 1/m."""

    road: Road
    light: Light
    curvature: float
    crossings: list[float]
    objects: list[StreetObject] = field(default_factory=list)
    ground_brightness: float = 1.0
    texture_origin: tuple[float, float] = (0.0, 0.0)

    def add(self, street_object: StreetObject) -> None:
        """Add a thing; its identity is its place in the list."""
        street_object.track_id = len(self.objects)
        self.objects.append(street_object)

    def add_if_free(self, street_object: StreetObject) -> None:
        """Add a thing unless another boxed one that stands on the ground is in its place."""
        along, across = street_object.half_extent
        for other in self.objects:
            if 0 <= other.class_index <= TRUCK_CLASS and abs(other.along - street_object.along) < 16:
                beside, before = other.half_extent[1] + across, other.half_extent[0] + along
                if (
                    abs(other.along - street_object.along) < before
                    and abs(other.across - street_object.across) < beside
                ):
                    return
        self.add(street_object)

    def is_near_crossing(self, along: float, margin: float) -> bool:
        """Whether a place lies in a side street or within ``margin`` metres of one."""
        return any(abs(along - place) < self.road.side_street_half_width + margin for place in self.crossings)
