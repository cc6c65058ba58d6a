"""Mosaic augmentation: four images of a source on one network input, with the labels that all of them have.

A class counts as labeled only if all four tiles label it. A task that no tile labels is absent. The area of a tile
without the task is an ignore region, or invalid. The input has one camera, and depth is scaled to that camera.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perception.data.rotate import roll_sample
from perception.data.transforms import AugmentConfig, fit_scale, sample_image_transform, sample_zoom, transform_sample
from perception.files.images import StoredImage
from perception.types import Annotation, Camera, DenseMap, ImageLabel, Instances, Sample

Tile = tuple[int, int, int, int]
"""x, y, width, height in pixels of the input."""

MIN_TILE_FRACTION = 0.3
"""Minimum size of a tile as a fraction of the input's height and width."""


def sample_tiles(size: tuple[int, int], rng: np.random.Generator) -> list[Tile]:
    """Divide an input of ``size`` (height, width) into four tiles at a random point."""
    y, x = (round(side * rng.uniform(MIN_TILE_FRACTION, 1 - MIN_TILE_FRACTION)) for side in size)
    return [(0, 0, x, y), (x, 0, size[1] - x, y), (0, y, x, size[0] - y), (x, y, size[1] - x, size[0] - y)]


class Mosaic:
    """Four tiles with one random zoom.

    The zoom is relative to each image letterboxed in the whole input, so objects have the same size as without mosaic.
    """

    def __init__(self, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> None:
        self.size, self.config = size, config
        self.tiles = sample_tiles(size, rng)
        self.zoom = sample_zoom(config, rng)

    def place_tile(self, stored_image: StoredImage, sample: Sample, number: int, rng: np.random.Generator) -> Sample:
        """Return a random crop of the size of tile ``number``. Raises ImageError if the image is damaged."""
        width, height = self.tiles[number][2:]
        scale = self.zoom * fit_scale(stored_image.size, self.size)
        frame = sample_image_transform(stored_image.size, (height, width), scale, self.config.flip, rng)
        return transform_sample(stored_image, sample, frame, self.config, rng)

    def join_tiles(self, samples: Sequence[Sample], rng: np.random.Generator) -> Sample:
        """Join the four samples from `place_tile` to one network input."""
        whole = join_samples(samples, self.tiles, self.size)
        return roll_sample(whole, self.config.rotate, self.config.min_visible, rng) if self.config.rotate else whole


def join_samples(samples: Sequence[Sample], tiles: Sequence[Tile], size: tuple[int, int]) -> Sample:
    """Join samples, each as large as its tile, to one sample of ``size`` (height, width).

    The camera is the first known one, moved to its tile. The id and the source are those of the first sample.
    """
    image = np.empty((*size, 3), np.uint8)
    for sample, (x, y, width, height) in zip(samples, tiles, strict=True):
        image[y : y + height, x : x + width] = sample.image
    annotations: dict[str, Annotation | None] = {}
    for task in dict.fromkeys(task for sample in samples for task in sample.annotations):
        parts = [sample.annotations.get(task) for sample in samples]
        known = next((part for part in parts if part is not None), None)
        if isinstance(known, Instances):
            annotations[task] = _join_instances(parts, tiles)
        elif isinstance(known, DenseMap):
            annotations[task] = _join_dense_maps(parts, tiles, size, _focal_factors(samples))
        elif isinstance(known, ImageLabel):
            annotations[task] = _join_image_labels(parts)
        else:
            annotations[task] = None
    return dataclasses.replace(samples[0], image=image, annotations=annotations, camera=_find_camera(samples, tiles))


def _find_camera(samples: Sequence[Sample], tiles: Sequence[Tile]) -> Camera | None:
    for sample, (x, y, _, _) in zip(samples, tiles, strict=True):
        if sample.camera is not None:
            return dataclasses.replace(sample.camera, cx=sample.camera.cx + x, cy=sample.camera.cy + y)
    return None


def _focal_factors(samples: Sequence[Sample]) -> list[float | None]:
    """Factors for the metres of each tile; None = only the cameras of other tiles are known.

    The network predicts metres / f for the focal length f of its input. The metres of a tile with focal length g are
    therefore multiplied by f / g (label transform of Metric3D, Yin et al. 2023). If no camera is known, all images use
    the default focal length, a fraction of the letterboxed width, and the same zoom, so the factors are 1.
    """
    focals = [None if c is None else 0.5 * (c.fx + c.fy) for c in (sample.camera for sample in samples)]
    first = next((focal for focal in focals if focal is not None), None)
    if first is None:
        return [1.0] * len(samples)
    return [None if focal is None else first / focal for focal in focals]


def _join_dense_maps(
    parts: Sequence[Annotation | None], tiles: Sequence[Tile], size: tuple[int, int], factors: Sequence[float | None]
) -> DenseMap:
    """The values of the tiles, invalid if a tile has none.

    Floating point values are metres. Others are class ids, with the same meaning in all images of a source.
    """
    known = [part for part in parts if isinstance(part, DenseMap)]
    kind = np.result_type(*(part.values.dtype for part in known))
    values = np.zeros((*known[0].values.shape[:-2], *size), kind)
    valid = np.zeros(size, bool)
    for part, (x, y, width, height), factor in zip(parts, tiles, factors, strict=True):
        if not isinstance(part, DenseMap):
            continue
        inside = slice(y, y + height), slice(x, x + width)
        if kind.kind != "f":
            values[(..., *inside)] = part.values
            valid[inside] = part.valid
        elif factor is not None:
            np.multiply(part.values, factor, out=values[(..., *inside)], casting="same_kind")
            valid[inside] = part.valid
    return DenseMap(values, valid, label_space=known[0].label_space)


def _join_instances(parts: Sequence[Annotation | None], tiles: Sequence[Tile]) -> Instances:
    """The boxes of the tiles. A whole tile without labels is an ignore region.

    Boxes of a class that not all tiles label are dropped: the class is not trained in this image. Ignore regions
    have no class and are kept.
    """
    classes = _intersect_class_masks([part.labeled_classes for part in parts if isinstance(part, Instances)])
    boxes, labels, ignore = [], [], []
    for part, (x, y, width, height) in zip(parts, tiles, strict=True):
        if isinstance(part, Instances):
            unsure = np.zeros(len(part.labels), bool) if part.ignore is None else part.ignore
            kept = np.ones(len(unsure), bool) if classes is None else classes[part.labels] | unsure
            boxes.append(part.boxes[kept] + np.array([x, y, x, y], np.float32))
            labels.append(part.labels[kept])
            ignore.append(unsure[kept])
        else:
            boxes.append(np.array([[x, y, x + width, y + height]], np.float32))
            labels.append(np.zeros(1, np.int64))
            ignore.append(np.ones(1, bool))
    partial = [
        part.partial_classes for part in parts if isinstance(part, Instances) and part.partial_classes is not None
    ]
    return Instances(
        np.concatenate(boxes), np.concatenate(labels), ignore=np.concatenate(ignore), labeled_classes=classes,
        partial_classes=None if not partial or classes is None else np.logical_or.reduce(partial) & classes,
    )  # fmt: skip


def _join_image_labels(parts: Sequence[Annotation | None]) -> ImageLabel | None:
    """The label that is true for the whole input; None if a tile has no label or a different one.

    Multi-label targets, which state their labeled classes, are joined: the union of the classes of the tiles.
    """
    labels = [part for part in parts if isinstance(part, ImageLabel)]
    if len(labels) < len(parts):
        return None
    first = labels[0]
    if all(
        np.array_equal(first.values, label.values) and _is_same(first.labeled_classes, label.labeled_classes)
        for label in labels
    ):
        return first
    classes = _intersect_class_masks([label.labeled_classes for label in labels])
    if any(label.labeled_classes is None for label in labels) or classes is None or not classes.any():
        return None
    values = np.maximum.reduce([label.values for label in labels])
    return ImageLabel(np.where(classes, values, np.float32(0)), classes)


def _is_same(first: NDArray | None, second: NDArray | None) -> bool:
    return first is second if first is None or second is None else np.array_equal(first, second)


def _intersect_class_masks(masks: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
    stated = [mask for mask in masks if mask is not None]
    return np.logical_and.reduce(stated) if stated else None
