"""Pictures drawn with their labels, small enough for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.ops import draw
from perception.ops.image import letterbox_frame, warp, warp_boxes, warp_image
from perception.types import Annotation, DenseMap, Frame, ImageLabel, Instances, TaskSpec

WIDTH = 420
"""Of a tile, pixels."""


def spec(task: str, classes: tuple[str, ...], limits: Any = None) -> TaskSpec:
    """What drawing needs to know of a task."""
    return TaskSpec(task, "dense", (), classes, "" if classes else "m", limits)


def tiles(
    image: NDArray[np.uint8], annotations: Mapping[str, Annotation], specs: Mapping[str, TaskSpec]
) -> tuple[list[bytes], str]:
    """JPEGs (the picture with boxes and label map, then each depth map), and the labels of the whole in words."""
    frame = _small(image.shape[:2])
    small = np.ascontiguousarray(warp_image(image, frame))
    scaled = {task: _scaled(annotation, frame) for task, annotation in annotations.items()}
    words, on_picture, depths = [], {}, []
    for task, annotation in scaled.items():
        if isinstance(annotation, ImageLabel):
            words.append(f"{task}: {draw.caption(annotation, replace(specs[task], shape='label', threshold=0.5))}")
        elif isinstance(annotation, DenseMap) and not specs[task].classes:
            depths.append(draw.draw_depth(annotation, _limits(annotation), "m"))
        else:
            on_picture[task] = annotation
    return [_jpeg(draw.draw(small, on_picture, specs)), *map(_jpeg, depths)], ", ".join(words)


def _small(size: tuple[int, int]) -> Frame:
    """Whole picture to at most `WIDTH` wide and as high; small ones as they are."""
    height, width = size
    scale = min(1.0, WIDTH / width, WIDTH / height)
    return letterbox_frame((height, width), (max(1, round(height * scale)), max(1, round(width * scale))))


def _scaled(annotation: Annotation, frame: Frame) -> Annotation:
    if isinstance(annotation, Instances):
        return replace(annotation, boxes=warp_boxes(np.asarray(annotation.boxes).reshape(-1, 4), frame))
    return warp(annotation, frame) if isinstance(annotation, DenseMap) else annotation


def _limits(depth: DenseMap) -> tuple[float, float] | None:
    known = np.asarray(depth.values)[np.asarray(depth.valid, bool)]
    if not known.size:
        return None
    low, high = np.percentile(known, (1, 99))
    return float(low) * 0.95, float(high) * 1.05


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()
