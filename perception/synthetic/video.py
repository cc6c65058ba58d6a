"""A video from a camera that drives along a synthetic street, with persistent object identities."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random

import cv2

from perception.synthetic.render import render_view
from perception.synthetic.sample_world import sample_world
from perception.synthetic.street_image import GENERATOR_VERSION, OBJECT_CLASSES, StreetImage
from perception.synthetic.view import create_view, sample_view
from perception.synthetic.world import World
from perception.types import DataError


def render_frames(
    seed: int, count: int, size: tuple[int, int] = (256, 512), fps: float = 12.0, scene_class: str | None = None
) -> Iterator[StreetImage]:
    """Render ``count`` images, 1 / ``fps`` seconds apart, from a camera that drives along one street.

    Objects keep their identities. The weather is ``scene_class``; None = chosen by the seed.
    """
    choose = Random(f"street video {GENERATOR_VERSION} {seed}")
    speed = choose.uniform(5.0, 9.0)
    world = sample_world(choose, scene_class, length=speed * count / fps)
    _clear_camera_lane(world, speed)
    start = sample_view(choose, size, world.road.own_lane_center)
    starts = [(thing.along, thing.across) for thing in world.objects]
    for number in range(count):
        time = number / fps
        for thing, (along, across) in zip(world.objects, starts, strict=True):
            thing.along, thing.across = along + thing.speed * time, across + thing.lateral_speed * time
            if thing.mesh_at is not None:
                thing.mesh = thing.mesh_at(time)
        bob = 0.0025 * math.sin(2 * math.pi * 1.1 * time)
        yaw = 0.004 * math.sin(2 * math.pi * 0.21 * time)
        view = create_view(
            start.camera, size, start.camera_height, start.across, speed * time, (start.pitch + bob, yaw, start.roll)
        )
        yield render_view(world, view, choose)


def _clear_camera_lane(world: World, speed: float) -> None:
    """Objects ahead are not slower than the camera, and nobody crosses its path."""
    for thing in world.objects:
        if thing.class_index < 0 or thing.class_index > 3:
            continue
        ours = abs(thing.across - world.road.own_lane_center) < world.road.lane_width * 0.6
        if ours and not thing.lateral_speed and thing.speed >= 0:
            thing.speed = max(thing.speed, speed)
        if thing.lateral_speed and abs(thing.lateral_speed) > 3:
            thing.across += math.copysign(500.0, thing.across)


def write_video(path: Path, seconds: float, seed: int, size: tuple[int, int] = (256, 512), fps: float = 12.0) -> None:
    """Write an mp4 to ``path``, and ``<stem>_tracks.json`` beside it: intrinsics, classes, boxes of each frame."""
    path = Path(path)
    count = round(seconds * fps)
    if count < 1:
        raise DataError(f"A video of {seconds} s at {fps} images a second has no image. Make it longer.")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size[::-1])
    if not writer.isOpened():
        raise DataError(
            f"Could not open {path} for writing. Expected a file name that ends in .mp4 in a writable folder."
        )
    records, last = [], None
    try:
        for number, last in enumerate(render_frames(seed, count, size, fps)):
            writer.write(last.image[:, :, ::-1])
            records.append(
                {
                    "frame": number,
                    "time": number / fps,
                    "boxes": last.boxes.tolist(),
                    "labels": [OBJECT_CLASSES[label] for label in last.labels],
                    "identities": last.track_ids.tolist(),
                    "ignore": last.ignore.tolist(),
                }
            )
    finally:
        writer.release()
    assert last is not None
    camera = {"fx": last.camera.fx, "fy": last.camera.fy, "cx": last.camera.cx, "cy": last.camera.cy}
    about = {
        "seed": seed,
        "version": GENERATOR_VERSION,
        "fps": fps,
        "size": list(size),
        "scene": last.scene_class,
        "camera": camera,
        "classes": list(OBJECT_CLASSES),
        "frames": records,
    }
    path.with_name(f"{path.stem}_tracks.json").write_text(json.dumps(about), "utf-8")
