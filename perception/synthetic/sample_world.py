"""Sample a street."""

from __future__ import annotations

from random import Random

from perception.synthetic.ground import sample_road
from perception.synthetic.light import sample_light
from perception.synthetic.roadside import place_backdrop, place_buildings, place_posts, place_trees
from perception.synthetic.street_image import SCENE_CLASSES
from perception.synthetic.traffic import fill_crossings, fill_lanes, place_parked_cars, place_pedestrians
from perception.synthetic.world import BACKDROP_DISTANCE, World


def sample_world(rng: Random, scene_class: str | None = None, length: float = 0.0) -> World:
    """Sample a street on which the camera can drive for ``length`` metres."""
    light = sample_light(scene_class or rng.choice(SCENE_CLASSES), rng)
    road = sample_road(rng.randrange(48))
    crossings, end = [], length + BACKDROP_DISTANCE
    place = rng.uniform(10.0, 70.0) if rng.random() < 0.62 else rng.uniform(80, 200)
    while place < end - 20:
        crossings.append(place)
        place += rng.uniform(55.0, 110.0)
    curvature = rng.choice((0.0, 0.0, rng.uniform(-0.0045, 0.0045), rng.uniform(-0.0045, 0.0045)))
    world = World(
        road,
        light,
        curvature,
        crossings,
        ground_brightness=rng.uniform(0.8, 1.2),
        texture_origin=(rng.uniform(0, 400), rng.uniform(0, 400)),
    )
    for side in (-1, 1):
        place_buildings(world, rng, side, end)
        place_trees(world, rng, side, end)
        place_posts(world, rng, side, end)
    place_backdrop(world, rng, end)
    fill_lanes(world, rng, end)
    place_parked_cars(world, rng, end)
    place_pedestrians(world, rng, end)
    fill_crossings(world, rng)
    return world
