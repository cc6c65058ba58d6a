"""Trees and hedges."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random

from perception.synthetic.mesh import Mesh, MeshBuilder, Slot
from perception.synthetic.street_image import VEGETATION

NUM_TREES, NUM_CONIFERS = 24, 8
"""Number of different shapes."""


@lru_cache(maxsize=2 * NUM_CONIFERS)
def build_conifer(style: int) -> Mesh:
    """Build a fir or spruce of 7 to 9.5 m."""
    choose = Random(3500 + style)
    build = MeshBuilder(VEGETATION)
    stem, top, broad = 0.9, choose.uniform(7, 9.5), choose.uniform(1.3, 1.9)
    build.add_limb((0, 0, 0), (0, stem + 1.0, 0), (0.16, 0.12), Slot.SECOND)
    for k in range(7):
        low, wide = stem + (top - stem) * k / 7.5, broad * (1 - k / 7.3)
        tip = (choose.uniform(-0.1, 0.1), min(top, low + 2.6), 0)
        sag = choose.uniform(0.1, 0.35)
        skirt = [(-wide, low, 0), (-wide * 0.5, low - sag, 0), (wide * 0.5, low - 0.2, 0), (wide, low + 0.1, 0), tip]
        build.add_polygon(skirt, Slot.BODY, 0.7 + 0.055 * k)
    return build.build()


@lru_cache(maxsize=2 * NUM_TREES)
def build_tree(style: int) -> Mesh:
    """Build a broad-leaved tree of about 6 to 8 m, round or slim."""
    choose = Random(3000 + style)
    build = MeshBuilder(VEGETATION)
    slim = choose.random() < 0.25
    stem = 1.2 if slim else choose.uniform(2.0, 3.0)
    thick = choose.uniform(0.14, 0.22)
    build.add_limb((0, 0, 0), (choose.uniform(-0.15, 0.15), stem + 1.6, 0), (thick, 0.1), Slot.SECOND)
    for sign in (-1, 1):
        tip = (sign * choose.uniform(0.7, 1.2) * (0.6 if slim else 1.0), stem + 1.3, 0)
        build.add_limb((0, stem * 0.9, 0), tip, (0.09, 0.05), Slot.SECOND, 0.9)
    wide, tall = (1.1, 3.2) if slim else (choose.uniform(1.9, 2.8), choose.uniform(1.8, 2.6))
    for k in range(22):
        angle, reach = 2.399963 * k, math.sqrt((k + 0.5) / 22)  # the golden angle spreads the clumps evenly
        x, y = wide * 0.8 * reach * math.cos(angle), tall * 0.8 * reach * math.sin(angle)
        radius = (1.05 - 0.5 * reach) * wide * choose.uniform(0.4, 0.55)
        rough = [choose.uniform(0.72, 1.12) for _ in range(11)]
        shade = 0.86 + 0.22 * y / tall + choose.uniform(-0.13, 0.13) - 0.05 * x / wide
        middle = (x, stem + tall + y, 0.25 * math.sin(5 * angle))
        build.add_disc(middle, (radius, radius * 0.9), Slot.BODY, shade, corners=11, radius_factors=rough)
    return build.build()


@lru_cache(maxsize=8)
def build_hedge(style: int) -> Mesh:
    """Build a hedge, length 1 (z), about 1.3 m high. Scaled up, it serves as a line of distant trees."""
    choose = Random(4000 + style)
    build = MeshBuilder(VEGETATION)
    build.add_box((-0.4, 0, -0.5), (0.4, 1.1, 0.5), Slot.BODY)
    for k in range(14):
        z = -0.5 + (k + 0.5) / 14
        build.add_disc(
            (0, 1.0 + choose.uniform(-0.1, 0.15), z),
            (choose.uniform(0.25, 0.5), choose.uniform(0.2, 0.35)),
            Slot.BODY,
            choose.uniform(0.8, 1.1),
            corners=8,
        )
    return build.build()


@lru_cache(maxsize=8)
def build_treeline(style: int) -> Mesh:
    """Build a row of distant trees across the view, width 1 (x) and height 1."""
    choose = Random(5000 + style)
    build = MeshBuilder(VEGETATION)
    build.add_polygon([(-0.5, 0, 0), (0.5, 0, 0), (0.5, 0.6, 0), (-0.5, 0.6, 0)], Slot.BODY, 0.8)
    for k in range(44):
        rough = [choose.uniform(0.75, 1.15) for _ in range(9)]
        build.add_disc(
            (-0.5 + k / 43, choose.uniform(0.5, 0.72), 0),
            (choose.uniform(0.012, 0.024), choose.uniform(0.15, 0.32)),
            Slot.BODY,
            choose.uniform(0.7, 1.1),
            corners=9,
            radius_factors=rough,
        )
    return build.build()
