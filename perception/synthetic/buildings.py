"""Town houses, office blocks and detached houses."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from perception.synthetic.mesh import Mesh, MeshBuilder, Point, Slot, crop_quad
from perception.synthetic.street_image import BUILDING

NUM_BLOCKS, NUM_HOUSES = 40, 20
"""Number of different shapes."""


@lru_cache(maxsize=2 * NUM_BLOCKS)
def build_block(style: int) -> Mesh:
    """Build a town house or office block. The front faces -x; length 1 along z, metres otherwise."""
    choose = Random(1000 + style)
    build = MeshBuilder(BUILDING)
    floors, columns = choose.randint(2, 7), choose.randint(3, 6)
    storey, shop = choose.uniform(2.9, 3.5), choose.random() < 0.55
    ground = 3.9 if shop else 3.2
    height, deep = ground + storey * (floors - 1) + 0.8, 12.0
    build.add_box((0.0, 0.0, -0.5), (deep, height, 0.5), Slot.BODY)
    style_of_window = choose.randint(0, 3)
    front: list[Point] = [(0, 0, -0.5), (0, 0, 0.5), (0, height, 0.5), (0, height, -0.5)]
    sides = [(front, (-1.0, 0.0, 0.0), columns)]
    for z in (-0.5, 0.5):
        sides.append(
            (
                [(0, 0, z), (deep, 0, z), (deep, height, z), (0, height, z)],
                (0.0, 0.0, 2 * z),
                3 if choose.random() < 0.5 else 0,
            )
        )
    for wall, out, number in sides:
        for floor in range(1, floors):
            low = ground + storey * (floor - 1)
            _add_windows(
                build, wall, out, number, (low + 0.75) / height, (low + storey - 0.55) / height, style_of_window, choose
            )
            if style_of_window == 1 and number:
                build.add_polygon(
                    crop_quad(wall, 0, 1, (low + 0.02) / height, (low + 0.22) / height), Slot.SECOND, 0.95, outward=out
                )
    _add_ground_floor(build, front, columns, ground / height, shop, choose)
    build.add_polygon(crop_quad(front, 0, 1, 1 - 0.5 / height, 1), Slot.SECOND, 1.0, outward=(-1, 0, 0))
    build.add_polygon(
        crop_quad(front, 0, 1, (ground - 0.25) / height, ground / height), Slot.SECOND, 0.9, outward=(-1, 0, 0)
    )
    if choose.random() < 0.4:
        rise = choose.uniform(2.2, 3.4)
        slope: list[Point] = [
            (0, height, -0.5),
            (0, height, 0.5),
            (3.5, height + rise, 0.42),
            (3.5, height + rise, -0.42),
        ]
        build.add_polygon(slope, Slot.MARK, outward=(-1, 1, 0))
        for z in (-0.5, 0.5):
            build.add_polygon(
                [(0, height, z), (7.0, height, z), (3.5, height + rise, 0.84 * z)],
                Slot.MARK,
                0.85,
                outward=(0, 0, 2 * z),
            )
    return build.build()


def _add_windows(
    builder: MeshBuilder,
    wall: list[Point],
    outward: Point,
    columns: int,
    low: float,
    high: float,
    style: int,
    rng: Random,
) -> None:
    share = {0: 0.5, 1: 0.62, 2: 0.86, 3: 0.42}[style]
    for column in range(columns):
        middle = (column + 0.5) / columns
        left, right = middle - share / columns / 2, middle + share / columns / 2
        if style in (0, 3):
            edge = 0.1 * (right - left)
            builder.add_polygon(
                crop_quad(wall, left - edge, right + edge, low - 0.008, high + 0.008), Slot.TRIM, 0.95, outward=outward
            )
        builder.add_polygon(
            crop_quad(wall, left, right, low, high),
            Slot.WINDOW,
            rng.uniform(0.7, 1.5),
            rng.random() * 1.6,
            outward=outward,
        )
        if style == 0:
            builder.add_polygon(
                crop_quad(wall, middle - 0.008, middle + 0.008, low, high), Slot.TRIM, 0.9, outward=outward
            )


def _add_ground_floor(
    builder: MeshBuilder, front: list[Point], columns: int, high: float, shop: bool, rng: Random
) -> None:
    out = (-1.0, 0.0, 0.0)
    door = rng.randrange(columns)
    for column in range(columns):
        left, right = (column + 0.12) / columns, (column + 0.88) / columns
        if column == door:
            builder.add_polygon(
                crop_quad(front, left + 0.25 / columns, right - 0.25 / columns, 0, high * 0.7),
                Slot.DARK,
                rng.uniform(1, 1.8),
                outward=out,
            )
        elif shop:
            builder.add_polygon(
                crop_quad(front, left, right, 0.14 * high, 0.74 * high),
                Slot.WINDOW,
                rng.uniform(0.8, 1.8),
                rng.random() * 0.8,
                outward=out,
            )
            if rng.random() < 0.6:
                builder.add_polygon(
                    crop_quad(front, left - 0.03, right + 0.03, 0.74 * high, 0.92 * high),
                    Slot.MARK,
                    rng.uniform(0.7, 1.2),
                    outward=out,
                )
        else:
            builder.add_polygon(
                crop_quad(front, left + 0.1 / columns, right - 0.1 / columns, 0.35 * high, 0.8 * high),
                Slot.WINDOW,
                rng.uniform(0.7, 1.4),
                rng.random() * 1.6,
                outward=out,
            )


@lru_cache(maxsize=2 * NUM_HOUSES)
def build_house(style: int) -> Mesh:
    """Build a detached house with a pitched roof. The front faces -x; length 1 along z, metres otherwise."""
    choose = Random(2000 + style)
    build = MeshBuilder(BUILDING)
    floors, deep = choose.choice((1, 2, 2, 3)), 8.0
    eaves, rise = 0.5 + 2.8 * floors, choose.uniform(2.0, 3.6)
    build.add_box((0, 0, -0.5), (deep, eaves, 0.5), Slot.BODY)
    front: list[Point] = [(0, 0, -0.5), (0, 0, 0.5), (0, eaves, 0.5), (0, eaves, -0.5)]
    columns = choose.randint(2, 4)
    for floor in range(floors):
        low = 0.5 + 2.8 * floor
        _add_windows(
            build, front, (-1, 0, 0), columns, (low + 0.6) / eaves, (low + 2.0) / eaves, choose.choice((0, 3)), choose
        )
        for z in (-0.5, 0.5):
            wall: list[Point] = [(0, 0, z), (deep, 0, z), (deep, eaves, z), (0, eaves, z)]
            _add_windows(build, wall, (0, 0, 2 * z), 2, (low + 0.6) / eaves, (low + 2.0) / eaves, 3, choose)
    build.add_polygon(crop_quad(front, 0.44, 0.53, 0, 2.2 / eaves), Slot.SECOND, 0.6, outward=(-1, 0, 0))
    build.part_depth = 0.01
    if choose.random() < 0.6:  # ridge along the street
        for z in (-0.5, 0.5):
            build.add_polygon(
                [(0, eaves, z), (deep, eaves, z), (deep / 2, eaves + rise, z)], Slot.BODY, 0.95, outward=(0, 0, 2 * z)
            )
        build.add_polygon(
            [
                (-0.4, eaves - 0.15, -0.53),
                (-0.4, eaves - 0.15, 0.53),
                (deep / 2, eaves + rise, 0.53),
                (deep / 2, eaves + rise, -0.53),
            ],
            Slot.MARK,
            outward=(-1, 1, 0),
        )
    else:
        for z in (-0.53, 0.53):
            build.add_polygon(
                [(-0.1, eaves - 0.1, z), (deep, eaves - 0.1, z), (deep, eaves + rise, 0), (-0.1, eaves + rise, 0)],
                Slot.MARK,
                1.0 + 0.1 * z,
                outward=(0, 1, 2 * z),
            )
        build.add_polygon(
            [(-0.02, eaves, -0.5), (-0.02, eaves, 0.5), (-0.02, eaves + rise, 0)], Slot.BODY, outward=(-1, 0, 0)
        )
        build.add_polygon(
            crop_quad(front, 0.42, 0.58, 1.08, 1.08 + 1.2 / eaves),
            Slot.WINDOW,
            0.9,
            choose.random() * 1.6,
            outward=(-1, 0, 0),
        )
    return build.build()
