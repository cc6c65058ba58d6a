"""The road surface, as lookup tables of color and label across and along the road."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic.street_image import ROAD, SIDEWALK, TERRAIN

BIN_WIDTH, HALF_WIDTH = 0.05, 51.2
NUM_BINS = int(2 * HALF_WIDTH / BIN_WIDTH)
NUM_LEVELS = 6
"""Tables blurred to coarser and coarser pixels (2 ** level bins), so that distant lines fade without flicker."""

PLAIN, DASH, STOP, ZEBRA, CORNER, SIDE, NUM_ZONES = range(7)
"""Types of road sections; each is a row of the tables."""


@dataclass(frozen=True, slots=True, eq=False)
class Road:
    """Cross-section of a road. Pairs are (left, right). Lengths in metres.

    Attributes:
        forward_lanes: number of lanes in the camera's direction.
        oncoming_lanes: number of lanes in the opposite direction.
        lane_width: width of a lane.
        has_parking: whether there are parking bays.
        sidewalk_widths: widths of the sidewalks.
        verge_widths: widths between sidewalk and buildings.
        side_street_half_width: half width of side streets.
        colors: uint8 [NUM_LEVELS, NUM_ZONES, NUM_BINS, 3].
        labels: uint8 [NUM_ZONES, NUM_BINS].
    """

    forward_lanes: int
    oncoming_lanes: int
    lane_width: float
    has_parking: tuple[bool, bool]
    sidewalk_widths: tuple[float, float]
    verge_widths: tuple[float, float]
    side_street_half_width: float
    colors: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @property
    def left_edge(self) -> float:
        """Metres from the center line to the left curb."""
        return self.oncoming_lanes * self.lane_width + (2.2 if self.has_parking[0] else 0.0) + 0.3

    @property
    def right_edge(self) -> float:
        """Metres from the center line to the right curb."""
        return self.forward_lanes * self.lane_width + (2.2 if self.has_parking[1] else 0.0) + 0.3

    @property
    def own_lane_center(self) -> float:
        """Center of the camera's lane, which is the one next to the curb; metres from the center line."""
        return (self.forward_lanes - 0.5) * self.lane_width

    def curb_distance(self, side: int) -> float:
        """Return metres from the center line to the curb of a side (negative = left)."""
        return self.left_edge if side < 0 else self.right_edge

    def building_distance(self, side: int) -> float:
        """Return metres from the center line to the buildings of a side (negative = left)."""
        place = 0 if side < 0 else 1
        return self.curb_distance(side) + self.sidewalk_widths[place] + self.verge_widths[place]

    def lane_centers(self) -> list[tuple[float, int]]:
        """Return (across, direction) for the center of each lane; direction 1 = the camera's."""
        return [((k + 0.5) * self.lane_width, 1) for k in range(self.forward_lanes)] + [
            (-(k + 0.5) * self.lane_width, -1) for k in range(self.oncoming_lanes)
        ]


@lru_cache(maxsize=64)
def sample_road(style: int) -> Road:
    """Return one of the cross-sections (``style`` can be any integer)."""
    choose = Random(7000 + style)
    lanes = choose.choice(((1, 1), (1, 1), (2, 2), (2, 1), (1, 1), (3, 2)))
    verges = choose.choice(((0.0, 0.0), (0.0, 0.0), (2.5, 2.5), (0.0, 3.0)))
    parking = choose.random() < 0.45, choose.random() < 0.5
    walk = choose.uniform(2.0, 4.2), choose.uniform(2.0, 4.2)
    empty = np.zeros(0, np.uint8)
    bare = Road(*lanes, choose.uniform(3.0, 3.6), parking, walk, verges, choose.uniform(3.4, 5.0), empty, empty)
    colours, labels = _build_tables(bare, choose)
    values = {name: getattr(bare, name) for name in bare.__slots__}
    return Road(**{**values, "colors": colours, "labels": labels})


def _build_tables(road: Road, rng: Random) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    x = (np.arange(NUM_BINS) + 0.5) * BIN_WIDTH - HALF_WIDTH
    gray = rng.uniform(0.34, 0.52)
    asphalt = np.array([gray, gray * 1.005, gray * 1.015])
    slab = np.array(rng.choice(((0.62, 0.6, 0.56), (0.55, 0.55, 0.55), (0.6, 0.5, 0.44), (0.68, 0.66, 0.62))))
    grass = np.array(rng.choice(((0.3, 0.4, 0.17), (0.36, 0.42, 0.2), (0.42, 0.4, 0.24))))
    curb = np.array([0.7, 0.7, 0.68])
    paint = np.array([0.9, 0.9, 0.87])
    middle = np.array([0.9, 0.72, 0.22]) if rng.random() < 0.3 else paint
    inside = (x > -road.left_edge) & (x < road.right_edge)
    labels = np.full((NUM_ZONES, NUM_BINS), TERRAIN, np.uint8)
    colours = np.empty((NUM_ZONES, NUM_BINS, 3))
    walk = (x > -road.left_edge - road.sidewalk_widths[0]) & (x < road.right_edge + road.sidewalk_widths[1])
    labels[:, walk] = SIDEWALK
    colours[:] = np.where(walk[:, None], slab, grass)
    joints = (np.abs(x) % 0.9 < BIN_WIDTH) & walk
    colours[:, joints] *= 0.82
    labels[[CORNER, ZEBRA]] = SIDEWALK
    colours[[CORNER, ZEBRA]] = slab
    labels[:, inside] = ROAD
    labels[SIDE] = ROAD
    worn = 1 + 0.06 * np.cos(2 * np.pi * x / road.lane_width * 2)  # wheel tracks
    colours[:, inside] = (asphalt * worn[:, None])[inside]
    colours[SIDE] = asphalt * np.where(inside, 1.0, 0.97)[:, None]
    edge = ((x > -road.left_edge - 0.2) & (x < -road.left_edge)) | ((x > road.right_edge) & (x < road.right_edge + 0.2))
    colours[:SIDE, edge] = curb
    labels[:SIDE, edge] = SIDEWALK
    gutter = (
        ((x > -road.left_edge) & (x < -road.left_edge + 0.2)) | ((x > road.right_edge - 0.2) & (x < road.right_edge))
    ) & inside
    colours[:SIDE, gutter] *= 0.8
    _paint_markings(road, x, colours, paint, middle, rng)
    shades = [np.clip(colours * 255, 0, 255).astype(np.float32)]
    for level in range(1, NUM_LEVELS):
        row = cv2.GaussianBlur(shades[0].reshape(NUM_ZONES, NUM_BINS, 3), (0, 0), sigmaX=0.5 * 2**level, sigmaY=1e-3)
        shades.append(np.asarray(row, np.float32))
    stacked = np.stack(shades)
    mean = (stacked[4:, PLAIN] * 2 + stacked[4:, DASH]) / 3
    stacked[4:, PLAIN], stacked[4:, DASH] = mean, mean
    return stacked.astype(np.uint8), labels


def _paint_markings(
    road: Road, x: NDArray, colors: NDArray, paint: NDArray, center_paint: NDArray, rng: Random
) -> None:
    half = 0.07
    center = (
        rng.choice(("dashed", "solid", "double"))
        if road.forward_lanes + road.oncoming_lanes > 2
        else rng.choice(("dashed", "dashed", "solid", "none"))
    )
    lines = [(k * road.lane_width, "dashed", paint) for k in range(1, road.forward_lanes)] + [
        (-k * road.lane_width, "dashed", paint) for k in range(1, road.oncoming_lanes)
    ]
    lines += (
        [(-0.14, "solid", center_paint), (0.14, "solid", center_paint)]
        if center == "double"
        else [(0.0, center, center_paint)]
    )
    edges = rng.random() < 0.6
    for parked, place in (
        (road.has_parking[0], -road.oncoming_lanes * road.lane_width),
        (road.has_parking[1], road.forward_lanes * road.lane_width),
    ):
        if parked or edges:
            lines.append((place, "solid" if not parked or rng.random() < 0.5 else "dashed", paint))
    for place, kind, color in lines:
        band = np.abs(x - place) < half
        zones = {"solid": (PLAIN, DASH, STOP), "dashed": (DASH,), "none": ()}[kind]
        for zone in zones:
            colors[zone, band] = color
    own = (x > 0.3) & (x < road.forward_lanes * road.lane_width - 0.2)
    colors[STOP, own] = paint
    stripes = (x > -road.left_edge + 0.4) & (x < road.right_edge - 0.4) & (np.mod(x, 1.0) < 0.5)
    colors[ZEBRA, stripes] = paint


def assign_zones(
    road: Road, crossings: list[float], start: float, length: float, has_zebra: bool = True
) -> NDArray[np.intp]:
    """Return the section type every 10 cm from ``start``, [round(length * 10)]."""
    along = start + (np.arange(round(length * 10)) + 0.5) * 0.1
    zones = np.where(np.mod(along, 9.0) < 3.0, DASH, PLAIN)
    for place in crossings:
        half = road.side_street_half_width
        gap = np.abs(along - place)
        zones[gap < half + 6.0] = PLAIN
        zones[gap < half + 2.4] = CORNER
        if has_zebra:
            before, after = (
                (along > place - half - 3.2) & (along < place - half - 0.4),
                (along < place + half + 3.2) & (along > place + half + 0.4),
            )
            zones[before | after] = ZEBRA
            zones[(along > place - half - 4.8) & (along < place - half - 4.4)] = STOP
        zones[gap < half] = SIDE
    return zones
