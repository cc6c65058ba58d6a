"""Objects along the road: buildings, trees, hedges, poles, signs, and a backdrop at the end of the street."""

from __future__ import annotations

import math
from random import Random

from perception.synthetic import buildings, furniture, plants
from perception.synthetic import palette as colors
from perception.synthetic.palette import RgbColor, make_palette, perturb_color
from perception.synthetic.world import TRAFFIC_LIGHT_CLASS, TRAFFIC_SIGN_CLASS, StreetObject, World


def place_buildings(world: World, rng: Random, side: int, end: float) -> None:
    """Place buildings along one side: houses in gardens, closed blocks, or a park with a few of them."""
    town, hue = rng.random(), rng.randrange(len(colors.WALLS))
    suburb, park = town > 0.62, town > 0.88
    along, line, turn = rng.uniform(-25.0, -8.0), world.road.building_distance(side), _yaw_to_road(side)
    while along < end:
        size = rng.uniform(9.0, 14.0 if suburb else 24.0)
        setback = rng.uniform(2.0, 6.0) if suburb else rng.choice((0.0, 0.0, 0.0, 0.5))
        middle = along + size / 2
        blocked = world.is_near_crossing(middle, world.road.sidewalk_widths[side > 0] + size / 2)
        if blocked:
            along += 3.0
        elif not park or rng.random() < 0.4:
            wall = perturb_color(colors.WALLS[(hue + rng.choice((0, 0, 1, 3, 5))) % len(colors.WALLS)], rng, 0.12)
            scale = (1.0, rng.uniform(0.92, 1.1), size)
            mesh = buildings.build_house(rng.randrange(buildings.NUM_HOUSES)) if suburb else _choose_block(rng)
            top = rng.choice(colors.ROOFS if suburb or rng.random() < 0.4 else colors.AWNINGS)
            look = make_palette(body=wall, second=perturb_color(wall, rng, 0.25), mark=top)
            world.add(StreetObject(mesh, look, middle, side * (line + setback), turn, scale, paint_offset=size / 2))
        elif rng.random() < 0.8:
            _place_tree(world, rng, middle, side * (line + rng.uniform(2, 9)), rng.uniform(0.9, 1.4))
        along += size + (rng.uniform(2.0, 9.0) if suburb else 0.0)
        if rng.random() < 0.1:
            along += rng.uniform(4.0, 12.0)


def place_trees(world: World, rng: Random, side: int, end: float) -> None:
    """Place trees along the curb and hedges along the gardens, or none."""
    spacing, place = rng.uniform(9.0, 16.0), side * (world.road.curb_distance(side) + 1.1)
    along = rng.uniform(4.0, 14.0) if rng.random() < 0.65 else end
    while along < end - 40.0:
        if not world.is_near_crossing(along, 6.0) and rng.random() < 0.7:
            _place_tree(world, rng, along, place, rng.uniform(0.7, 1.05))
        along += spacing * rng.uniform(0.8, 1.4)
    if rng.random() < 0.4:
        look = make_palette(body=perturb_color(rng.choice(colors.LEAVES[:4]), rng, 0.1))
        along, place = rng.uniform(-5, 30), side * (world.road.building_distance(side) - 0.1)
        for _ in range(rng.randint(1, 3)):
            if not world.is_near_crossing(along, 12.0):
                scale = (1.0, rng.uniform(0.8, 1.3), 13.0)
                world.add(
                    StreetObject(plants.build_hedge(rng.randrange(8)), look, along, place, 0.0, scale, paint_offset=6.5)
                )
            along += 14.0


def _place_tree(world: World, rng: Random, along: float, across: float, scale: float) -> None:
    evergreen = rng.random() < 0.18
    leaf = perturb_color(rng.choice(colors.NEEDLES if evergreen else colors.LEAVES), rng, 0.15)
    style = rng.randrange(plants.NUM_CONIFERS if evergreen else plants.NUM_TREES)
    mesh = plants.build_conifer(style) if evergreen else plants.build_tree(style)
    look = make_palette(body=leaf, second=perturb_color(colors.BARK, rng, 0.2))
    world.add(StreetObject(mesh, look, along, across, 0.0, (scale, scale, scale), paint_offset=1.0))


def place_posts(world: World, rng: Random, side: int, end: float) -> None:
    """Place lamps, signs, bollards and wooden posts along the curb."""
    curb = world.road.curb_distance(side)
    along, spacing, style = rng.uniform(6.0, 30.0), rng.uniform(22.0, 34.0), rng.randrange(3)
    look = make_palette(metal=perturb_color(rng.choice(colors.METALS), rng))
    while along < end - 40:
        if not world.is_near_crossing(along, 2.0):
            world.add(StreetObject(furniture.build_lamp(style), look, along, side * (curb + 0.55), _yaw_to_road(side)))
        along += spacing
    along = rng.uniform(7.0, 30.0)
    while along < end - 75:
        if rng.random() < (0.85 if side > 0 else 0.55):
            _place_sign(world, rng, along, side * (curb + 0.55))
        along += rng.uniform(14.0, 30.0)
    if rng.random() < 0.25:
        along = rng.uniform(4.0, 30.0)
        for k in range(rng.randint(4, 8)):
            world.add(StreetObject(furniture.build_post(1), make_palette(), along + 2.0 * k, side * (curb + 0.4)))
    if rng.random() < 0.3:
        look = make_palette(body=perturb_color(colors.BARK, rng, 0.2))
        for k in range(int(end // 32)):
            world.add(StreetObject(furniture.build_post(0), look, 11.0 + 32.0 * k, side * (curb + 1.25)))


def _place_sign(world: World, rng: Random, along: float, across: float) -> None:
    style = rng.randrange(furniture.NUM_SIGNS)
    face: RgbColor = rng.choice(colors.BOARDS) if style == furniture.SQUARE_SIGN else colors.BOARDS[0]
    scale, height = rng.uniform(1.05, 1.3), rng.uniform(0.9, 1.1)
    turn = rng.uniform(-0.15, 0.15)
    world.add(
        StreetObject(
            furniture.build_sign(style),
            make_palette(face=face),
            along,
            across,
            turn,
            (scale, height, scale),
            TRAFFIC_SIGN_CLASS,
        )
    )


def place_traffic_lights(world: World, rng: Random, crossing: float, side: int, state: int) -> None:
    """Place traffic lights before and after the side street at ``crossing``.

    On the camera's side, some are on a mast over the road.
    """
    look = make_palette(metal=perturb_color(colors.METALS[0], rng, 0.3))
    across, half = side * (world.road.curb_distance(side) + 0.5), world.road.side_street_half_width
    mast, size = side > 0 and rng.random() < 0.35, rng.uniform(1.1, 1.3)
    for along in (crossing - half - 0.8, crossing + half + 2.6):
        if along < crossing or rng.random() < 0.4:
            turn = rng.gauss(0, 0.1)
            world.add(
                StreetObject(
                    furniture.build_traffic_light(state, mast),
                    look,
                    along,
                    across,
                    turn,
                    (size, size, size),
                    TRAFFIC_LIGHT_CLASS,
                )
            )
            if mast:
                world.add(
                    StreetObject(
                        furniture.build_hanging_light(state),
                        look,
                        along,
                        across,
                        turn,
                        (size, size, size),
                        TRAFFIC_LIGHT_CLASS,
                    )
                )


def place_backdrop(world: World, rng: Random, end: float) -> None:
    """Place distant trees and buildings behind everything, and a row at the end of the side streets."""
    look = make_palette(body=perturb_color(rng.choice(colors.LEAVES[:4]), rng, 0.15))
    scale = (420.0, rng.uniform(7.0, 14.0), 1.0)
    world.add(StreetObject(plants.build_treeline(rng.randrange(8)), look, end, 0.0, 0.0, scale, paint_offset=40.0))
    for _ in range(rng.randint(2, 6)):
        look = make_palette(body=perturb_color(rng.choice(colors.WALLS), rng, 0.15))
        along, across = end - rng.uniform(2.0, 16.0), rng.uniform(-90, 90)
        turn, scale = rng.uniform(-0.5, -0.4) * math.pi, (1.0, rng.uniform(0.9, 1.6), rng.uniform(16.0, 34.0))
        world.add(StreetObject(_choose_block(rng), look, along, across, turn, scale, paint_offset=16.0))
    for place in world.crossings:
        for side in (-1, 1):
            look = make_palette(body=perturb_color(rng.choice(colors.WALLS), rng, 0.15))
            across = side * (world.road.building_distance(side) + rng.uniform(24, 40))
            scale = (1.0, 1.0, rng.uniform(24, 40))
            world.add(
                StreetObject(
                    _choose_block(rng),
                    look,
                    place + rng.uniform(-4, 4),
                    across,
                    _yaw_to_road(side),
                    scale,
                    paint_offset=30.0,
                )
            )


def _choose_block(rng: Random) -> buildings.Mesh:
    return buildings.build_block(rng.randrange(buildings.NUM_BLOCKS))


def _yaw_to_road(side: int) -> float:
    """Yaw that turns an object with its front at -x towards the road."""
    return 0.0 if side > 0 else math.pi
