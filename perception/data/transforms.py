"""Transforms of a sample for training (crop and zoom, colors, roll) and for evaluation (letterbox)."""

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

    Attributes:
        scale: smallest and largest zoom relative to the letterboxed image.
        flip: probability of mirroring left to right.
        rotate: largest roll of the camera in degrees, in both directions; 0 = none.
        color: probability of changing brightness and contrast, and of hue and saturation. Gamma has half of it.
        degrade: probability of each of blur, noise and JPEG artifacts.
        weather: probability of night, haze, rain or a cast shadow. Such an image loses its image labels, because they
            may describe the weather.
        mosaic: probability that four images of the source share the input (see `perception.data.mosaic`).
        min_visible: visible fraction of a box below which it becomes an ignore region.
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
    """Sample a zoom, crop or placement, and flip from ``source_size`` (height, width) to ``size``."""
    return sample_image_transform(
        source_size, size, sample_zoom(config, rng) * fit_scale(source_size, size), config.flip, rng
    )


def sample_zoom(config: AugmentConfig, rng: np.random.Generator) -> float:
    """Sample a zoom from ``config.scale``, uniform in the logarithm."""
    return math.exp(rng.uniform(math.log(config.scale[0]), math.log(config.scale[1])))


def fit_scale(source_size: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the largest scale, in input pixels per source pixel, at which the whole image fits."""
    return min(size[0] / source_size[0], size[1] / source_size[1])


def sample_image_transform(
    source_size: tuple[int, int], size: tuple[int, int], scale: float, flip_probability: float, rng: np.random.Generator
) -> ImageTransform:
    """Sample a random crop of the image, or a random place in the input.

    If the image shrinks to a half, a quarter or an eighth, the crop is a multiple of 2, 4 or 8 pixels. It then matches
    an image decoded at reduced size exactly. Up to 7 source pixels at the right and lower edge are dropped.

    Args:
        source_size: (height, width) of the image.
        size: (height, width) of the input.
        scale: input pixels per source pixel.
        flip_probability: probability of mirroring left to right.
        rng: source of randomness.
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
    """Return the largest reduction (1, 2, 4 or 8) in decoding that still gives one pixel per placed input pixel."""
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
    """Augment an image for training: one random crop and zoom, colors, roll, applied to annotations and camera too.

    Args:
        stored_image: the image, not decoded.
        sample: annotations and camera; its ``image`` is not used.
        size: (height, width) of the input.
        config: the random changes.
        rng: source of randomness.

    Raises:
        ImageError: the image is damaged.
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
    """Apply ``transform`` to image, annotations and camera, and random color changes to the image without padding."""
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
    """Letterbox the image to ``size`` and set ``transform``. Annotations and camera stay in source pixels."""
    height, width = sample.image.shape[:2]
    frame = compute_letterbox((height, width), size)
    return dataclasses.replace(sample, image=warp_image(sample.image, frame), transform=frame)
