"""Pedestrians and cyclists, made of limbs that face the camera."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from random import Random

from perception.synthetic.mesh import Mesh, MeshBuilder, Slot
from perception.synthetic.street_image import BICYCLE, PERSON, RIDER

NUM_PEDESTRIANS, NUM_CYCLISTS = 32, 8
"""Number of different shapes."""


@lru_cache(maxsize=2 * NUM_PEDESTRIANS)
def build_pedestrian(style: int, phase: float = 0.25) -> Mesh:
    """Build a 1.75 m tall person who walks along z. ``phase`` in [0, 1) is the position in the walking cycle."""
    choose = Random(style)
    build = MeshBuilder(PERSON)
    swing = 0.26 * math.sin(2 * math.pi * phase) if choose.random() < 0.85 else 0.03
    coat, umbrella = choose.random() < 0.35, choose.random() < 0.08
    hip, shoulder, broad = 0.88, 1.44, choose.uniform(0.17, 0.215)
    for sign in (-1, 1):
        foot = (sign * 0.09, 0.06, sign * swing * 1.3)
        knee = (sign * 0.1, 0.48, sign * swing * 0.5 + 0.05)
        build.add_limb((sign * 0.08, hip, 0.0), knee, (0.095, 0.075), Slot.SECOND, 1.0 - 0.08 * sign)
        build.add_limb(knee, foot, (0.075, 0.05), Slot.SECOND, 0.92 - 0.08 * sign)
        build.add_limb((foot[0], 0.05, foot[2] - 0.08), (foot[0], 0.04, foot[2] + 0.16), (0.055, 0.05), Slot.DARK)
    hand = (-broad - 0.07, 0.84, -swing * 0.9)
    build.add_limb((-broad, shoulder - 0.04, 0), (-broad - 0.05, 1.12, -swing * 0.4), (0.06, 0.052), Slot.BODY, 0.82)
    build.add_limb((-broad - 0.05, 1.12, -swing * 0.4), hand, (0.05, 0.035), Slot.BODY, 0.82)
    build.add_disc(hand, (0.045, 0.05), Slot.SKIN, corners=6)
    build.add_limb((0, 0.62 if coat else hip - 0.06, 0), (0, 1.15, 0), (0.2 if coat else 0.165, 0.17), Slot.BODY, 0.94)
    build.add_limb((0, 1.1, 0), (0, shoulder, 0), (0.165, broad), Slot.BODY)
    build.add_limb((0, shoulder, 0), (0, shoulder + 0.07, 0), (broad * 0.85, 0.07), Slot.BODY)
    hand = (broad + 0.07, 0.86, swing * 0.9)
    build.add_limb((broad, shoulder - 0.04, 0), (broad + 0.05, 1.12, swing * 0.4), (0.06, 0.052), Slot.BODY, 1.08)
    build.add_limb((broad + 0.05, 1.12, swing * 0.4), hand, (0.05, 0.035), Slot.BODY, 1.08)
    build.add_disc(hand, (0.045, 0.05), Slot.SKIN, corners=6)
    _add_head(build, (0.0, 1.62, 0.02), choose)
    _add_luggage(build, choose, hand)
    if umbrella:
        build.add_limb((0.2, 1.1, 0.1), (0.12, 2.0, 0.1), (0.015, 0.015), Slot.DARK)
        build.add_polygon(
            [(-0.42, 1.92, 0.1), (0.66, 1.92, 0.1), (0.45, 2.14, 0.1), (0.12, 2.22, 0.1), (-0.21, 2.14, 0.1)], Slot.MARK
        )
    return build.build()


def _add_head(builder: MeshBuilder, center: tuple[float, float, float], rng: Random) -> None:
    x, y, z = center
    builder.add_limb((x, y - 0.18, z), (x, y - 0.05, z), (0.055, 0.055), Slot.SKIN, 0.85)
    builder.add_disc(center, (0.1, 0.13), Slot.SKIN)
    builder.add_disc((x, y + 0.05, z - 0.02), (0.108, 0.1), Slot.HAIR, corners=8)
    if rng.random() < 0.4:
        builder.add_disc((x, y - 0.03, z - 0.05), (0.1, 0.13), Slot.HAIR, 0.9, corners=8)


def _add_luggage(builder: MeshBuilder, rng: Random, hand: tuple[float, float, float]) -> None:
    kind = rng.random()
    if kind < 0.25:
        builder.add_box((-0.15, 1.0, -0.3), (0.15, 1.42, -0.14), Slot.MARK)
    elif kind < 0.45:
        builder.add_limb((hand[0], 0.8, hand[2]), (hand[0], 0.5, hand[2]), (0.1, 0.14), Slot.MARK, 0.9)


@lru_cache(maxsize=4 * NUM_CYCLISTS)
def build_cyclist(style: int) -> Mesh:
    """Build a rider on a bicycle that moves along z."""
    choose = Random(style)
    build = MeshBuilder(BICYCLE)
    radius, front, rear = 0.34, 0.53, -0.53
    for z in (rear, front):
        ring = [
            (0.0, radius + radius * math.cos(math.pi * k / 6), z + radius * math.sin(math.pi * k / 6))
            for k in range(13)
        ]
        for start, end in pairwise(ring):
            build.add_limb(start, end, (0.032, 0.032), Slot.DARK)
        build.add_limb((0, 0.02, z), (0, 2 * radius, z), (0.028, 0.028), Slot.DARK)
    crank, seat, head = (0.0, 0.3, -0.1), (0.0, 0.92, -0.28), (0.0, 0.86, 0.4)
    for start, end in (
        (crank, seat),
        (crank, head),
        ((0.0, 0.8, -0.24), head),
        (crank, (0.0, radius, rear)),
        ((0.0, 0.78, -0.24), (0.0, radius, rear)),
        (head, (0.0, radius, front)),
    ):
        build.add_limb(start, end, (0.028, 0.028), Slot.MARK)
    build.add_limb((-0.27, 1.02, 0.36), (0.27, 1.02, 0.36), (0.022, 0.022), Slot.METAL)
    build.add_limb((0, 1.02, 0.36), head, (0.025, 0.025), Slot.METAL)
    build.add_disc((0, 0.68, -0.62), (0.045, 0.045), Slot.TAILLIGHT, glow=0.0, corners=6)
    build.add_disc((0, 0.9, 0.52), (0.05, 0.05), Slot.HEADLIGHT, glow=0.0, corners=6)
    build.label = RIDER
    lean = choose.uniform(0.25, 0.5)
    neck = (0.0, 1.46 - lean * 0.12, -0.2 + lean)
    up = choose.random() < 0.5
    for sign in (-1, 1):
        high = (sign > 0) == up
        foot = (sign * 0.12, 0.44 if high else 0.14, 0.02 if high else -0.12)
        knee = (sign * 0.13, 0.86 if high else 0.62, 0.2 if high else 0.08)
        build.add_limb((sign * 0.1, 0.96, -0.24), knee, (0.1, 0.075), Slot.SECOND, 1.0 - 0.1 * sign)
        build.add_limb(knee, foot, (0.075, 0.05), Slot.SECOND, 0.92 - 0.1 * sign)
        build.add_limb(
            (foot[0], foot[1] - 0.03, foot[2] - 0.06),
            (foot[0], foot[1] - 0.03, foot[2] + 0.16),
            (0.045, 0.04),
            Slot.DARK,
        )
    build.add_limb((0, 0.9, -0.28), neck, (0.17, 0.215), Slot.BODY)
    for sign in (-1, 1):
        elbow = (sign * 0.27, 1.2, 0.12)
        build.add_limb((sign * 0.2, neck[1] - 0.04, neck[2]), elbow, (0.06, 0.05), Slot.BODY, 0.9)
        build.add_limb(elbow, (sign * 0.25, 1.04, 0.36), (0.048, 0.04), Slot.BODY if up else Slot.SKIN, 0.95)
    _add_rider_head(build, neck, choose)
    return build.build()


def _add_rider_head(builder: MeshBuilder, neck: tuple[float, float, float], rng: Random) -> None:
    x, y, z = neck[0], neck[1] + 0.19, neck[2] + 0.07
    builder.add_limb(neck, (x, y, z), (0.06, 0.055), Slot.SKIN, 0.85)
    builder.add_disc((x, y, z), (0.1, 0.13), Slot.SKIN)
    helmet = rng.random() < 0.6
    builder.add_disc(
        (x, y + 0.07, z - 0.02), (0.13 if helmet else 0.108, 0.1), Slot.TRIM if helmet else Slot.HAIR, corners=8
    )
