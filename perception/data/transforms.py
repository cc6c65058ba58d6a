"""What training does to a sample (one frame, colours, a roll) and what evaluation does (letterbox)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from perception.config import configuration
from perception.data.color_transforms import degraded, recoloured, with_weather
from perception.data.rotate import rolled
from perception.files.images import StoredPicture
from perception.ops.image import PAD_VALUE, cut_image, letterbox_frame, on_canvas, warp, warp_image
from perception.types import ConfigError, Frame, ImageLabel, Sample


@configuration
class AugmentConfig:
    """Random changes to a training picture.

    scale:   smallest and largest zoom relative to the letterboxed picture
    flip:    probability of mirroring left to right
    rotate:  largest roll of the camera, in degrees either way; 0 = none
    colour:  probability of each change of brightness with contrast, and hue with saturation; half of it of gamma
    degrade: probability of blur, noise or JPEG artefacts, each
    weather: probability of night, haze, rain or a cast shadow. A picture so changed loses its image labels, which may
        speak of the weather
    mosaic:  probability that four pictures of the source share the input (see `perception.data.mosaic`)
    min_visible: share of a box that must stay in sight for it to count as an example; under it, an ignore region
    """

    scale: tuple[float, float] = (0.5, 1.5)
    flip: float = 0.5
    rotate: float = 0.0
    colour: float = 0.5
    degrade: float = 0.1
    weather: float = 0.0
    mosaic: float = 0.0
    min_visible: float = 0.25

    def __post_init__(self) -> None:
        if not 0.05 <= self.scale[0] <= self.scale[1] <= 20:
            raise ConfigError(
                f"augment.scale is {list(self.scale)}. Expected smallest and largest zoom, within 0.05 to 20."
            )
        if not 0 <= self.rotate <= 45:
            raise ConfigError(f"augment.rotate is {self.rotate}. Expected 0 to 45 degrees.")
        for name in ("flip", "colour", "degrade", "weather", "mosaic", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}. Expected 0 to 1.")


def training_frame(
    source: tuple[int, int], size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> Frame:
    """A random zoom, crop or placement, and mirroring of a picture of ``source`` (height, width) into ``size``."""
    return random_frame(source, size, random_zoom(config, rng) * fitting(source, size), config.flip, rng)


def random_zoom(config: AugmentConfig, rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(config.scale[0]), math.log(config.scale[1])))


def fitting(source: tuple[int, int], size: tuple[int, int]) -> float:
    """Input pixels per source pixel where the whole picture just fits."""
    return min(size[0] / source[0], size[1] / source[1])


def random_frame(
    source: tuple[int, int], size: tuple[int, int], scale: float, flip: float, rng: np.random.Generator
) -> Frame:
    """A random crop of ``source``, or a random place in ``size``, at ``scale`` input pixels per source pixel.

    Where the picture shrinks to a half, a quarter or an eighth, the crop is a multiple of 2, 4 or 8 whole pixels: then
    a picture that was decoded smaller shows exactly it. Up to 7 source pixels at the right and lower edge are left out.
    """
    step = next((n for n in (8, 4, 2) if scale * n <= 1 and min(source) >= n), 1)
    cut = [max(1, min(side, round(room / scale))) for side, room in zip(source, size, strict=True)]
    cut = [max(step, part // step * step) for part in cut]
    placed = [max(1, min(room, round(side * scale))) for side, room in zip(cut, size, strict=True)]
    y, x = (int(rng.integers(side - part + 1)) // step * step for side, part in zip(source, cut, strict=True))
    top, left = (int(rng.integers(room - part + 1)) for room, part in zip(size, placed, strict=True))
    crop, place = (x, y, cut[1], cut[0]), (left, top, placed[1], placed[0])
    return Frame((source[0], source[1]), size, crop, place, bool(rng.random() < flip))


def reduction(frame: Frame) -> int:
    """By how much (1, 2, 4 or 8) the picture may be decoded smaller and still have a pixel for each of the place's."""
    width, height = frame.place[2:]
    for n in (8, 4, 2):
        if frame.crop[2] >= n * width and frame.crop[3] >= n * height and not any(side % n for side in frame.crop):
            return n
    return 1


def for_training(
    picture: StoredPicture, sample: Sample, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> Sample:
    """A picture as a network input: image, annotations and camera through one random frame, colours, roll.

    ``sample`` says all of the picture but its image. Raises PictureError where the picture is damaged.
    """
    placed = through_frame(picture, sample, training_frame(picture.size, size, config, rng), config, rng)
    return rolled(placed, config.rotate, config.min_visible, rng) if config.rotate else placed


def through_frame(
    picture: StoredPicture, sample: Sample, frame: Frame, config: AugmentConfig, rng: np.random.Generator
) -> Sample:
    """The sample with its image, in the frame's input, its colours changed at random; the padding stays as it is."""
    shrunk = reduction(frame) if picture.reducible else 1
    image = recoloured(cut_image(picture.decode(shrunk), frame, shrunk), config.colour, rng)
    annotations = {
        task: None if annotation is None else warp(annotation, frame, config.min_visible)
        for task, annotation in sample.annotations.items()
    }
    if config.weather and rng.random() < config.weather:
        image = with_weather(image, rng)
        annotations = {task: None if isinstance(a, ImageLabel) else a for task, a in annotations.items()}
    return dataclasses.replace(
        sample,
        image=on_canvas(degraded(image, config.degrade, rng), frame, PAD_VALUE),
        annotations=annotations,
        camera=None if sample.camera is None else sample.camera.through(frame),
    )


def for_evaluation(sample: Sample, size: tuple[int, int]) -> Sample:
    """The image letterboxed and ``frame`` set; annotations and camera stay in source pixels."""
    height, width = sample.image.shape[:2]
    frame = letterbox_frame((height, width), size)
    return dataclasses.replace(sample, image=warp_image(sample.image, frame), frame=frame)
