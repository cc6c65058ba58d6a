"""Who uses the street: cars and trucks, cyclists, people on foot."""

from __future__ import annotations

import math
from random import Random

from perception.synthetic import palette as colours
from perception.synthetic import people, vehicles
from perception.synthetic.mesh import Mesh
from perception.synthetic.palette import palette, shift
from perception.synthetic.roadside import put_signals
from perception.synthetic.world import CAR, CYCLIST, HORIZON, PERSON, TRUCK, Thing, World

STYLES = ("sedan", "sedan", "hatchback", "hatchback", "estate", "suv", "suv", "van")
ACROSS = math.pi / 2


def fill_lanes(world: World, choose: Random, end: float) -> None:
    """Moving cars and trucks: with us on the right, oncoming on the left."""
    busy = choose.random()
    for across, direction in world.road.lanes():
        own = direction > 0 and abs(across - world.road.own) < 0.1
        along, speed = choose.uniform(9.0 if own else 4.0, 42.0), choose.uniform(6.0, 12.0)
        while along < min(end, 85.0 + (end - HORIZON) * 1.5):
            if choose.random() < 0.35 + 0.5 * busy:
                turn = choose.gauss(0, 0.02) + (0.0 if direction > 0 else math.pi)
                thing = _vehicle(choose, along, across + choose.uniform(-0.25, 0.25), turn, 0.16)
                thing.speed = direction * speed
                thing.along += thing.reach[0]
                along += 2 * thing.reach[0]
                world.put_if_free(thing)
            elif choose.random() < 0.12:
                world.put_if_free(_rider(choose, along, across + 0.9 * direction, direction))
            along += choose.uniform(6.0, 34.0 - 12 * busy)


def park(world: World, choose: Random, end: float) -> None:
    """Parked cars in the bays that the road has."""
    for side in (-1, 1):
        if not world.road.parking[side > 0]:
            continue
        along, place = choose.uniform(4.0, 18.0), side * (world.road.kerb(side) - 1.05)
        while along < min(end, end - HORIZON + 75):
            if choose.random() < 0.55 and not world.near_crossing(along, 6.0):
                turn = 0.0 if side > 0 or choose.random() < 0.3 else math.pi
                world.put_if_free(_vehicle(choose, along, place + choose.uniform(-0.1, 0.1), turn, 0.08))
            along += choose.uniform(5.9, 8.0)


def walk(world: World, choose: Random, end: float) -> None:
    """People on the pavements, alone or in pairs; cyclists near the kerb."""
    many = choose.random() * (0.5 if world.light.scene in ("rain", "night") else 1.0)
    extra = end - HORIZON
    for side in (-1, 1):
        along = choose.uniform(5.0, 20.0)
        inner = world.road.kerb(side) + 0.7
        outer = max(inner, world.road.building_line(side) - 0.5)
        while along < 48 + extra:
            if choose.random() < 0.3 + 0.6 * many:
                across, speed = side * choose.uniform(inner, outer), choose.uniform(0.9, 1.6)
                turn = choose.choice((0.0, math.pi)) + choose.gauss(0, 0.15)
                world.put_if_free(_walker(choose, along, across, turn, speed))
                if choose.random() < 0.25:
                    beside = across + choose.choice((-0.65, 0.65))
                    world.put_if_free(_walker(choose, along + choose.uniform(-0.2, 0.2), beside, turn, speed))
            along += choose.uniform(5.0, 18.0)
    for _ in range(choose.choice((0, 0, 1, 1, 2, 2)) + round(extra / 60)):
        direction = choose.choice((-1, 1, 1))
        bay = 2.1 if world.road.parking[direction > 0] else 0.0
        across = direction * (world.road.kerb(direction) - choose.uniform(0.5, 0.9) - bay)
        world.put_if_free(_rider(choose, choose.uniform(7.0, 42.0 + extra), across, direction))
    if choose.random() < 0.2 and not world.crossings:
        turn = choose.choice((-1, 1)) * ACROSS
        world.put_if_free(_walker(choose, choose.uniform(9.0, 30.0), choose.uniform(-4, 4), turn, 1.2))


def furnish_crossings(world: World, choose: Random) -> None:
    """At every side street: traffic lights, people on the zebra, cars and cyclists that cross."""
    for place in world.crossings:
        half = world.road.side_half
        state, lights = choose.choice((0, 0, 1, 2, 2)), choose.random() < 0.8
        for side in (-1, 1):
            if lights:
                put_signals(world, choose, place, side, state)
            if choose.random() < 0.45:
                turn = choose.choice((-1, 1)) * ACROSS
                world.put_if_free(_walker(choose, place + side * (half + 1.8), choose.uniform(-5, 5), turn, 1.3))
            if choose.random() < 0.4:
                across = choose.uniform(-22, 22) - 4 * side
                thing = _vehicle(choose, place - side * half * 0.45, across, side * ACROSS, 0.15)
                thing.drift = side * 6.0
                world.put_if_free(thing)
            elif choose.random() < 0.25:
                thing = _rider(choose, place + side * 1.5, choose.uniform(-9, 9), 1)
                thing.turn, thing.drift, thing.speed = side * ACROSS, side * 4.0, 0.0
                world.put_if_free(thing)


def _vehicle(choose: Random, along: float, across: float, turn: float, trucks: float) -> Thing:
    """A car, or with the probability ``trucks`` a truck."""
    paint = shift(choose.choice(colours.PAINTS), choose)
    if choose.random() < trucks:
        mesh, kind = vehicles.truck(choose.randrange(8)), TRUCK
        cargo = shift(choose.choice(colours.CARGO), choose)
        look = palette(body=paint, second=cargo, mark=choose.choice(colours.PAINTS))
    else:
        mesh, kind = vehicles.car(choose.choice(STYLES)), CAR
        look = palette(body=paint, second=shift(paint, choose))
    scale = choose.uniform(0.94, 1.06)
    sizes = (scale, scale * choose.uniform(0.97, 1.04), scale * choose.uniform(0.97, 1.04))
    return Thing(mesh, look, along, across, turn, sizes, kind)


def _rider(choose: Random, along: float, across: float, direction: int) -> Thing:
    mesh, scale = people.cyclist(choose.randrange(people.CYCLISTS)), choose.uniform(0.95, 1.06)
    turn = (0.0 if direction > 0 else math.pi) + choose.gauss(0, 0.08)
    speed = direction * choose.uniform(3.5, 5.5)
    return Thing(mesh, _clothes(choose), along, across, turn, (scale, scale, scale), CYCLIST, speed=speed)


def _walker(choose: Random, along: float, across: float, turn: float, speed: float) -> Thing:
    style, scale, start = choose.randrange(people.PEDESTRIANS), choose.gauss(0.98, 0.05), choose.random()
    if choose.random() < 0.1:
        scale *= 0.72  # a child

    def stride(time: float) -> Mesh:
        return people.pedestrian(style, round((start + 0.9 * time * speed) * 8) % 8 / 8)

    thing = Thing(stride(0.0), _clothes(choose), along, across, turn, (scale, scale, scale), PERSON, stride=stride)
    thing.speed, thing.drift = speed * math.cos(turn), speed * math.sin(turn)
    return thing


def _clothes(choose: Random) -> colours.Palette:
    return palette(
        body=shift(choose.choice(colours.CLOTHES), choose, 0.15),
        second=shift(choose.choice(colours.TROUSERS), choose, 0.15),
        skin=choose.choice(colours.SKINS),
        hair=choose.choice(colours.HAIR),
        mark=choose.choice(colours.CLOTHES + colours.PAINTS),
    )
