"""What training does to a sample (one frame, colors, a roll) and what evaluation does (letterbox)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from perception.config import config_dataclass
from perception.data.color_transforms import add_weather, degrade_image, jitter_color
from perception.data.rotate import roll_sample
from perception.files.images import StoredImage
from perception.ops.image import (
    PAD_VALUE,
    compute_letterbox,
    crop_and_resize,
    pad_to_input,
    warp_annotation,
    warp_image,
)
from perception.types import ConfigError, ImageLabel, ImageTransform, Sample


@config_dataclass
class AugmentConfig:
    """Random changes to a training image.

    scale:   smallest and largest zoom relative to the letterboxed image
    flip:    probability of mirroring left to right
    rotate:  largest roll of the camera, in degrees either way; 0 = none
    color:  probability of each change of brightness with contrast, and hue with saturation; half of it of gamma
    degrade: probability of blur, noise or JPEG artifacts, each
    weather: probability of night, haze, rain or a cast shadow. An image so changed loses its image labels, which may
        speak of the weather
    mosaic:  probability that four images of the source share the input (see `perception.data.mosaic`)
    min_visible: share of a box that must stay in sight for it to count as an example; under it, an ignore region
    """

    scale: tuple[float, float] = (0.5, 1.5)
    flip: float = 0.5
    rotate: float = 0.0
    color: float = 0.5
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
        for name in ("flip", "color", "degrade", "weather", "mosaic", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}. Expected 0 to 1.")


def sample_training_transform(
    source_size: tuple[int, int], size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> ImageTransform:
    """A random zoom, crop or placement, and mirroring of an image of ``source_size`` (height, width) into ``size``."""
    return sample_image_transform(
        source_size, size, sample_zoom(config, rng) * fit_scale(source_size, size), config.flip, rng
    )


def sample_zoom(config: AugmentConfig, rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(config.scale[0]), math.log(config.scale[1])))


def fit_scale(source_size: tuple[int, int], size: tuple[int, int]) -> float:
    """Input pixels per source pixel where the whole image just fits."""
    return min(size[0] / source_size[0], size[1] / source_size[1])


def sample_image_transform(
    source_size: tuple[int, int], size: tuple[int, int], scale: float, flip_probability: float, rng: np.random.Generator
) -> ImageTransform:
    """A random crop of ``source_size``, or a random place in ``size``, at ``scale`` input pixels per source pixel.

    Where the image shrinks to a half, a quarter or an eighth, the crop is a multiple of 2, 4 or 8 whole pixels: then
    an image that was decoded smaller shows exactly it. Up to 7 source pixels at the right and lower edge are left out.
    """
    step = next((n for n in (8, 4, 2) if scale * n <= 1 and min(source_size) >= n), 1)
    cut = [max(1, min(side, round(room / scale))) for side, room in zip(source_size, size, strict=True)]
    cut = [max(step, part // step * step) for part in cut]
    placed = [max(1, min(room, round(side * scale))) for side, room in zip(cut, size, strict=True)]
    y, x = (int(rng.integers(side - part + 1)) // step * step for side, part in zip(source_size, cut, strict=True))
    top, left = (int(rng.integers(room - part + 1)) for room, part in zip(size, placed, strict=True))
    crop, place = (x, y, cut[1], cut[0]), (left, top, placed[1], placed[0])
    return ImageTransform((source_size[0], source_size[1]), size, crop, place, bool(rng.random() < flip_probability))


def choose_reduction(transform: ImageTransform) -> int:
    """By how much (1, 2, 4 or 8) the image may be decoded smaller and still have a pixel for each of the place's."""
    width, height = transform.placement[2:]
    for n in (8, 4, 2):
        if (
            transform.crop[2] >= n * width
            and transform.crop[3] >= n * height
            and not any(side % n for side in transform.crop)
        ):
            return n
    return 1


def prepare_for_training(
    stored_image: StoredImage, sample: Sample, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> Sample:
    """An image as a network input: image, annotations and camera through one random frame, colors, roll.

    ``sample`` says all of the image but its image. Raises PictureError where the image is damaged.
    """
    placed = transform_sample(
        stored_image, sample, sample_training_transform(stored_image.size, size, config, rng), config, rng
    )
    return roll_sample(placed, config.rotate, config.min_visible, rng) if config.rotate else placed


def transform_sample(
    stored_image: StoredImage,
    sample: Sample,
    transform: ImageTransform,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> Sample:
    """The sample with its image, in the frame's input, its colors changed at random; the padding stays as it is."""
    shrunk = choose_reduction(transform) if stored_image.is_reducible else 1
    image = jitter_color(crop_and_resize(stored_image.decode(shrunk), transform, shrunk), config.color, rng)
    annotations = {
        task: None if annotation is None else warp_annotation(annotation, transform, config.min_visible)
        for task, annotation in sample.annotations.items()
    }
    if config.weather and rng.random() < config.weather:
        image = add_weather(image, rng)
        annotations = {task: None if isinstance(a, ImageLabel) else a for task, a in annotations.items()}
    return dataclasses.replace(
        sample,
        image=pad_to_input(degrade_image(image, config.degrade, rng), transform, PAD_VALUE),
        annotations=annotations,
        camera=None if sample.camera is None else sample.camera.to_input(transform),
    )


def prepare_for_evaluation(sample: Sample, size: tuple[int, int]) -> Sample:
    """The image letterboxed and ``frame`` set; annotations and camera stay in source pixels."""
    height, width = sample.image.shape[:2]
    frame = compute_letterbox((height, width), size)
    return dataclasses.replace(sample, image=warp_image(sample.image, frame), transform=frame)
