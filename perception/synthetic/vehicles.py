"""Cars and trucks."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from perception.synthetic.mesh import Mesh, MeshBuilder, Point, Slot, crop_quad
from perception.synthetic.street_image import CAR, TRUCK

CAR_STYLES = {
    # length, width, height, hood, trunk; cabin, as fractions of the length: rear bottom, rear top, front top, bottom
    "sedan": (4.6, 1.80, 1.45, 0.92, 1.00, -0.40, -0.24, 0.10, 0.26),
    "hatchback": (4.0, 1.74, 1.48, 0.93, 1.02, -0.49, -0.38, 0.10, 0.28),
    "estate": (4.7, 1.82, 1.50, 0.92, 1.02, -0.49, -0.42, 0.10, 0.25),
    "suv": (4.7, 1.92, 1.78, 1.08, 1.12, -0.49, -0.41, 0.12, 0.27),
    "van": (4.9, 1.95, 1.98, 1.15, 1.15, -0.495, -0.465, 0.20, 0.38),
}


@lru_cache(maxsize=64)
def build_car(style: str) -> Mesh:
    """Build a car that heads along z."""
    length, width, height, bonnet, boot, *cabin = CAR_STYLES[style]
    half, side, wheel = length / 2, width / 2, 0.33 if height < 1.6 else 0.37
    build = MeshBuilder(CAR)
    _add_tire_treads(build, side, wheel, (-0.31 * length, 0.31 * length))
    lower, middle = 0.24, 0.62
    body = build.add_prism([
        (-half, middle, side), (-half + 0.04, lower, side * 0.96), (half - 0.06, lower, side * 0.96),
        (half, middle, side * 0.97), (half - 0.12, bonnet - 0.14, side * 0.97), (cabin[3] * length, bonnet, side),
        (cabin[0] * length, boot, side), (-half + 0.02, boot - 0.06, side),
    ], Slot.BODY)  # fmt: skip
    for sign in (-1, 1):
        x = sign * side
        skirt: list[Point] = [
            (x, lower, -half * 0.9),
            (x, lower, half * 0.9),
            (x, lower + 0.12, half * 0.95),
            (x, lower + 0.12, -half * 0.95),
        ]
        build.add_polygon(skirt, Slot.DARK, outward=(sign, 0, 0))
        for z in (-0.31 * length, 0.31 * length):
            arch = [
                (x, 0.24, z - wheel * 1.22),
                (x, 0.24, z + wheel * 1.22),
                (x, wheel * 1.6, z + wheel * 1.0),
                (x, wheel * 2.2, z + wheel * 0.4),
                (x, wheel * 2.2, z - wheel * 0.4),
                (x, wheel * 1.6, z - wheel),
            ]
            build.add_polygon(arch, Slot.DARK, 0.7, outward=(sign, 0, 0))
            build.add_wheel(x * 1.005, wheel, z, wheel, sign)
    _add_cabin(build, side, length, height, bonnet, boot, cabin)
    _add_front(build, half, side, bonnet, body)
    _add_rear(build, half, side, boot)
    return build.build()


def _add_tire_treads(builder: MeshBuilder, side: float, radius: float, axles: tuple[float, ...]) -> None:
    for z in axles:
        for sign in (-1, 1):
            x0, x1 = sorted((sign * side * 0.98, sign * (side - 0.24)))
            builder.add_polygon(
                [(x0, 0.0, z), (x1, 0.0, z), (x1, radius * 1.5, z), (x0, radius * 1.5, z)], Slot.DARK, 0.8
            )
        builder.add_polygon(
            [(-side * 0.8, 0.17, z), (side * 0.8, 0.17, z), (side * 0.8, 0.4, z), (-side * 0.8, 0.4, z)], Slot.DARK, 0.4
        )


def _add_cabin(
    builder: MeshBuilder,
    side: float,
    length: float,
    height: float,
    hood_height: float,
    rear_height: float,
    cabin: list[float],
) -> None:
    base, top = side * 0.97, side * 0.78
    rear_low, rear_high, front_high, front_low = (share * length for share in cabin)
    faces = builder.add_prism(
        [
            (rear_low, rear_height, base),
            (front_low, hood_height, base),
            (front_high, height, top),
            (rear_high, height, top),
        ],
        Slot.BODY,
    )
    for sign, face in ((-1, faces[0]), (1, faces[1])):
        for start, end in ((0.07, 0.36), (0.385, 0.66), (0.685, 0.90)):
            builder.add_polygon(
                crop_quad(face, start, end, 0.1, 0.84), Slot.GLASS, 0.9 + 0.1 * start, outward=(sign, 0.2, 0)
            )
    windscreen, rear = (
        [
            (-base, hood_height, front_low),
            (base, hood_height, front_low),
            (top, height, front_high),
            (-top, height, front_high),
        ],
        [
            (-base, rear_height, rear_low),
            (base, rear_height, rear_low),
            (top, height, rear_high),
            (-top, height, rear_high),
        ],
    )
    builder.add_polygon(crop_quad(windscreen, 0.05, 0.95, 0.06, 0.92), Slot.GLASS, 1.1, outward=(0, 0.5, 1))
    builder.add_polygon(crop_quad(rear, 0.08, 0.92, 0.12, 0.88), Slot.GLASS, 0.9, outward=(0, 0.5, -1))
    for sign in (-1, 1):
        x0, x1 = sorted((sign * base, sign * (base + 0.2)))
        builder.add_box(
            (x0, hood_height + 0.02, front_low - 0.45), (x1, hood_height + 0.17, front_low - 0.3), Slot.SECOND
        )


def _add_front(builder: MeshBuilder, half: float, side: float, hood_height: float, body: list[list[Point]]) -> None:
    z, out = half + 0.005, (0.0, 0.0, 1.0)
    builder.add_polygon(
        [
            (-side * 0.5, 0.62, z - 0.03),
            (side * 0.5, 0.62, z - 0.03),
            (side * 0.48, hood_height - 0.2, z - 0.1),
            (-side * 0.48, hood_height - 0.2, z - 0.1),
        ],
        Slot.DARK,
        outward=out,
    )
    builder.add_polygon(
        [
            (-side * 0.85, 0.26, z - 0.05),
            (side * 0.85, 0.26, z - 0.05),
            (side * 0.8, 0.42, z - 0.02),
            (-side * 0.8, 0.42, z - 0.02),
        ],
        Slot.DARK,
        outward=out,
    )
    builder.add_polygon([(-0.27, 0.44, z), (0.27, 0.44, z), (0.27, 0.55, z), (-0.27, 0.55, z)], Slot.TRIM, outward=out)
    for sign in (-1, 1):
        a, b = sign * side * 0.56, sign * side * 0.96
        builder.add_polygon(
            [(a, 0.62, z), (b, 0.62, z), (b, 0.78, z), (a, 0.76, z)], Slot.HEADLIGHT, glow=0.0, outward=out
        )


def _add_rear(builder: MeshBuilder, half: float, side: float, rear_height: float) -> None:
    z, out = -half - 0.005, (0.0, 0.0, -1.0)
    builder.add_polygon(
        [(-side * 0.9, 0.26, z), (side * 0.9, 0.26, z), (side * 0.92, 0.42, z), (-side * 0.92, 0.42, z)],
        Slot.DARK,
        outward=out,
    )
    builder.add_polygon([(-0.27, 0.55, z), (0.27, 0.55, z), (0.27, 0.67, z), (-0.27, 0.67, z)], Slot.TRIM, outward=out)
    for sign in (-1, 1):
        a, b = sign * side * 0.62, sign * side * 0.98
        builder.add_polygon(
            [
                (a, rear_height - 0.3, z),
                (b, rear_height - 0.3, z),
                (b, rear_height - 0.08, z),
                (a, rear_height - 0.12, z),
            ],
            Slot.TAILLIGHT,
            glow=0.0,
            outward=out,
        )


@lru_cache(maxsize=32)
def build_truck(style: int) -> Mesh:
    """Build a box truck that heads along z: cab-over, cargo box, wheels. ``style`` 0-7 sets its proportions."""
    choose = Random(style)
    width, height = choose.uniform(2.25, 2.5), choose.uniform(2.9, 3.8)
    length, cab_height = choose.uniform(6.2, 10.5), choose.uniform(2.4, 2.9)
    side, half, cab = width / 2, length / 2, 1.9
    build, radius = MeshBuilder(TRUCK), 0.48
    axles = (half - 1.2, -half + 1.5, -half + 2.7) if length > 8.5 else (half - 1.2, -half + 1.6)
    build.part_depth = -half * 0.4
    _add_tire_treads(build, side, radius, axles[1:])
    build.add_box((-side * 0.8, 0.45, -half + 0.1), (side * 0.8, 0.95, half - cab), Slot.DARK, 0.8)
    back, front = -half, half - cab - 0.15
    build.add_box((-side, 0.92, back), (side, height, front), Slot.SECOND)
    for sign in (-1, 1):
        x = sign * (side + 0.005)
        panel: list[Point] = [(x, 0.92, back), (x, 0.92, front), (x, height, front), (x, height, back)]
        band = choose.random()
        build.add_polygon(crop_quad(panel, 0.0, 1.0, 0.0, 0.05), Slot.METAL, 0.7, outward=(sign, 0, 0))
        if band < 0.7:
            build.add_polygon(
                crop_quad(panel, 0.12, 0.88, 0.35, 0.72 if band < 0.4 else 0.5), Slot.MARK, outward=(sign, 0, 0)
            )
        build.add_polygon(
            [
                (x * 0.98, 0.4, back + 3.2),
                (x * 0.98, 0.4, front - 0.4),
                (x * 0.98, 0.85, front - 0.4),
                (x * 0.98, 0.85, back + 3.2),
            ],
            Slot.DARK,
            1.3,
            outward=(sign, 0, 0),
        )
        for z in axles[1:]:
            build.add_wheel(x, radius, z, radius, sign)
    _add_truck_doors(build, side, back, height)
    build.part_depth = half
    _add_truck_cab(build, side, half, cab, cab_height, radius, axles[0])
    return build.build()


def _add_truck_doors(builder: MeshBuilder, side: float, back: float, height: float) -> None:
    z, out = back - 0.01, (0.0, 0.0, -1.0)
    door: list[Point] = [(-side, 0.92, z), (side, 0.92, z), (side, height, z), (-side, height, z)]
    for left, right, low, high, slot in (
        (0.49, 0.51, 0, 1, Slot.DARK),
        (0.0, 0.025, 0, 1, Slot.METAL),
        (0.975, 1, 0, 1, Slot.METAL),
        (0, 1, 0.97, 1, Slot.METAL),
        (0.3, 0.33, 0.05, 0.95, Slot.METAL),
        (0.67, 0.7, 0.05, 0.95, Slot.METAL),
    ):
        builder.add_polygon(crop_quad(door, left, right, low, high), slot, 0.8, outward=out)
    builder.add_polygon(
        [(-side, 0.5, z), (side, 0.5, z), (side, 0.68, z), (-side, 0.68, z)], Slot.DARK, 0.9, outward=out
    )
    for sign in (-1, 1):
        a, b = sign * side * 0.7, sign * side * 0.97
        builder.add_polygon(
            [(a, 0.72, z), (b, 0.72, z), (b, 0.9, z), (a, 0.9, z)], Slot.TAILLIGHT, glow=0.0, outward=out
        )


def _add_truck_cab(
    builder: MeshBuilder, side: float, half: float, cab: float, height: float, radius: float, axle: float
) -> None:
    _add_tire_treads(builder, side, radius, (axle,))
    base = side * 0.97
    faces = builder.add_prism(
        [
            (half - cab, 0.45, base),
            (half, 0.45, base),
            (half, 1.35, base),
            (half - 0.22, height, base * 0.94),
            (half - cab, height, base * 0.94),
        ],
        Slot.BODY,
    )
    for sign, _ in ((-1, faces[0]), (1, faces[1])):
        x = sign * (base + 0.005)
        builder.add_polygon(
            [
                (x, 1.4, half - 1.15),
                (x, 1.4, half - 0.12),
                (x * 0.96, height - 0.25, half - 0.3),
                (x * 0.96, height - 0.25, half - 1.15),
            ],
            Slot.GLASS,
            outward=(sign, 0, 0),
        )
        builder.add_wheel(x, radius, axle, radius, sign)
        builder.add_box((min(x, x * 1.18), 1.5, half - 0.1), (max(x, x * 1.18), 2.1, half), Slot.DARK)
    out, z = (0.0, 0.1, 1.0), half + 0.01
    builder.add_polygon(
        [
            (-base * 0.92, 1.4, z - 0.01),
            (base * 0.92, 1.4, z - 0.01),
            (base * 0.86, height - 0.2, z - 0.19),
            (-base * 0.86, height - 0.2, z - 0.19),
        ],
        Slot.GLASS,
        1.1,
        outward=out,
    )
    builder.add_polygon(
        [(-base * 0.6, 0.78, z), (base * 0.6, 0.78, z), (base * 0.6, 1.25, z), (-base * 0.6, 1.25, z)],
        Slot.DARK,
        outward=out,
    )
    builder.add_polygon(
        [(-base, 0.45, z), (base, 0.45, z), (base, 0.7, z), (-base, 0.7, z)], Slot.DARK, 1.2, outward=out
    )
    for sign in (-1, 1):
        a, b = sign * base * 0.66, sign * base * 0.96
        builder.add_polygon(
            [(a, 0.74, z), (b, 0.74, z), (b, 0.96, z), (a, 0.96, z)], Slot.HEADLIGHT, glow=0.0, outward=out
        )
