"""What stands beside the road: buildings, trees and hedges, poles, lights and signs."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random

from perception.data.street.mesh import NEVER, Builder, Mesh, Point, Slot, inset
from perception.data.street.picture import BUILDING, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION

BLOCKS, HOUSES, TREES, SIGNS = 40, 20, 24, 8
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


@lru_cache(maxsize=2 * TREES)
def tree(style: int) -> Mesh:
    """A tree of about 8 m: broad-leaved, tall and slim, or a conifer."""
    choose = Random(3000 + style)
    build = Builder(VEGETATION)
    kind = choose.choice(("broad", "broad", "broad", "slim", "conifer"))
    stem = {"broad": choose.uniform(2.0, 3.0), "slim": 1.2, "conifer": 0.8}[kind]
    build.limb((0, 0, 0), (choose.uniform(-0.15, 0.15), stem + 1.6, 0), (choose.uniform(0.14, 0.22), 0.1), Slot.SECOND)
    if kind == "conifer":
        top = choose.uniform(7, 9.5)
        for k in range(6):
            low, wide = stem + (top - stem) * k / 6.5, 2.0 * (1 - k / 6.3)
            build.polygon(
                [
                    (-wide, low, 0),
                    (-wide * 0.5, low - 0.25, 0),
                    (wide * 0.5, low - 0.2, 0),
                    (wide, low, 0),
                    (0.1, min(top, low + 3.0), 0),
                ],
                Slot.BODY,
                0.72 + 0.06 * k,
            )
        return build.mesh()
    for sign in (-1, 1):
        build.limb((0, stem * 0.9, 0), (sign * choose.uniform(0.7, 1.2), stem + 1.3, 0), (0.09, 0.05), Slot.SECOND, 0.9)
    wide, tall = (choose.uniform(1.9, 2.8), choose.uniform(1.8, 2.6)) if kind == "broad" else (1.1, 3.2)
    for k in range(22):
        angle, reach = 2.399963 * k, math.sqrt((k + 0.5) / 22)
        x, y = wide * 0.8 * reach * math.cos(angle), tall * 0.8 * reach * math.sin(angle)
        radius = (1.05 - 0.5 * reach) * wide * choose.uniform(0.4, 0.55)
        rough = [choose.uniform(0.72, 1.12) for _ in range(11)]
        shade = 0.86 + 0.22 * y / tall + choose.uniform(-0.13, 0.13) - 0.05 * x / wide
        build.disc(
            (x, stem + tall + y, 0.25 * math.sin(5 * angle)),
            (radius, radius * 0.9),
            Slot.BODY,
            shade,
            corners=11,
            rough=rough,
        )
    return build.mesh()


@lru_cache(maxsize=8)
def hedge(style: int) -> Mesh:
    """A hedge, 1 long (z), about 1.3 m high; or a line of far trees when scaled up."""
    choose = Random(4000 + style)
    build = Builder(VEGETATION)
    build.box((-0.4, 0, -0.5), (0.4, 1.1, 0.5), Slot.BODY)
    for k in range(14):
        z = -0.5 + (k + 0.5) / 14
        build.disc(
            (0, 1.0 + choose.uniform(-0.1, 0.15), z),
            (choose.uniform(0.25, 0.5), choose.uniform(0.2, 0.35)),
            Slot.BODY,
            choose.uniform(0.8, 1.1),
            corners=8,
        )
    return build.mesh()


@lru_cache(maxsize=8)
def treeline(style: int) -> Mesh:
    """A row of far trees across the view, 1 wide (x) and 1 high."""
    choose = Random(5000 + style)
    build = Builder(VEGETATION)
    build.polygon([(-0.5, 0, 0), (0.5, 0, 0), (0.5, 0.6, 0), (-0.5, 0.6, 0)], Slot.BODY, 0.8)
    for k in range(44):
        rough = [choose.uniform(0.75, 1.15) for _ in range(9)]
        build.disc(
            (-0.5 + k / 43, choose.uniform(0.5, 0.72), 0),
            (choose.uniform(0.012, 0.024), choose.uniform(0.15, 0.32)),
            Slot.BODY,
            choose.uniform(0.7, 1.1),
            corners=9,
            rough=rough,
        )
    return build.mesh()


@lru_cache(maxsize=4)
def lamp(style: int) -> Mesh:
    """A street lamp whose arm reaches along -x."""
    build = Builder(POLE)
    height = (6.0, 7.5, 9.0)[style % 3]
    build.limb((0, 0, 0), (0, 1.0, 0), (0.13, 0.11), Slot.METAL, 0.9)
    build.limb((0, 1.0, 0), (0, height, 0), (0.095, 0.07), Slot.METAL)
    build.limb((0, height, 0), (-1.6, height + 0.35, 0), (0.06, 0.05), Slot.METAL)
    build.limb((-1.3, height + 0.3, 0), (-2.1, height + 0.36, 0), (0.11, 0.09), Slot.METAL, 0.8)
    build.limb((-1.4, height + 0.22, 0), (-2.0, height + 0.27, 0), (0.07, 0.06), Slot.LAMP, glow=0.25)
    return build.mesh()


@lru_cache(maxsize=2)
def post(style: int) -> Mesh:
    """A wooden or steel post, 8 m (style 0), or a bollard (style 1)."""
    build = Builder(POLE)
    if style:
        build.limb((0, 0, 0), (0, 1.0, 0), (0.1, 0.1), Slot.DARK, 1.5)
        build.limb((0, 0.75, 0), (0, 0.9, 0), (0.105, 0.105), Slot.TRIM)
    else:
        build.limb((0, 0, 0), (0, 8.2, 0), (0.12, 0.1), Slot.BODY)
        build.limb((-0.9, 7.6, 0), (0.9, 7.6, 0), (0.07, 0.07), Slot.BODY, 0.9)
    return build.mesh()


@lru_cache(maxsize=16)
def traffic_light(state: int, mast: bool) -> Mesh:
    """A traffic light that faces -z; ``state`` 0 red, 1 amber, 2 green; ``mast``: its pole carries an arm along -x."""
    build = Builder(POLE)
    build.limb((0, 0, 0), (0, 5.9 if mast else 3.5, 0), (0.1, 0.085), Slot.METAL)
    if mast:
        build.limb((0, 5.7, 0), (-4.2, 6.0, 0), (0.085, 0.06), Slot.METAL)
    _signal_head(build, 0.0, 2.5, state)
    return build.mesh()


@lru_cache(maxsize=4)
def hanging_light(state: int) -> Mesh:
    """The signal head that hangs from the arm of a `traffic_light` on a mast at the same place."""
    build = Builder()
    _signal_head(build, -3.9, 5.15, state)
    return build.mesh()


def _signal_head(build: Builder, x: float, low: float, state: int) -> None:
    build.label = TRAFFIC_LIGHT
    build.box((x - 0.21, low, -0.16), (x + 0.21, low + 1.15, 0.1), Slot.DARK, 0.9, bottom=True)
    for place, slot in enumerate((Slot.RED, Slot.AMBER, Slot.GREEN)):
        lit = place == state
        centre = (x, low + 0.95 - 0.37 * place, -0.18)
        build.disc(centre, (0.15, 0.15), slot if lit else Slot.DARK, 1.0 if lit else 1.9, glow=-1.0 if lit else NEVER)


PLATES = (
    (12, 0.0, 0.38, 0.28, Slot.RED, Slot.TRIM), (3, 0.5, 0.52, 0.34, Slot.RED, Slot.TRIM), (8, 0.0625, 0.42, 0.38, Slot.TRIM, Slot.RED),
    (4, 0.125, 0.5, 0.45, Slot.TRIM, Slot.FACE), (4, 0.0, 0.45, 0.34, Slot.TRIM, Slot.AMBER), (12, 0.0, 0.38, 0.34, Slot.TRIM, Slot.FACE),
    (12, 0.0, 0.38, 0.3, Slot.RED, Slot.FACE), (3, 0.0, 0.52, 0.34, Slot.RED, Slot.TRIM),
)  # fmt: skip
"""Corners, turn (share of a full one), outer and inner radius, colours of rim and core: ban, yield, stop, square, priority,
direction, no parking, warning."""


@lru_cache(maxsize=2 * SIGNS)
def sign(style: int) -> Mesh:
    """A traffic sign on its post that faces -z. ``style``: row of `PLATES`."""
    build = Builder(POLE)
    build.limb((0, 0, 0), (0, 2.9, 0), (0.055, 0.055), Slot.METAL)
    build.label = TRAFFIC_SIGN
    middle = 2.55
    corners, turn, outer, inner, rim, core = PLATES[style]
    for radius, slot, z in ((outer, rim, -0.06), (inner, core, -0.07)):
        angles = [2 * math.pi * (corner / corners + turn + 0.25) for corner in range(corners)]
        build.polygon([(radius * math.cos(a), middle + radius * math.sin(a), z) for a in angles], slot)
    _symbol(build, style, middle)
    return build.mesh()


def _symbol(build: Builder, kind: int, y: float) -> None:
    if kind in (0, 1):
        build.limb((0, y - 0.12, -0.08), (0, y + 0.13, -0.08), (0.05, 0.05), Slot.DARK)
    elif kind == 2:
        build.limb((-0.25, y, -0.08), (0.25, y, -0.08), (0.07, 0.07), Slot.TRIM)
    elif kind == 3:
        build.limb((0, y - 0.22, -0.08), (0, y + 0.22, -0.08), (0.07, 0.07), Slot.TRIM)
    elif kind == 5:
        build.limb((-0.16, y - 0.16, -0.08), (0.16, y + 0.14, -0.08), (0.05, 0.05), Slot.TRIM)
    elif kind == 6:
        build.limb((-0.2, y + 0.2, -0.08), (0.2, y - 0.2, -0.08), (0.045, 0.045), Slot.RED)
