"""Sampling a street: the road, and what stands and moves along it.

Road frame: ``along`` metres forward on the centre line, ``across`` metres to its right. Seen from a place on a road of
curvature ``k``, the point (along, across) lies ``across + k * along**2 / 2`` to the right and ``along`` ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from perception.data.street import people, surroundings, vehicles
from perception.data.street.ground import Road, sample_road
from perception.data.street.light import Light, sample_light
from perception.data.street.mesh import Mesh, Slot
from perception.data.street.picture import CLASSES, SCENES

Colour = tuple[float, float, float]
PERSON, CYCLIST, CAR, TRUCK, LIGHT, SIGN = range(len(CLASSES))
HORIZON = 135.0
"""Metres to the backdrop that closes the street."""

PALETTE = np.array([
    (0.6, 0.6, 0.6), (0.5, 0.5, 0.5), (0.10, 0.12, 0.15), (0.06, 0.06, 0.065), (0.52, 0.54, 0.56), (0.88, 0.9, 0.92), (0.55, 0.04, 0.05), (0.82, 0.62, 0.5), (0.15, 0.1, 0.07),
    (0.93, 0.93, 0.92), (0.07, 0.22, 0.62), (0.5, 0.3, 0.2), (0.82, 0.06, 0.07), (0.98, 0.75, 0.05), (0.1, 0.8, 0.35), (0.2, 0.25, 0.31), (0.9, 0.9, 0.85),
])  # fmt: skip
PAINTS = (
    (0.92, 0.92, 0.91),
    (0.92, 0.92, 0.91),
    (0.66, 0.68, 0.7),
    (0.4, 0.41, 0.43),
    (0.07, 0.07, 0.08),
    (0.07, 0.07, 0.08),
    (0.12, 0.2, 0.42),
    (0.55, 0.06, 0.07),
    (0.3, 0.08, 0.09),
    (0.16, 0.3, 0.2),
    (0.62, 0.56, 0.45),
    (0.2, 0.35, 0.55),
    (0.75, 0.45, 0.08),
)
CLOTHES = (
    (0.1, 0.1, 0.12),
    (0.15, 0.18, 0.3),
    (0.5, 0.1, 0.12),
    (0.75, 0.72, 0.66),
    (0.25, 0.33, 0.24),
    (0.85, 0.55, 0.12),
    (0.3, 0.3, 0.33),
    (0.2, 0.4, 0.62),
    (0.62, 0.3, 0.42),
    (0.85, 0.85, 0.86),
)
TROUSERS = (
    (0.1, 0.1, 0.12),
    (0.13, 0.17, 0.28),
    (0.24, 0.27, 0.34),
    (0.35, 0.3, 0.24),
    (0.2, 0.2, 0.2),
    (0.5, 0.46, 0.38),
)
WALLS = (
    (0.72, 0.66, 0.55),
    (0.62, 0.35, 0.27),
    (0.5, 0.28, 0.22),
    (0.78, 0.74, 0.67),
    (0.6, 0.6, 0.6),
    (0.8, 0.72, 0.5),
    (0.45, 0.42, 0.4),
    (0.68, 0.53, 0.42),
    (0.56, 0.6, 0.63),
    (0.82, 0.8, 0.76),
    (0.7, 0.55, 0.5),
)
ROOFS = ((0.5, 0.22, 0.16), (0.3, 0.29, 0.3), (0.4, 0.25, 0.2), (0.24, 0.24, 0.27))
LEAVES = (
    (0.2, 0.34, 0.12),
    (0.26, 0.38, 0.14),
    (0.16, 0.28, 0.12),
    (0.34, 0.4, 0.15),
    (0.45, 0.36, 0.12),
    (0.24, 0.32, 0.2),
)
AWNINGS = ((0.6, 0.12, 0.12), (0.1, 0.3, 0.25), (0.15, 0.2, 0.4), (0.7, 0.6, 0.35), (0.25, 0.25, 0.25))
SKINS = ((0.87, 0.67, 0.55), (0.78, 0.56, 0.43), (0.5, 0.33, 0.24), (0.33, 0.21, 0.15))


@dataclass(slots=True)
class Thing:
    """An object on the street. ``turn`` against the road's direction, radians to the right; ``kind`` index into CLASSES or -1.

    ``speed`` along the road and ``drift`` across it in m/s; ``layer`` metres added to its distance when sorting.
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


def sample_world(choose: Random, scene: str | None = None, length: float = 0.0) -> World:
    """A street that can be driven along for ``length`` metres."""
    light = sample_light(scene or choose.choice(SCENES), choose)
    road = sample_road(choose.randrange(48))
    crossings, end = [], length + HORIZON
    place = choose.uniform(10.0, 70.0) if choose.random() < 0.62 else choose.uniform(80, 200)
    while place < end - 20:
        crossings.append(place)
        place += choose.uniform(55.0, 110.0)
    curvature = choose.choice((0.0, 0.0, choose.uniform(-0.0045, 0.0045), choose.uniform(-0.0045, 0.0045)))
    world = World(
        road,
        light,
        curvature,
        crossings,
        tone=choose.uniform(0.8, 1.2),
        origin=(choose.uniform(0, 400), choose.uniform(0, 400)),
    )
    for side in (-1, 1):
        _line_up_buildings(world, choose, side, end)
        _line_up_trees(world, choose, side, end)
        _line_up_posts(world, choose, side, end)
    _close_horizon(world, choose, end)
    _fill_lanes(world, choose, end)
    _park(world, choose, end)
    _walk(world, choose, end)
    _furnish_crossings(world, choose)
    for identity, thing in enumerate(world.things):
        thing.identity = identity
    return world


def _palette(**colours: Colour) -> NDArray[np.float64]:
    palette = PALETTE.copy()
    for name, colour in colours.items():
        palette[Slot[name.upper()]] = colour
    return palette


def _shift(colour: Colour, choose: Random, amount: float = 0.08) -> Colour:
    light = 1 + choose.uniform(-amount, amount)
    return tuple(min(1.0, part * light * (1 + choose.uniform(-amount, amount) / 3)) for part in colour)  # type: ignore[return-value]


def _near_crossing(world: World, along: float, margin: float) -> bool:
    return any(abs(along - place) < world.road.side_half + margin for place in world.crossings)


def _line_up_buildings(world: World, choose: Random, side: int, end: float) -> None:
    """A row of buildings along one side; kind and gaps by quarter (town, suburb, park)."""
    town = choose.random()
    along, line = choose.uniform(-25.0, -8.0), world.road.building_line(side)
    hue = choose.randrange(len(WALLS))
    turn = 0.0 if side > 0 else math.pi
    while along < end:
        suburb = town > 0.62
        size = choose.uniform(9.0, 14.0) if suburb else choose.uniform(9.0, 24.0)
        setback = choose.uniform(2.0, 6.0) if suburb else choose.choice((0.0, 0.0, 0.0, 0.5))
        middle = along + size / 2
        blocked = any(
            abs(middle - place) < world.road.side_half + world.road.walk[0 if side < 0 else 1] + size / 2
            for place in world.crossings
        )
        if not blocked and (town < 0.88 or choose.random() < 0.4):
            wall = _shift(WALLS[(hue + choose.choice((0, 0, 1, 3, 5))) % len(WALLS)], choose, 0.12)
            second = _shift(wall, choose, 0.25)
            mesh = (
                surroundings.house(choose.randrange(surroundings.HOUSES))
                if suburb
                else surroundings.block(choose.randrange(surroundings.BLOCKS))
            )
            colours = _palette(
                body=wall, second=second, mark=choose.choice(ROOFS if suburb or choose.random() < 0.4 else AWNINGS)
            )
            world.things.append(
                Thing(
                    mesh,
                    colours,
                    middle,
                    side * (line + setback),
                    turn,
                    (1.0, choose.uniform(0.92, 1.1), size),
                    layer=size / 2,
                )
            )
        elif not blocked and choose.random() < 0.8:
            _plant(
                world,
                choose,
                middle + choose.uniform(-3, 3),
                side * (line + choose.uniform(2, 9)),
                choose.uniform(0.9, 1.4),
            )
        along += size if not suburb else size + choose.uniform(2.0, 9.0)
        if blocked:
            along += 3.0
        elif choose.random() < 0.1:
            along += choose.uniform(4.0, 12.0)


def _plant(world: World, choose: Random, along: float, across: float, scale: float) -> None:
    colours = _palette(body=_shift(choose.choice(LEAVES), choose, 0.15), second=_shift((0.3, 0.24, 0.19), choose, 0.2))
    world.things.append(
        Thing(
            surroundings.tree(choose.randrange(surroundings.TREES)),
            colours,
            along,
            across,
            0.0,
            (scale, scale, scale),
            layer=1.0,
        )
    )


def _line_up_trees(world: World, choose: Random, side: int, end: float) -> None:
    density, spacing = choose.random(), choose.uniform(9.0, 16.0)
    place = world.road.kerb(side) + 1.1
    line = world.road.building_line(side)
    along = choose.uniform(4.0, 14.0)
    while along < end and density > 0.35:
        if not _near_crossing(world, along, 6.0) and choose.random() < 0.75 and along < 95:
            _plant(world, choose, along, side * place, choose.uniform(0.7, 1.05))
        along += spacing * choose.uniform(0.8, 1.4)
    if choose.random() < 0.4:
        colours = _palette(body=_shift(choose.choice(LEAVES[:4]), choose, 0.1))
        start = choose.uniform(-5, 30)
        for k in range(choose.randint(1, 3)):
            if not _near_crossing(world, start + 14 * k, 12.0):
                world.things.append(
                    Thing(
                        surroundings.hedge(choose.randrange(8)),
                        colours,
                        start + 14 * k,
                        side * (line - 0.1),
                        0.0,
                        (1.0, choose.uniform(0.8, 1.3), 13.0),
                        layer=6.5,
                    )
                )


def _line_up_posts(world: World, choose: Random, side: int, end: float) -> None:
    """Lamps, posts, signs and bollards along the kerb."""
    place, turn = side * (world.road.kerb(side) + 0.55), 0.0 if side > 0 else math.pi
    along, spacing, style = choose.uniform(6.0, 30.0), choose.uniform(22.0, 34.0), choose.randrange(3)
    metal = _shift(choose.choice(((0.5, 0.52, 0.54), (0.3, 0.32, 0.33), (0.22, 0.28, 0.25))), choose)
    while along < end - 40:
        if not _near_crossing(world, along, 2.0):
            world.things.append(Thing(surroundings.lamp(style), _palette(metal=metal), along, place, turn))
        along += spacing
    along = choose.uniform(7.0, 30.0)
    while along < end - 75:
        if choose.random() < (0.85 if side > 0 else 0.55):
            style = choose.randrange(surroundings.SIGNS)
            mesh = surroundings.sign(style)
            face = (
                choose.choice(((0.07, 0.22, 0.62), (0.05, 0.35, 0.2), (0.1, 0.28, 0.7)))
                if style == 3
                else (0.07, 0.22, 0.62)
            )
            scale = choose.uniform(1.0, 1.25)
            world.things.append(
                Thing(
                    mesh,
                    _palette(face=face),
                    along,
                    place,
                    choose.uniform(-0.15, 0.15),
                    (scale, choose.uniform(0.9, 1.1), scale),
                    SIGN,
                )
            )
        along += choose.uniform(14.0, 30.0)
    if choose.random() < 0.25:
        along = choose.uniform(4.0, 30.0)
        for k in range(choose.randint(4, 8)):
            world.things.append(
                Thing(surroundings.post(1), _palette(), along + 2.0 * k, side * (world.road.kerb(side) + 0.4))
            )
    if choose.random() < 0.3:
        wood = _palette(body=_shift((0.33, 0.27, 0.22), choose, 0.2))
        for k in range(int(end // 32)):
            world.things.append(Thing(surroundings.post(0), wood, 11.0 + 32.0 * k, side * (abs(place) + 0.7)))


def _close_horizon(world: World, choose: Random, end: float) -> None:
    """Far trees and buildings behind everything, and a second row beside the street."""
    leaf = _palette(body=_shift(choose.choice(LEAVES[:4]), choose, 0.15))
    world.things.append(
        Thing(
            surroundings.treeline(choose.randrange(8)),
            leaf,
            end,
            0.0,
            0.0,
            (420.0, choose.uniform(7.0, 14.0), 1.0),
            layer=40.0,
        )
    )
    for _ in range(choose.randint(2, 6)):
        wall = _palette(body=_shift(choose.choice(WALLS), choose, 0.15))
        turn, size = choose.choice((-0.5 * math.pi, -0.4 * math.pi)), choose.uniform(16.0, 34.0)
        world.things.append(
            Thing(
                surroundings.block(choose.randrange(surroundings.BLOCKS)),
                wall,
                end - choose.uniform(2.0, 16.0),
                choose.uniform(-90, 90),
                turn,
                (1.0, choose.uniform(0.9, 1.6), size),
                layer=16.0,
            )
        )
    for side in (-1, 1):
        for place in world.crossings:
            line = world.road.building_line(side)
            wall = _palette(body=_shift(choose.choice(WALLS), choose, 0.15))
            world.things.append(
                Thing(
                    surroundings.block(choose.randrange(surroundings.BLOCKS)),
                    wall,
                    place + choose.uniform(-4, 4),
                    side * (line + choose.uniform(24, 40)),
                    0.0 if side > 0 else math.pi,
                    (1.0, 1.0, choose.uniform(24, 40)),
                    layer=30.0,
                )
            )


def _vehicle(
    world: World,
    choose: Random,
    along: float,
    across: float,
    turn: float,
    truck_share: float,
    speed: float = 0.0,
    drift: float = 0.0,
) -> float:
    """Put a car or truck on the street. Returns half its length."""
    paint = _shift(choose.choice(PAINTS), choose)
    if choose.random() < truck_share:
        mesh, kind = vehicles.truck(choose.randrange(8)), TRUCK
        cargo = choose.choice(
            (
                (0.93, 0.93, 0.93),
                (0.93, 0.93, 0.93),
                (0.75, 0.76, 0.78),
                (0.12, 0.3, 0.6),
                (0.8, 0.45, 0.1),
                (0.65, 0.1, 0.1),
                (0.2, 0.42, 0.28),
            )
        )
        colours = _palette(body=paint, second=_shift(cargo, choose), mark=choose.choice(PAINTS))
    else:
        mesh, kind = (
            vehicles.car(choose.choice(("sedan", "sedan", "hatchback", "hatchback", "estate", "suv", "suv", "van"))),
            CAR,
        )
        colours = _palette(body=paint, second=tuple(part * 0.9 for part in paint))
    scale = choose.uniform(0.94, 1.06)
    world.things.append(
        Thing(
            mesh,
            colours,
            along,
            across,
            turn,
            (scale, scale * choose.uniform(0.97, 1.04), scale * choose.uniform(0.97, 1.04)),
            kind,
            speed=speed,
            drift=drift,
        )
    )
    return mesh.size[2] * scale


def _fill_lanes(world: World, choose: Random, end: float) -> None:
    """Traffic: with us on the right, oncoming on the left."""
    busy = choose.random()
    for across, direction in world.road.lanes():
        own = direction > 0 and abs(across - world.road.own) < 0.1
        along, speed = choose.uniform(9.0, 40.0) if own else choose.uniform(4.0, 45.0), choose.uniform(6.0, 12.0)
        while along < min(end, 85.0 + (end - HORIZON) * 1.5):
            if choose.random() < 0.35 + 0.5 * busy:
                turn = choose.gauss(0, 0.02) + (0.0 if direction > 0 else math.pi)
                along += 2 * _vehicle(
                    world, choose, along, across + choose.uniform(-0.25, 0.25), turn, 0.15, direction * speed
                )
            elif choose.random() < 0.12:
                _ride(world, choose, along, across + 0.9 * direction, direction)
            along += choose.uniform(6.0, 34.0 - 12 * busy)


def _park(world: World, choose: Random, end: float) -> None:
    for side in (-1, 1):
        if not world.road.parking[0 if side < 0 else 1]:
            continue
        along, across = choose.uniform(4.0, 18.0), side * (world.road.kerb(side) - 1.05)
        while along < min(end, 75 + end - HORIZON):
            if choose.random() < 0.55 and not _near_crossing(world, along, 6.0):
                half = _vehicle(
                    world,
                    choose,
                    along,
                    across + choose.uniform(-0.1, 0.1),
                    0.0 if side > 0 or choose.random() < 0.3 else math.pi,
                    0.08,
                )
                along += max(0.0, half - 2.3)
            along += choose.uniform(5.9, 8.0)


def _ride(world: World, choose: Random, along: float, across: float, direction: int) -> None:
    colours = _person_colours(choose)
    colours[Slot.MARK] = choose.choice(PAINTS)
    scale = choose.uniform(0.95, 1.06)
    world.things.append(
        Thing(
            people.cyclist(choose.randrange(people.CYCLISTS)),
            colours,
            along,
            across,
            (0.0 if direction > 0 else math.pi) + choose.gauss(0, 0.08),
            (scale,) * 3,
            CYCLIST,
            speed=direction * choose.uniform(3.5, 5.5),
        )
    )


def _person_colours(choose: Random) -> NDArray[np.float64]:
    hair = choose.choice(((0.08, 0.06, 0.05), (0.2, 0.13, 0.08), (0.45, 0.35, 0.2), (0.5, 0.5, 0.5)))
    return _palette(
        body=_shift(choose.choice(CLOTHES), choose, 0.15),
        second=_shift(choose.choice(TROUSERS), choose, 0.15),
        skin=choose.choice(SKINS),
        hair=hair,
        mark=choose.choice(CLOTHES),
    )


def _stroll(world: World, choose: Random, along: float, across: float, turn: float, speed: float) -> None:
    style, scale, start = choose.randrange(people.PEDESTRIANS), choose.gauss(0.98, 0.05), choose.random()
    if choose.random() < 0.1:
        scale *= 0.72

    def stride(time: float) -> Mesh:
        return people.pedestrian(style, round((start + 0.9 * time * speed) * 8) % 8 / 8)

    world.things.append(
        Thing(
            stride(0.0),
            _person_colours(choose),
            along,
            across,
            turn,
            (scale,) * 3,
            PERSON,
            speed=speed * math.cos(turn),
            drift=speed * math.sin(turn),
            stride=stride,
        )
    )


def _walk(world: World, choose: Random, end: float) -> None:
    """People on the pavements, alone or in pairs, some crossing; cyclists near the kerb."""
    many = choose.random() * (0.5 if world.light.scene in ("rain", "night") else 1.0)
    for side in (-1, 1):
        along = choose.uniform(5.0, 20.0)
        inner, outer = world.road.kerb(side) + 0.7, world.road.building_line(side) - 0.5
        while along < 48 + (end - HORIZON):
            if choose.random() < 0.3 + 0.6 * many:
                across, turn, speed = (
                    side * choose.uniform(inner, max(inner, outer)),
                    choose.choice((0.0, math.pi)) + choose.gauss(0, 0.15),
                    choose.uniform(0.9, 1.6),
                )
                _stroll(world, choose, along, across, turn, speed)
                if choose.random() < 0.25:
                    _stroll(
                        world,
                        choose,
                        along + choose.uniform(-0.2, 0.2),
                        across + choose.choice((-0.65, 0.65)),
                        turn,
                        speed,
                    )
            along += choose.uniform(5.0, 18.0)
    for _ in range(choose.choice((0, 0, 1, 1, 2)) + round((end - HORIZON) / 60)):
        direction = choose.choice((-1, 1, 1))
        _ride(
            world,
            choose,
            choose.uniform(7.0, 42.0 + end - HORIZON),
            direction
            * (
                world.road.kerb(direction)
                - choose.uniform(0.5, 1.0)
                - (2.1 if world.road.parking[0 if direction < 0 else 1] else 0)
            ),
            direction,
        )
    if choose.random() < 0.2 and not world.crossings:
        _stroll(
            world, choose, choose.uniform(9.0, 30.0), choose.uniform(-4, 4), choose.choice((-0.5, 0.5)) * math.pi, 1.2
        )


def _furnish_crossings(world: World, choose: Random) -> None:
    """Traffic lights, people on the zebra, cars that cross."""
    for place in world.crossings:
        half = world.road.side_half
        state, lights = choose.choice((0, 0, 1, 2, 2)), choose.random() < 0.75
        for side in (-1, 1):
            if lights:
                _signals(world, choose, place, side, state)
            if choose.random() < 0.45:
                _stroll(
                    world,
                    choose,
                    place + side * (half + 1.8),
                    choose.uniform(-5, 5),
                    choose.choice((-0.5, 0.5)) * math.pi,
                    1.3,
                )
            if choose.random() < 0.35:
                direction = side
                _vehicle(
                    world,
                    choose,
                    place - direction * half * 0.45,
                    choose.uniform(-22, 22) - 4 * direction,
                    direction * 0.5 * math.pi,
                    0.15,
                    drift=direction * 6.0,
                )
            elif choose.random() < 0.2:
                across = choose.uniform(-9, 9)
                _ride(world, choose, place + side * 1.5, across, 1)
                rider = world.things[-1]
                rider.turn, rider.drift, rider.speed = side * 0.5 * math.pi, side * 4.0, 0.0


def _signals(world: World, choose: Random, place: float, side: int, state: int) -> None:
    """Traffic lights before and behind the side street at ``place``; on our side sometimes on a mast over the road."""
    metal = _palette(metal=_shift((0.4, 0.42, 0.43), choose, 0.2))
    across, half = side * (world.road.kerb(side) + 0.5), world.road.side_half
    mast = side > 0 and choose.random() < 0.35
    for along in (place - half - 0.8, place + half + 2.6):
        if along < place or choose.random() < 0.4:
            turn = choose.gauss(0, 0.1)
            world.things.append(Thing(surroundings.traffic_light(state, mast), metal, along, across, turn, kind=LIGHT))
            if mast:
                world.things.append(Thing(surroundings.hanging_light(state), metal, along, across, turn, kind=LIGHT))
