"""Town houses, office blocks and detached houses."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from perception.synthetic.canvas import BUILDING
from perception.synthetic.mesh import Builder, Mesh, Point, Slot, inset

BLOCKS, HOUSES = 40, 20
"""How many shapes there are to choose from."""


@lru_cache(maxsize=2 * BLOCKS)
def block(style: int) -> Mesh:
    """A town house or office block whose front looks along -x, 1 long (z) and in true metres otherwise."""
    choose = Random(1000 + style)
    build = Builder(BUILDING)
    floors, columns = choose.randint(2, 7), choose.randint(3, 6)
    storey, shop = choose.uniform(2.9, 3.5), choose.random() < 0.55
    ground = 3.9 if shop else 3.2
    height, deep = ground + storey * (floors - 1) + 0.8, 12.0
    build.box((0.0, 0.0, -0.5), (deep, height, 0.5), Slot.BODY)
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
            _windows(
                build, wall, out, number, (low + 0.75) / height, (low + storey - 0.55) / height, style_of_window, choose
            )
            if style_of_window == 1 and number:
                build.polygon(
                    inset(wall, 0, 1, (low + 0.02) / height, (low + 0.22) / height), Slot.SECOND, 0.95, out=out
                )
    _ground_floor(build, front, columns, ground / height, shop, choose)
    build.polygon(inset(front, 0, 1, 1 - 0.5 / height, 1), Slot.SECOND, 1.0, out=(-1, 0, 0))
    build.polygon(inset(front, 0, 1, (ground - 0.25) / height, ground / height), Slot.SECOND, 0.9, out=(-1, 0, 0))
    if choose.random() < 0.4:
        rise = choose.uniform(2.2, 3.4)
        slope: list[Point] = [
            (0, height, -0.5),
            (0, height, 0.5),
            (3.5, height + rise, 0.42),
            (3.5, height + rise, -0.42),
        ]
        build.polygon(slope, Slot.MARK, out=(-1, 1, 0))
        for z in (-0.5, 0.5):
            build.polygon(
                [(0, height, z), (7.0, height, z), (3.5, height + rise, 0.84 * z)], Slot.MARK, 0.85, out=(0, 0, 2 * z)
            )
    return build.mesh()


def _windows(
    build: Builder, wall: list[Point], out: Point, number: int, low: float, high: float, style: int, choose: Random
) -> None:
    share = {0: 0.5, 1: 0.62, 2: 0.86, 3: 0.42}[style]
    for column in range(number):
        middle = (column + 0.5) / number
        left, right = middle - share / number / 2, middle + share / number / 2
        if style in (0, 3):
            edge = 0.1 * (right - left)
            build.polygon(inset(wall, left - edge, right + edge, low - 0.008, high + 0.008), Slot.TRIM, 0.95, out=out)
        build.polygon(
            inset(wall, left, right, low, high), Slot.WINDOW, choose.uniform(0.7, 1.5), choose.random() * 1.6, out=out
        )
        if style == 0:
            build.polygon(inset(wall, middle - 0.008, middle + 0.008, low, high), Slot.TRIM, 0.9, out=out)


def _ground_floor(build: Builder, front: list[Point], columns: int, high: float, shop: bool, choose: Random) -> None:
    out = (-1.0, 0.0, 0.0)
    door = choose.randrange(columns)
    for column in range(columns):
        left, right = (column + 0.12) / columns, (column + 0.88) / columns
        if column == door:
            build.polygon(
                inset(front, left + 0.25 / columns, right - 0.25 / columns, 0, high * 0.7),
                Slot.DARK,
                choose.uniform(1, 1.8),
                out=out,
            )
        elif shop:
            build.polygon(
                inset(front, left, right, 0.14 * high, 0.74 * high),
                Slot.WINDOW,
                choose.uniform(0.8, 1.8),
                choose.random() * 0.8,
                out=out,
            )
            if choose.random() < 0.6:
                build.polygon(
                    inset(front, left - 0.03, right + 0.03, 0.74 * high, 0.92 * high),
                    Slot.MARK,
                    choose.uniform(0.7, 1.2),
                    out=out,
                )
        else:
            build.polygon(
                inset(front, left + 0.1 / columns, right - 0.1 / columns, 0.35 * high, 0.8 * high),
                Slot.WINDOW,
                choose.uniform(0.7, 1.4),
                choose.random() * 1.6,
                out=out,
            )


@lru_cache(maxsize=2 * HOUSES)
def house(style: int) -> Mesh:
    """A detached house with a pitched roof, its front along -x, 1 long (z) and in true metres otherwise."""
    choose = Random(2000 + style)
    build = Builder(BUILDING)
    floors, deep = choose.choice((1, 2, 2, 3)), 8.0
    eaves, rise = 0.5 + 2.8 * floors, choose.uniform(2.0, 3.6)
    build.box((0, 0, -0.5), (deep, eaves, 0.5), Slot.BODY)
    front: list[Point] = [(0, 0, -0.5), (0, 0, 0.5), (0, eaves, 0.5), (0, eaves, -0.5)]
    columns = choose.randint(2, 4)
    for floor in range(floors):
        low = 0.5 + 2.8 * floor
        _windows(
            build, front, (-1, 0, 0), columns, (low + 0.6) / eaves, (low + 2.0) / eaves, choose.choice((0, 3)), choose
        )
        for z in (-0.5, 0.5):
            wall: list[Point] = [(0, 0, z), (deep, 0, z), (deep, eaves, z), (0, eaves, z)]
            _windows(build, wall, (0, 0, 2 * z), 2, (low + 0.6) / eaves, (low + 2.0) / eaves, 3, choose)
    build.polygon(inset(front, 0.44, 0.53, 0, 2.2 / eaves), Slot.SECOND, 0.6, out=(-1, 0, 0))
    build.part = 0.01
    if choose.random() < 0.6:  # ridge along the street
        for z in (-0.5, 0.5):
            build.polygon(
                [(0, eaves, z), (deep, eaves, z), (deep / 2, eaves + rise, z)], Slot.BODY, 0.95, out=(0, 0, 2 * z)
            )
        build.polygon(
            [
                (-0.4, eaves - 0.15, -0.53),
                (-0.4, eaves - 0.15, 0.53),
                (deep / 2, eaves + rise, 0.53),
                (deep / 2, eaves + rise, -0.53),
            ],
            Slot.MARK,
            out=(-1, 1, 0),
        )
    else:
        for z in (-0.53, 0.53):
            build.polygon(
                [(-0.1, eaves - 0.1, z), (deep, eaves - 0.1, z), (deep, eaves + rise, 0), (-0.1, eaves + rise, 0)],
                Slot.MARK,
                1.0 + 0.1 * z,
                out=(0, 1, 2 * z),
            )
        build.polygon([(-0.02, eaves, -0.5), (-0.02, eaves, 0.5), (-0.02, eaves + rise, 0)], Slot.BODY, out=(-1, 0, 0))
        build.polygon(
            inset(front, 0.42, 0.58, 1.08, 1.08 + 1.2 / eaves), Slot.WINDOW, 0.9, choose.random() * 1.6, out=(-1, 0, 0)
        )
    return build.mesh()
