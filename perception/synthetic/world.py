"""A street: the road, and the objects that stand and move along it.

Road frame: ``along`` metres forward on the center line, ``across`` metres to its right. As seen from a point on a road
of curvature ``k``, the point (along, across) is ``across + k * along**2 / 2`` to the right and ``along`` ahead.
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
"""Metres to the backdrop at the end of the street."""


@dataclass(slots=True)
class StreetObject:
    """An object on the street.

    Attributes:
        mesh: its shape.
        palette: [slots, 3], colors of the shape.
        along: metres in the road frame.
        across: metres in the road frame.
        yaw: radians, to the right of the road's direction.
        scale: factors on the shape along x, y and z.
        class_index: index into `OBJECT_CLASSES`, -1 = no box.
        track_id: persistent identity.
        speed: m/s along the road.
        lateral_speed: m/s across the road.
        paint_offset: painting depth, in metres behind its center, so that objects beside it are painted later. 0 = by
            its near end.
        mesh_at: shape at a time in seconds, for moving limbs.
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
        """Half of its size along and across the road, metres."""
        cos, sin = abs(math.cos(self.yaw)), abs(math.sin(self.yaw))
        width, length = self.mesh.half_extents[0] * self.scale[0], self.mesh.half_extents[2] * self.scale[2]
        return cos * length + sin * width, sin * length + cos * width


@dataclass(slots=True)
class World:
    """A street of finite length.

    Attributes:
        road: its cross-section.
        light: weather and time of day.
        curvature: 1/m.
        crossings: metres along the road to the centers of side streets.
        objects: everything on the street.
        ground_brightness: factor on the ground color.
        texture_origin: offset of the surface texture.
    """

    road: Road
    light: Light
    curvature: float
    crossings: list[float]
    objects: list[StreetObject] = field(default_factory=list)
    ground_brightness: float = 1.0
    texture_origin: tuple[float, float] = (0.0, 0.0)

    def add(self, street_object: StreetObject) -> None:
        """Add an object. Its identity is its index in the list."""
        street_object.track_id = len(self.objects)
        self.objects.append(street_object)

    def add_if_free(self, street_object: StreetObject) -> None:
        """Add an object unless its place is occupied by another object on the ground that has a box."""
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
        """Whether a position is in a side street or within ``margin`` metres of one."""
        return any(abs(along - place) < self.road.side_street_half_width + margin for place in self.crossings)
