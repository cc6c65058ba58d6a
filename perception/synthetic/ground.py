"""The road surface: what lies where across and along it, as tables that the renderer looks up per pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.synthetic.canvas import ROAD, SIDEWALK, TERRAIN

BIN, REACH = 0.05, 51.2
BINS = int(2 * REACH / BIN)
LEVELS = 6
"""Tables blurred to ever coarser pixels (2 ** level bins), so that far lines fade instead of flickering."""

PLAIN, DASH, STOP, ZEBRA, CORNER, SIDE, ZONES = range(7)
"""Kinds of stretches along the road; a row of the tables each."""


@dataclass(frozen=True, slots=True, eq=False)
class Road:
    """A cross-section. ``left``, ``right``: metres from the centre line to the kerbs; ``walk`` widths of the pavements.

    colours: uint8 [LEVELS, ZONES, BINS, 3]; labels: uint8 [ZONES, BINS]
    """

    forward: int
    oncoming: int
    width: float
    parking: tuple[bool, bool]
    walk: tuple[float, float]
    verge: tuple[float, float]
    side_half: float
    colours: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    @property
    def left(self) -> float:
        return self.oncoming * self.width + (2.2 if self.parking[0] else 0.0) + 0.3

    @property
    def right(self) -> float:
        return self.forward * self.width + (2.2 if self.parking[1] else 0.0) + 0.3

    @property
    def own(self) -> float:
        """Middle of the lane that the camera drives in: the one nearest to the kerb."""
        return (self.forward - 0.5) * self.width

    def kerb(self, side: int) -> float:
        return self.left if side < 0 else self.right

    def building_line(self, side: int) -> float:
        place = 0 if side < 0 else 1
        return self.kerb(side) + self.walk[place] + self.verge[place]

    def lanes(self) -> list[tuple[float, int]]:
        """(across, direction) of every lane's middle; direction 1 = the camera's."""
        return [((k + 0.5) * self.width, 1) for k in range(self.forward)] + [
            (-(k + 0.5) * self.width, -1) for k in range(self.oncoming)
        ]


@lru_cache(maxsize=64)
def sample_road(style: int) -> Road:
    """One of the cross-sections that there are (any integer)."""
    choose = Random(7000 + style)
    lanes = choose.choice(((1, 1), (1, 1), (2, 2), (2, 1), (1, 1), (3, 2)))
    verges = choose.choice(((0.0, 0.0), (0.0, 0.0), (2.5, 2.5), (0.0, 3.0)))
    parking = choose.random() < 0.45, choose.random() < 0.5
    walk = choose.uniform(2.0, 4.2), choose.uniform(2.0, 4.2)
    empty = np.zeros(0, np.uint8)
    bare = Road(*lanes, choose.uniform(3.0, 3.6), parking, walk, verges, choose.uniform(3.4, 5.0), empty, empty)
    colours, labels = _tables(bare, choose)
    values = {name: getattr(bare, name) for name in bare.__slots__}
    return Road(**{**values, "colours": colours, "labels": labels})


def _tables(road: Road, choose: Random) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    x = (np.arange(BINS) + 0.5) * BIN - REACH
    gray = choose.uniform(0.34, 0.52)
    asphalt = np.array([gray, gray * 1.005, gray * 1.015])
    slab = np.array(choose.choice(((0.62, 0.6, 0.56), (0.55, 0.55, 0.55), (0.6, 0.5, 0.44), (0.68, 0.66, 0.62))))
    grass = np.array(choose.choice(((0.3, 0.4, 0.17), (0.36, 0.42, 0.2), (0.42, 0.4, 0.24))))
    kerb = np.array([0.7, 0.7, 0.68])
    paint = np.array([0.9, 0.9, 0.87])
    middle = np.array([0.9, 0.72, 0.22]) if choose.random() < 0.3 else paint
    inside = (x > -road.left) & (x < road.right)
    labels = np.full((ZONES, BINS), TERRAIN, np.uint8)
    colours = np.empty((ZONES, BINS, 3))
    walk = (x > -road.left - road.walk[0]) & (x < road.right + road.walk[1])
    labels[:, walk] = SIDEWALK
    colours[:] = np.where(walk[:, None], slab, grass)
    joints = (np.abs(x) % 0.9 < BIN) & walk
    colours[:, joints] *= 0.82
    labels[[CORNER, ZEBRA]] = SIDEWALK
    colours[[CORNER, ZEBRA]] = slab
    labels[:, inside] = ROAD
    labels[SIDE] = ROAD
    worn = 1 + 0.06 * np.cos(2 * np.pi * x / road.width * 2)  # wheel tracks
    colours[:, inside] = (asphalt * worn[:, None])[inside]
    colours[SIDE] = asphalt * np.where(inside, 1.0, 0.97)[:, None]
    edge = ((x > -road.left - 0.2) & (x < -road.left)) | ((x > road.right) & (x < road.right + 0.2))
    colours[:SIDE, edge] = kerb
    labels[:SIDE, edge] = SIDEWALK
    gutter = (((x > -road.left) & (x < -road.left + 0.2)) | ((x > road.right - 0.2) & (x < road.right))) & inside
    colours[:SIDE, gutter] *= 0.8
    _mark(road, x, colours, paint, middle, choose)
    shades = [np.clip(colours * 255, 0, 255).astype(np.float32)]
    for level in range(1, LEVELS):
        row = cv2.GaussianBlur(shades[0].reshape(ZONES, BINS, 3), (0, 0), sigmaX=0.5 * 2**level, sigmaY=1e-3)
        shades.append(np.asarray(row, np.float32))
    stacked = np.stack(shades)
    mean = (stacked[4:, PLAIN] * 2 + stacked[4:, DASH]) / 3
    stacked[4:, PLAIN], stacked[4:, DASH] = mean, mean
    return stacked.astype(np.uint8), labels


def _mark(road: Road, x: NDArray, colours: NDArray, paint: NDArray, middle: NDArray, choose: Random) -> None:
    half = 0.07
    centre = (
        choose.choice(("dashed", "solid", "double"))
        if road.forward + road.oncoming > 2
        else choose.choice(("dashed", "dashed", "solid", "none"))
    )
    lines = [(k * road.width, "dashed", paint) for k in range(1, road.forward)] + [
        (-k * road.width, "dashed", paint) for k in range(1, road.oncoming)
    ]
    lines += [(-0.14, "solid", middle), (0.14, "solid", middle)] if centre == "double" else [(0.0, centre, middle)]
    edges = choose.random() < 0.6
    for parked, place in ((road.parking[0], -road.oncoming * road.width), (road.parking[1], road.forward * road.width)):
        if parked or edges:
            lines.append((place, "solid" if not parked or choose.random() < 0.5 else "dashed", paint))
    for place, kind, colour in lines:
        band = np.abs(x - place) < half
        zones = {"solid": (PLAIN, DASH, STOP), "dashed": (DASH,), "none": ()}[kind]
        for zone in zones:
            colours[zone, band] = colour
    own = (x > 0.3) & (x < road.forward * road.width - 0.2)
    colours[STOP, own] = paint
    stripes = (x > -road.left + 0.4) & (x < road.right - 0.4) & (np.mod(x, 1.0) < 0.5)
    colours[ZEBRA, stripes] = paint


def zones_along(
    road: Road, crossings: list[float], start: float, length: float, zebra: bool = True
) -> NDArray[np.intp]:
    """The kind of stretch for every 10 cm from ``start``, [round(length * 10)]."""
    along = start + (np.arange(round(length * 10)) + 0.5) * 0.1
    zones = np.where(np.mod(along, 9.0) < 3.0, DASH, PLAIN)
    for place in crossings:
        half = road.side_half
        gap = np.abs(along - place)
        zones[gap < half + 6.0] = PLAIN
        zones[gap < half + 2.4] = CORNER
        if zebra:
            before, after = (
                (along > place - half - 3.2) & (along < place - half - 0.4),
                (along < place + half + 3.2) & (along > place + half + 0.4),
            )
            zones[before | after] = ZEBRA
            zones[(along > place - half - 4.8) & (along < place - half - 4.4)] = STOP
        zones[gap < half] = SIDE
    return zones
