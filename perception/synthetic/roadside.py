"""What stands along the road: buildings, trees, hedges, poles and signs, and the backdrop that closes the street."""

from __future__ import annotations

import math
from random import Random

from perception.synthetic import buildings, furniture, plants
from perception.synthetic import palette as colours
from perception.synthetic.palette import Colour, palette, shift
from perception.synthetic.world import LIGHT, SIGN, Thing, World


def line_up_buildings(world: World, choose: Random, side: int, end: float) -> None:
    """A row along one side: houses in gardens, closed blocks, or a park with a few of them."""
    town, hue = choose.random(), choose.randrange(len(colours.WALLS))
    suburb, park = town > 0.62, town > 0.88
    along, line, turn = choose.uniform(-25.0, -8.0), world.road.building_line(side), _facing(side)
    while along < end:
        size = choose.uniform(9.0, 14.0 if suburb else 24.0)
        setback = choose.uniform(2.0, 6.0) if suburb else choose.choice((0.0, 0.0, 0.0, 0.5))
        middle = along + size / 2
        blocked = world.near_crossing(middle, world.road.walk[side > 0] + size / 2)
        if blocked:
            along += 3.0
        elif not park or choose.random() < 0.4:
            wall = shift(colours.WALLS[(hue + choose.choice((0, 0, 1, 3, 5))) % len(colours.WALLS)], choose, 0.12)
            scale = (1.0, choose.uniform(0.92, 1.1), size)
            mesh = buildings.house(choose.randrange(buildings.HOUSES)) if suburb else _block(choose)
            top = choose.choice(colours.ROOFS if suburb or choose.random() < 0.4 else colours.AWNINGS)
            look = palette(body=wall, second=shift(wall, choose, 0.25), mark=top)
            world.put(Thing(mesh, look, middle, side * (line + setback), turn, scale, layer=size / 2))
        elif choose.random() < 0.8:
            _plant(world, choose, middle, side * (line + choose.uniform(2, 9)), choose.uniform(0.9, 1.4))
        along += size + (choose.uniform(2.0, 9.0) if suburb else 0.0)
        if choose.random() < 0.1:
            along += choose.uniform(4.0, 12.0)


def line_up_trees(world: World, choose: Random, side: int, end: float) -> None:
    """Trees along the kerb and hedges along the gardens, or none."""
    spacing, place = choose.uniform(9.0, 16.0), side * (world.road.kerb(side) + 1.1)
    along = choose.uniform(4.0, 14.0) if choose.random() < 0.65 else end
    while along < end - 40.0:
        if not world.near_crossing(along, 6.0) and choose.random() < 0.7:
            _plant(world, choose, along, place, choose.uniform(0.7, 1.05))
        along += spacing * choose.uniform(0.8, 1.4)
    if choose.random() < 0.4:
        look = palette(body=shift(choose.choice(colours.LEAVES[:4]), choose, 0.1))
        along, place = choose.uniform(-5, 30), side * (world.road.building_line(side) - 0.1)
        for _ in range(choose.randint(1, 3)):
            if not world.near_crossing(along, 12.0):
                scale = (1.0, choose.uniform(0.8, 1.3), 13.0)
                world.put(Thing(plants.hedge(choose.randrange(8)), look, along, place, 0.0, scale, layer=6.5))
            along += 14.0


def _plant(world: World, choose: Random, along: float, across: float, scale: float) -> None:
    evergreen = choose.random() < 0.18
    leaf = shift(choose.choice(colours.NEEDLES if evergreen else colours.LEAVES), choose, 0.15)
    style = choose.randrange(plants.CONIFERS if evergreen else plants.TREES)
    mesh = plants.conifer(style) if evergreen else plants.tree(style)
    look = palette(body=leaf, second=shift(colours.BARK, choose, 0.2))
    world.put(Thing(mesh, look, along, across, 0.0, (scale, scale, scale), layer=1.0))


def line_up_posts(world: World, choose: Random, side: int, end: float) -> None:
    """Lamps, signs, bollards and wooden posts along the kerb."""
    kerb = world.road.kerb(side)
    along, spacing, style = choose.uniform(6.0, 30.0), choose.uniform(22.0, 34.0), choose.randrange(3)
    look = palette(metal=shift(choose.choice(colours.METALS), choose))
    while along < end - 40:
        if not world.near_crossing(along, 2.0):
            world.put(Thing(furniture.lamp(style), look, along, side * (kerb + 0.55), _facing(side)))
        along += spacing
    along = choose.uniform(7.0, 30.0)
    while along < end - 75:
        if choose.random() < (0.85 if side > 0 else 0.55):
            _put_sign(world, choose, along, side * (kerb + 0.55))
        along += choose.uniform(14.0, 30.0)
    if choose.random() < 0.25:
        along = choose.uniform(4.0, 30.0)
        for k in range(choose.randint(4, 8)):
            world.put(Thing(furniture.post(1), palette(), along + 2.0 * k, side * (kerb + 0.4)))
    if choose.random() < 0.3:
        look = palette(body=shift(colours.BARK, choose, 0.2))
        for k in range(int(end // 32)):
            world.put(Thing(furniture.post(0), look, 11.0 + 32.0 * k, side * (kerb + 1.25)))


def _put_sign(world: World, choose: Random, along: float, across: float) -> None:
    style = choose.randrange(furniture.SIGNS)
    face: Colour = choose.choice(colours.BOARDS) if style == furniture.SQUARE else colours.BOARDS[0]
    scale, height = choose.uniform(1.05, 1.3), choose.uniform(0.9, 1.1)
    turn = choose.uniform(-0.15, 0.15)
    world.put(Thing(furniture.sign(style), palette(face=face), along, across, turn, (scale, height, scale), SIGN))


def put_signals(world: World, choose: Random, place: float, side: int, state: int) -> None:
    """Traffic lights before and behind the side street at ``place``; on our side sometimes on a mast over the road."""
    look = palette(metal=shift(colours.METALS[0], choose, 0.3))
    across, half = side * (world.road.kerb(side) + 0.5), world.road.side_half
    mast, size = side > 0 and choose.random() < 0.35, choose.uniform(1.1, 1.3)
    for along in (place - half - 0.8, place + half + 2.6):
        if along < place or choose.random() < 0.4:
            turn = choose.gauss(0, 0.1)
            world.put(Thing(furniture.traffic_light(state, mast), look, along, across, turn, (size, size, size), LIGHT))
            if mast:
                world.put(Thing(furniture.hanging_light(state), look, along, across, turn, (size, size, size), LIGHT))


def close_horizon(world: World, choose: Random, end: float) -> None:
    """Far trees and buildings behind everything, and a row that closes the side streets."""
    look = palette(body=shift(choose.choice(colours.LEAVES[:4]), choose, 0.15))
    scale = (420.0, choose.uniform(7.0, 14.0), 1.0)
    world.put(Thing(plants.treeline(choose.randrange(8)), look, end, 0.0, 0.0, scale, layer=40.0))
    for _ in range(choose.randint(2, 6)):
        look = palette(body=shift(choose.choice(colours.WALLS), choose, 0.15))
        along, across = end - choose.uniform(2.0, 16.0), choose.uniform(-90, 90)
        turn, scale = choose.uniform(-0.5, -0.4) * math.pi, (1.0, choose.uniform(0.9, 1.6), choose.uniform(16.0, 34.0))
        world.put(Thing(_block(choose), look, along, across, turn, scale, layer=16.0))
    for place in world.crossings:
        for side in (-1, 1):
            look = palette(body=shift(choose.choice(colours.WALLS), choose, 0.15))
            across = side * (world.road.building_line(side) + choose.uniform(24, 40))
            scale = (1.0, 1.0, choose.uniform(24, 40))
            world.put(
                Thing(_block(choose), look, place + choose.uniform(-4, 4), across, _facing(side), scale, layer=30.0)
            )


def _block(choose: Random) -> buildings.Mesh:
    return buildings.block(choose.randrange(buildings.BLOCKS))


def _facing(side: int) -> float:
    """Turn of what looks along its own -x, so that it looks at the road."""
    return 0.0 if side > 0 else math.pi
