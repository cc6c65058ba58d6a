"""Sampling a street."""

from __future__ import annotations

from random import Random

from perception.synthetic.canvas import SCENES
from perception.synthetic.ground import sample_road
from perception.synthetic.light import sample_light
from perception.synthetic.roadside import close_horizon, line_up_buildings, line_up_posts, line_up_trees
from perception.synthetic.traffic import fill_lanes, furnish_crossings, park, walk
from perception.synthetic.world import HORIZON, World


def sample_world(choose: Random, scene: str | None = None, length: float = 0.0) -> World:
    """A street that can be driven along for ``length`` metres."""
    light = sample_light(scene or choose.choice(SCENES), choose)
    road = sample_road(choose.randrange(48))
    crossings, end = [], length + HORIZON
    place = choose.uniform(10.0, 70.0) if choose.random() < 0.62 else choose.uniform(80, 200)
    while place < end - 20:
        crossings.append(place)
        place += choose.uniform(55.0, 110.0)
    curvature = choose.choice((0.0, 0.0, choose.uniform(-0.0045, 0.0045), choose.uniform(-0.0045, 0.0045)))
    world = World(
        road,
        light,
        curvature,
        crossings,
        tone=choose.uniform(0.8, 1.2),
        origin=(choose.uniform(0, 400), choose.uniform(0, 400)),
    )
    for side in (-1, 1):
        line_up_buildings(world, choose, side, end)
        line_up_trees(world, choose, side, end)
        line_up_posts(world, choose, side, end)
    close_horizon(world, choose, end)
    fill_lanes(world, choose, end)
    park(world, choose, end)
    walk(world, choose, end)
    furnish_crossings(world, choose)
    return world
