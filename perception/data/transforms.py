"""What training does to a sample (one frame, then colours) and what evaluation does (letterbox)."""

from __future__ import annotations

import dataclasses
import math
import os
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.config import configuration
from perception.ops.image import PAD_VALUE, letterbox_frame, warp, warp_image
from perception.types import ConfigError, Frame, Sample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server for its version when imported, otherwise


@configuration
class AugmentConfig:
    """Random changes to a training picture.

    scale:   smallest and largest zoom relative to the letterboxed picture
    flip:    probability of mirroring left to right
    colour:  probability of each change of brightness, contrast, hue, saturation and gamma
    degrade: probability of blur, noise or JPEG artefacts, each
    min_visible: share of a box that must stay in sight for it to count as an example; under it, an ignore region
    """

    scale: tuple[float, float] = (0.5, 1.5)
    flip: float = 0.5
    colour: float = 0.5
    degrade: float = 0.1
    min_visible: float = 0.25

    def __post_init__(self) -> None:
        if not 0.05 <= self.scale[0] <= self.scale[1] <= 20:
            raise ConfigError(
                f"augment.scale is {list(self.scale)}. Expected smallest and largest zoom, within 0.05 to 20."
            )
        for name in ("flip", "colour", "degrade", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}. Expected 0 to 1.")


def training_frame(
    source: tuple[int, int], size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> Frame:
    """A random zoom, crop or placement, and mirroring of a picture of ``source`` (height, width) into ``size``."""
    zoom = math.exp(rng.uniform(math.log(config.scale[0]), math.log(config.scale[1])))
    scale = zoom * min(size[0] / source[0], size[1] / source[1])
    cut = [max(1, min(side, round(room / scale))) for side, room in zip(source, size, strict=True)]
    placed = [max(1, min(room, round(side * scale))) for side, room in zip(cut, size, strict=True)]
    y, x = (int(rng.integers(side - part + 1)) for side, part in zip(source, cut, strict=True))
    top, left = (int(rng.integers(room - part + 1)) for room, part in zip(size, placed, strict=True))
    crop, place = (x, y, cut[1], cut[0]), (left, top, placed[1], placed[0])
    return Frame((source[0], source[1]), size, crop, place, bool(rng.random() < config.flip))


def for_training(sample: Sample, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Sample:
    """The sample as a network input: image, annotations and camera through one random frame, then the colours."""
    height, width = sample.image.shape[:2]
    frame = training_frame((height, width), size, config, rng)
    annotations = {
        task: None if annotation is None else warp(annotation, frame, config.min_visible)
        for task, annotation in sample.annotations.items()
    }
    return dataclasses.replace(
        sample,
        image=_recoloured(warp_image(sample.image, frame), frame, config, int(rng.integers(2**31))),
        annotations=annotations,
        camera=None if sample.camera is None else sample.camera.through(frame),
    )


def for_evaluation(sample: Sample, size: tuple[int, int]) -> Sample:
    """The image letterboxed and ``frame`` set; annotations and camera stay in source pixels."""
    height, width = sample.image.shape[:2]
    frame = letterbox_frame((height, width), size)
    return dataclasses.replace(sample, image=warp_image(sample.image, frame), frame=frame)


def _recoloured(image: NDArray[np.uint8], frame: Frame, config: AugmentConfig, seed: int) -> NDArray[np.uint8]:
    if not config.colour and not config.degrade:
        return image
    compose = _photometric(config.colour, config.degrade)
    compose.set_random_seed(seed)
    changed = compose(image=image)["image"]
    return _padded_again(changed, frame)


def _padded_again(image: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """The padding as evaluation has it, whatever happened to the colours."""
    x, y, width, height = frame.place
    if frame.flip:
        x = frame.input[1] - x - width
    image[:y], image[y + height :] = PAD_VALUE, PAD_VALUE
    image[:, :x], image[:, x + width :] = PAD_VALUE, PAD_VALUE
    return image


@lru_cache(maxsize=4)
def _photometric(colour: float, degrade: float) -> Any:
    import albumentations as changes

    return changes.Compose(
        [
            changes.RandomBrightnessContrast(brightness_limit=0.25, contrast_limit=0.25, p=colour),
            changes.HueSaturationValue(hue_shift_limit=12, sat_shift_limit=35, val_shift_limit=0, p=colour),
            changes.RandomGamma(gamma_limit=(75, 130), p=0.5 * colour),
            changes.OneOf([changes.GaussianBlur(blur_limit=(3, 5)), changes.MotionBlur(blur_limit=(3, 7))], p=degrade),
            changes.GaussNoise(std_range=(0.01, 0.05), noise_scale_factor=0.5, p=degrade),
            changes.ImageCompression(quality_range=(40, 90), p=degrade),
        ]
    )
