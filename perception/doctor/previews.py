"""Images with their labels drawn, small enough for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.ops import draw
from perception.ops.image import compute_letterbox, warp_annotation, warp_boxes, warp_image
from perception.types import Annotation, DenseMap, ImageLabel, ImageTransform, Instances, TaskSpec

TILE_WIDTH = 420
"""Width of a tile, pixels."""


def create_drawing_spec(task: str, classes: tuple[str, ...], limits: tuple[float, float] | None = None) -> TaskSpec:
    """Create the spec that drawing needs for a task."""
    return TaskSpec(task, "dense", (), classes, "" if classes else "m", limits)


def draw_tiles(
    image: NDArray[np.uint8], annotations: Mapping[str, Annotation], specs: Mapping[str, TaskSpec]
) -> tuple[list[bytes], str]:
    """Draw an image with its labels.

    Args:
        image: uint8 RGB [H, W, 3].
        annotations: task -> labels in pixels of the image.
        specs: task -> spec for drawing.

    Returns:
        (JPEGs, caption): the image with boxes and segmentation mask, then each depth map; image-level labels in words.
    """
    frame = _fit_to_tile(image.shape[:2])
    small = np.ascontiguousarray(warp_image(image, frame))
    scaled = {task: _scale_annotation(annotation, frame) for task, annotation in annotations.items()}
    words, on_image, depths = [], {}, []
    for task, annotation in scaled.items():
        if isinstance(annotation, ImageLabel):
            spec = replace(specs[task], annotation_type="label", score_threshold=0.5)
            words.append(f"{task}: {draw.format_label(annotation, spec)}")
        elif isinstance(annotation, DenseMap) and not specs[task].classes:
            depths.append(draw.draw_depth(annotation, _measure_depth_range(annotation), "m"))
        else:
            on_image[task] = annotation
    return [_encode_jpeg(draw.draw_annotations(small, on_image, specs)), *map(_encode_jpeg, depths)], ", ".join(words)


def _fit_to_tile(size: tuple[int, int]) -> ImageTransform:
    """Fit the whole image into `TILE_WIDTH` x `TILE_WIDTH`. Small images keep their size."""
    height, width = size
    scale = min(1.0, TILE_WIDTH / width, TILE_WIDTH / height)
    return compute_letterbox((height, width), (max(1, round(height * scale)), max(1, round(width * scale))))


def _scale_annotation(annotation: Annotation, transform: ImageTransform) -> Annotation:
    if isinstance(annotation, Instances):
        return replace(annotation, boxes=warp_boxes(np.asarray(annotation.boxes).reshape(-1, 4), transform))
    return warp_annotation(annotation, transform) if isinstance(annotation, DenseMap) else annotation


def _measure_depth_range(depth: DenseMap) -> tuple[float, float] | None:
    known = np.asarray(depth.values)[np.asarray(depth.valid, bool)]
    if not known.size:
        return None
    low, high = np.percentile(known, (1, 99))
    return float(low) * 0.95, float(high) * 1.05


def _encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()
