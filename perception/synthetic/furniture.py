"""Street lamps, posts, traffic lights and signs."""

from __future__ import annotations

import math
from functools import lru_cache

from perception.synthetic.mesh import NEVER_GLOWS, Mesh, MeshBuilder, Slot
from perception.synthetic.street_image import POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN

NUM_SIGNS, SQUARE_SIGN = 8, 3
"""Number of sign shapes, and the index of the square one, which has several colors."""


@lru_cache(maxsize=4)
def build_lamp(style: int) -> Mesh:
    """Build a street lamp with its arm towards -x."""
    build = MeshBuilder(POLE)
    height = (6.0, 7.5, 9.0)[style % 3]
    build.add_limb((0, 0, 0), (0, 1.0, 0), (0.13, 0.11), Slot.METAL, 0.9)
    build.add_limb((0, 1.0, 0), (0, height, 0), (0.095, 0.07), Slot.METAL)
    build.add_limb((0, height, 0), (-1.6, height + 0.35, 0), (0.06, 0.05), Slot.METAL)
    build.add_limb((-1.3, height + 0.3, 0), (-2.1, height + 0.36, 0), (0.11, 0.09), Slot.METAL, 0.8)
    build.add_limb((-1.4, height + 0.22, 0), (-2.0, height + 0.27, 0), (0.07, 0.06), Slot.LAMP, glow=0.25)
    return build.build()


@lru_cache(maxsize=2)
def build_post(style: int) -> Mesh:
    """Build a wooden or steel post, 8 m (style 0), or a bollard (style 1)."""
    build = MeshBuilder(POLE)
    if style:
        build.add_limb((0, 0, 0), (0, 1.0, 0), (0.1, 0.1), Slot.DARK, 1.5)
        build.add_limb((0, 0.75, 0), (0, 0.9, 0), (0.105, 0.105), Slot.TRIM)
    else:
        build.add_limb((0, 0, 0), (0, 8.2, 0), (0.12, 0.1), Slot.BODY)
        build.add_limb((-0.9, 7.6, 0), (0.9, 7.6, 0), (0.07, 0.07), Slot.BODY, 0.9)
    return build.build()


@lru_cache(maxsize=16)
def build_traffic_light(state: int, has_mast: bool) -> Mesh:
    """Build a traffic light that faces -z.

    ``state`` is 0 red, 1 amber or 2 green. With ``has_mast``, its pole has an arm towards -x.
    """
    build = MeshBuilder(POLE)
    build.add_limb((0, 0, 0), (0, 5.9 if has_mast else 3.5, 0), (0.1, 0.085), Slot.METAL)
    if has_mast:
        build.add_limb((0, 5.7, 0), (-4.2, 6.0, 0), (0.085, 0.06), Slot.METAL)
    _add_signal_head(build, 0.0, 2.5, state)
    return build.build()


@lru_cache(maxsize=4)
def build_hanging_light(state: int) -> Mesh:
    """Build the signal head on the arm of a `build_traffic_light` with mast, for the same position."""
    build = MeshBuilder()
    _add_signal_head(build, -3.9, 5.15, state)
    return build.build()


def _add_signal_head(builder: MeshBuilder, x: float, low: float, state: int) -> None:
    builder.label = TRAFFIC_LIGHT
    builder.add_box((x - 0.21, low, -0.16), (x + 0.21, low + 1.15, 0.1), Slot.DARK, 0.9, has_bottom=True)
    for place, slot in enumerate((Slot.RED, Slot.AMBER, Slot.GREEN)):
        lit = place == state
        center = (x, low + 0.95 - 0.37 * place, -0.18)
        builder.add_disc(
            center, (0.15, 0.15), slot if lit else Slot.DARK, 1.0 if lit else 1.9, glow=-1.0 if lit else NEVER_GLOWS
        )


SIGN_PLATES = (
    (12, 0.0, 0.38, 0.28, Slot.RED, Slot.TRIM),
    (3, 0.5, 0.52, 0.34, Slot.RED, Slot.TRIM),
    (8, 0.0625, 0.42, 0.38, Slot.TRIM, Slot.RED),
    (4, 0.125, 0.5, 0.45, Slot.TRIM, Slot.FACE),
    (4, 0.0, 0.45, 0.34, Slot.TRIM, Slot.AMBER),
    (12, 0.0, 0.38, 0.34, Slot.TRIM, Slot.FACE),
    (12, 0.0, 0.38, 0.3, Slot.RED, Slot.FACE),
    (3, 0.0, 0.52, 0.34, Slot.RED, Slot.TRIM),
)
"""Corners, rotation (fraction of a full turn), outer and inner radius, colors of rim and core. Rows: prohibition,
yield, stop, square, priority, direction, no parking, warning."""


@lru_cache(maxsize=2 * NUM_SIGNS)
def build_sign(style: int) -> Mesh:
    """Build a traffic sign on a post that faces -z. ``style`` is a row of `SIGN_PLATES`."""
    build = MeshBuilder(POLE)
    build.add_limb((0, 0, 0), (0, 2.9, 0), (0.055, 0.055), Slot.METAL)
    build.label = TRAFFIC_SIGN
    middle = 2.55
    corners, turn, outer, inner, rim, core = SIGN_PLATES[style]
    for radius, slot, z in ((outer, rim, -0.06), (inner, core, -0.07)):
        angles = [2 * math.pi * (corner / corners + turn + 0.25) for corner in range(corners)]
        build.add_polygon([(radius * math.cos(a), middle + radius * math.sin(a), z) for a in angles], slot)
    _add_symbol(build, style, middle)
    return build.build()


def _add_symbol(builder: MeshBuilder, style: int, y: float) -> None:
    if style in (0, 1):
        builder.add_limb((0, y - 0.12, -0.08), (0, y + 0.13, -0.08), (0.05, 0.05), Slot.DARK)
    elif style == 2:
        builder.add_limb((-0.25, y, -0.08), (0.25, y, -0.08), (0.07, 0.07), Slot.TRIM)
    elif style == 3:
        builder.add_limb((0, y - 0.22, -0.08), (0, y + 0.22, -0.08), (0.07, 0.07), Slot.TRIM)
    elif style == 5:
        builder.add_limb((-0.16, y - 0.16, -0.08), (0.16, y + 0.14, -0.08), (0.05, 0.05), Slot.TRIM)
    elif style == 6:
        builder.add_limb((-0.2, y + 0.2, -0.08), (0.2, y - 0.2, -0.08), (0.045, 0.045), Slot.RED)
