"""A street: the road, and the things that stand and move along it.

Road frame: ``along`` metres forward on the centre line, ``across`` metres to its right. Seen from a place on a road of
curvature ``k``, the point (along, across) lies ``across + k * along**2 / 2`` to the right and ``along`` ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perception.synthetic.canvas import CLASSES
from perception.synthetic.ground import Road
from perception.synthetic.light import Light
from perception.synthetic.mesh import Mesh

PERSON, CYCLIST, CAR, TRUCK, LIGHT, SIGN = range(len(CLASSES))

HORIZON = 135.0
"""Metres to the backdrop that closes the street."""


@dataclass(slots=True)
class Thing:
    """An object on the street.

    along, across: metres in the road frame; ``turn`` radians to the right of the road's direction
    kind:  index into `CLASSES`, -1 = not boxed; ``identity`` stays with it
    speed, drift: m/s along and across the road
    layer: metres behind its middle at which it is painted, so that what stands beside it is painted over it; 0 = by its
           near end
    stride: shape at a time in seconds, for what moves its limbs
    """

    mesh: Mesh
    palette: NDArray[np.float64]
    along: float
    across: float
    turn: float = 0.0
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    kind: int = -1
    identity: int = -1
    speed: float = 0.0
    drift: float = 0.0
    layer: float = 0.0
    stride: Callable[[float], Mesh] | None = None

    @property
    def reach(self) -> tuple[float, float]:
        """Half of its extent along and across the road, metres."""
        cos, sin = abs(math.cos(self.turn)), abs(math.sin(self.turn))
        width, length = self.mesh.size[0] * self.scale[0], self.mesh.size[2] * self.scale[2]
        return cos * length + sin * width, sin * length + cos * width


@dataclass(slots=True)
class World:
    """A street of some length. ``crossings`` are the middles of side streets, ``curvature`` in 1/m."""

    road: Road
    light: Light
    curvature: float
    crossings: list[float]
    things: list[Thing] = field(default_factory=list)
    tone: float = 1.0
    origin: tuple[float, float] = (0.0, 0.0)

    def put(self, thing: Thing) -> None:
        """Add a thing; its identity is its place in the list."""
        thing.identity = len(self.things)
        self.things.append(thing)

    def put_if_free(self, thing: Thing) -> None:
        """Add a thing unless another boxed one that stands on the ground is in its place."""
        along, across = thing.reach
        for other in self.things:
            if 0 <= other.kind <= TRUCK and abs(other.along - thing.along) < 16:
                beside, before = other.reach[1] + across, other.reach[0] + along
                if abs(other.along - thing.along) < before and abs(other.across - thing.across) < beside:
                    return
        self.put(thing)

    def near_crossing(self, along: float, margin: float) -> bool:
        """Whether a place lies in a side street or within ``margin`` metres of one."""
        return any(abs(along - place) < self.road.side_half + margin for place in self.crossings)
