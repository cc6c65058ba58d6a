"""Road users: cars and trucks, cyclists, pedestrians."""

from __future__ import annotations

import math
from random import Random

from perception.synthetic import palette as colors
from perception.synthetic import people, vehicles
from perception.synthetic.mesh import Mesh
from perception.synthetic.palette import make_palette, perturb_color
from perception.synthetic.roadside import place_traffic_lights
from perception.synthetic.world import (
    BACKDROP_DISTANCE,
    CAR_CLASS,
    CYCLIST_CLASS,
    PERSON_CLASS,
    TRUCK_CLASS,
    StreetObject,
    World,
)

SAMPLED_CAR_STYLES = ("sedan", "sedan", "hatchback", "hatchback", "estate", "suv", "suv", "van")
CROSSING_YAW = math.pi / 2


def fill_lanes(world: World, rng: Random, end: float) -> None:
    """Place moving cars and trucks: same direction on the right, oncoming on the left."""
    busy = rng.random()
    for across, direction in world.road.lane_centers():
        own = direction > 0 and abs(across - world.road.own_lane_center) < 0.1
        along, speed = rng.uniform(9.0 if own else 4.0, 42.0), rng.uniform(6.0, 12.0)
        while along < min(end, 85.0 + (end - BACKDROP_DISTANCE) * 1.5):
            if rng.random() < 0.35 + 0.5 * busy:
                turn = rng.gauss(0, 0.02) + (0.0 if direction > 0 else math.pi)
                thing = _make_vehicle(rng, along, across + rng.uniform(-0.25, 0.25), turn, 0.16)
                thing.speed = direction * speed
                thing.along += thing.half_extent[0]
                along += 2 * thing.half_extent[0]
                world.add_if_free(thing)
            elif rng.random() < 0.12:
                world.add_if_free(_make_cyclist(rng, along, across + 0.9 * direction, direction))
            along += rng.uniform(6.0, 34.0 - 12 * busy)


def place_parked_cars(world: World, rng: Random, end: float) -> None:
    """Place parked cars in the parking bays of the road."""
    for side in (-1, 1):
        if not world.road.has_parking[side > 0]:
            continue
        along, place = rng.uniform(4.0, 18.0), side * (world.road.curb_distance(side) - 1.05)
        while along < min(end, end - BACKDROP_DISTANCE + 75):
            if rng.random() < 0.55 and not world.is_near_crossing(along, 6.0):
                turn = 0.0 if side > 0 or rng.random() < 0.3 else math.pi
                world.add_if_free(_make_vehicle(rng, along, place + rng.uniform(-0.1, 0.1), turn, 0.08))
            along += rng.uniform(5.9, 8.0)


def place_pedestrians(world: World, rng: Random, end: float) -> None:
    """Place people on the sidewalks, alone or in pairs, and cyclists near the curb."""
    many = rng.random() * (0.5 if world.light.scene_class in ("rain", "night") else 1.0)
    extra = end - BACKDROP_DISTANCE
    for side in (-1, 1):
        along = rng.uniform(5.0, 20.0)
        inner = world.road.curb_distance(side) + 0.7
        outer = max(inner, world.road.building_distance(side) - 0.5)
        while along < 48 + extra:
            if rng.random() < 0.3 + 0.6 * many:
                across, speed = side * rng.uniform(inner, outer), rng.uniform(0.9, 1.6)
                turn = rng.choice((0.0, math.pi)) + rng.gauss(0, 0.15)
                world.add_if_free(_make_pedestrian(rng, along, across, turn, speed))
                if rng.random() < 0.25:
                    beside = across + rng.choice((-0.65, 0.65))
                    world.add_if_free(_make_pedestrian(rng, along + rng.uniform(-0.2, 0.2), beside, turn, speed))
            along += rng.uniform(5.0, 18.0)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 2)) + round(extra / 60)):
        direction = rng.choice((-1, 1, 1))
        bay = 2.1 if world.road.has_parking[direction > 0] else 0.0
        across = direction * (world.road.curb_distance(direction) - rng.uniform(0.5, 0.9) - bay)
        world.add_if_free(_make_cyclist(rng, rng.uniform(7.0, 42.0 + extra), across, direction))
    if rng.random() < 0.2 and not world.crossings:
        turn = rng.choice((-1, 1)) * CROSSING_YAW
        world.add_if_free(_make_pedestrian(rng, rng.uniform(9.0, 30.0), rng.uniform(-4, 4), turn, 1.2))


def fill_crossings(world: World, rng: Random) -> None:
    """Place traffic lights, people on the zebra crossing, and crossing cars and cyclists at each side street."""
    for place in world.crossings:
        half = world.road.side_street_half_width
        state, lights = rng.choice((0, 0, 1, 2, 2)), rng.random() < 0.8
        for side in (-1, 1):
            if lights:
                place_traffic_lights(world, rng, place, side, state)
            if rng.random() < 0.45:
                turn = rng.choice((-1, 1)) * CROSSING_YAW
                world.add_if_free(_make_pedestrian(rng, place + side * (half + 1.8), rng.uniform(-5, 5), turn, 1.3))
            if rng.random() < 0.4:
                across = rng.uniform(-22, 22) - 4 * side
                thing = _make_vehicle(rng, place - side * half * 0.45, across, side * CROSSING_YAW, 0.15)
                thing.lateral_speed = side * 6.0
                world.add_if_free(thing)
            elif rng.random() < 0.25:
                thing = _make_cyclist(rng, place + side * 1.5, rng.uniform(-9, 9), 1)
                thing.yaw, thing.lateral_speed, thing.speed = side * CROSSING_YAW, side * 4.0, 0.0
                world.add_if_free(thing)


def _make_vehicle(rng: Random, along: float, across: float, yaw: float, truck_probability: float) -> StreetObject:
    """A truck with probability ``truck_probability``, otherwise a car."""
    paint = perturb_color(rng.choice(colors.PAINTS), rng)
    if rng.random() < truck_probability:
        mesh, kind = vehicles.build_truck(rng.randrange(8)), TRUCK_CLASS
        cargo = perturb_color(rng.choice(colors.CARGO), rng)
        look = make_palette(body=paint, second=cargo, mark=rng.choice(colors.PAINTS))
    else:
        mesh, kind = vehicles.build_car(rng.choice(SAMPLED_CAR_STYLES)), CAR_CLASS
        look = make_palette(body=paint, second=perturb_color(paint, rng))
    scale = rng.uniform(0.94, 1.06)
    sizes = (scale, scale * rng.uniform(0.97, 1.04), scale * rng.uniform(0.97, 1.04))
    return StreetObject(mesh, look, along, across, yaw, sizes, kind)


def _make_cyclist(rng: Random, along: float, across: float, direction: int) -> StreetObject:
    mesh, scale = people.build_cyclist(rng.randrange(people.NUM_CYCLISTS)), rng.uniform(0.95, 1.06)
    turn = (0.0 if direction > 0 else math.pi) + rng.gauss(0, 0.08)
    speed = direction * rng.uniform(3.5, 5.5)
    return StreetObject(
        mesh, _sample_clothes(rng), along, across, turn, (scale, scale, scale), CYCLIST_CLASS, speed=speed
    )


def _make_pedestrian(rng: Random, along: float, across: float, yaw: float, speed: float) -> StreetObject:
    style, scale, start = rng.randrange(people.NUM_PEDESTRIANS), rng.gauss(0.98, 0.05), rng.random()
    if rng.random() < 0.1:
        scale *= 0.72  # a child

    def stride(time: float) -> Mesh:
        return people.build_pedestrian(style, round((start + 0.9 * time * speed) * 8) % 8 / 8)

    thing = StreetObject(
        stride(0.0), _sample_clothes(rng), along, across, yaw, (scale, scale, scale), PERSON_CLASS, mesh_at=stride
    )
    thing.speed, thing.lateral_speed = speed * math.cos(yaw), speed * math.sin(yaw)
    return thing


def _sample_clothes(rng: Random) -> colors.Palette:
    return make_palette(
        body=perturb_color(rng.choice(colors.CLOTHES), rng, 0.15),
        second=perturb_color(rng.choice(colors.TROUSERS), rng, 0.15),
        skin=rng.choice(colors.SKINS),
        hair=rng.choice(colors.HAIR),
        mark=rng.choice(colors.CLOTHES + colors.PAINTS),
    )
