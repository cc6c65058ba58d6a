"""The only preprocessing: placing a picture in the network's input, and the way back. numpy and cv2, no torch.

Training crops, evaluation letterboxes and the torch-free runtime all describe what they do by a `Frame` and call the
functions here, so a picture is never prepared in two ways. Normalisation is the network's own first layer.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.types import Annotation, Camera, DenseMap, Frame, ImageLabel, Instances

PAD_VALUE = 114
"""Gray of the padding around a letterboxed picture."""


def letterbox_frame(source: tuple[int, int], size: tuple[int, int]) -> Frame:
    """The frame that fits a whole picture of ``source`` (height, width) into ``size``, top left, aspect ratio kept."""
    height, width = source
    scale = min(size[0] / height, size[1] / width)
    placed = max(1, min(size[1], round(width * scale))), max(1, min(size[0], round(height * scale)))
    return Frame(source, size, (0, 0, width, height), (0, 0, *placed))


def warp_image(image: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] in source pixels to [h, w, 3] in input pixels, area-averaged where it shrinks."""
    x, y, width, height = frame.crop
    shrinks = frame.scale[0] < 1 or frame.scale[1] < 1
    return _place(
        image[y : y + height, x : x + width], frame, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR, PAD_VALUE
    )


def warp_map(values: NDArray, frame: Frame, fill: float) -> NDArray:
    """[H, W] values to input pixels by nearest neighbour; ``fill`` in the padding."""
    x, y, width, height = frame.crop
    return _place(values[y : y + height, x : x + width], frame, cv2.INTER_NEAREST_EXACT, fill)


def _place(cut: NDArray, frame: Frame, interpolation: int, fill: float) -> NDArray:
    x, y, width, height = frame.place
    if cut.shape[:2] != (height, width):
        cut = cv2.resize(cut, (width, height), interpolation=interpolation)
    if (height, width) == frame.input:
        canvas = cut
    else:
        canvas = np.full((*frame.input, *cut.shape[2:]), fill, cut.dtype)
        canvas[y : y + height, x : x + width] = cut
    return np.ascontiguousarray(canvas[:, ::-1]) if frame.flip else np.ascontiguousarray(canvas)


def unwarp_map(values: NDArray, frame: Frame, smooth: bool) -> NDArray:
    """[h, w] values in input pixels back to source pixels; ``smooth`` = bilinear, otherwise nearest neighbour.

    Only for frames that hold the whole source (letterbox).
    """
    if frame.flip:
        values = values[:, ::-1]
    x, y, width, height = frame.place
    cut = np.ascontiguousarray(values[y : y + height, x : x + width])
    if cut.shape == frame.source:
        return cut
    size = frame.source[1], frame.source[0]
    return cv2.resize(cut, size, interpolation=cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST_EXACT)


def warp_boxes(boxes: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    """[N, 4] boxes to input pixels, not clipped."""
    scale_x, scale_y = frame.scale
    moved = (boxes.astype(np.float64) - np.tile(frame.crop[:2], 2)) * (scale_x, scale_y, scale_x, scale_y)
    moved += np.tile(frame.place[:2], 2)
    if frame.flip:
        moved[:, [0, 2]] = frame.input[1] - moved[:, [2, 0]]
    return moved.astype(np.float32)


def unwarp_boxes(boxes: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    """[N, 4] boxes back to source pixels, clipped to the source."""
    moved = boxes.astype(np.float64)
    if frame.flip:
        moved[:, [0, 2]] = frame.input[1] - moved[:, [2, 0]]
    scale_x, scale_y = frame.scale
    moved = (moved - np.tile(frame.place[:2], 2)) / (scale_x, scale_y, scale_x, scale_y) + np.tile(frame.crop[:2], 2)
    height, width = frame.source
    return np.clip(moved, 0, (width, height, width, height)).astype(np.float32)


def warp(annotation: Annotation, frame: Frame, min_visible: float = 0.25) -> Annotation:
    """A target in source pixels (numpy) to input pixels.

    Boxes are clipped to the part of the picture that is visible. One whose visible share is under ``min_visible``, or
    that is under 1 px, becomes an ignore region: it is neither a good example nor background.
    """
    match annotation:
        case Instances():
            return _warp_instances(annotation, frame, min_visible)
        case DenseMap(values, valid):
            seen = warp_map(valid.astype(np.uint8), frame, 0).astype(bool)
            planes = values if values.ndim == 3 else values[None]
            moved = np.stack([warp_map(plane, frame, 0) for plane in planes])
            return DenseMap(moved if values.ndim == 3 else moved[0], seen)
        case ImageLabel():
            return annotation


def _warp_instances(target: Instances, frame: Frame, min_visible: float) -> Instances:
    boxes = warp_boxes(target.boxes, frame)
    x, y, width, height = frame.place
    left = frame.input[1] - x - width if frame.flip else x
    window = np.array([left, y, left + width, y + height], np.float32)
    window = np.clip(window, 0, np.array([frame.input[1], frame.input[0]] * 2, np.float32))
    clipped = np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))
    sides = clipped[:, 2:] - clipped[:, :2]
    area = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-9)
    inside = (sides > 0).all(1)
    doubtful = (sides.prod(1) / area < min_visible) | (sides < 1).any(1)
    ignore = doubtful if target.ignore is None else doubtful | target.ignore
    return Instances(
        boxes=clipped[inside],
        labels=target.labels[inside],
        ignore=ignore[inside],
        classes=target.classes,
        tracks=None if target.tracks is None else target.tracks[inside],
    )


def focal_factor(camera: Camera | None, frame: Frame, canonical_focal: float, default_focal: float) -> float:
    """What a canonical quantity must be multiplied with to be metres for this camera (in source pixels) and frame.

    default_focal: where ``camera`` is None, its focal length as a fraction of the source picture's width.

    Source: the camera-aware label transform of Metric3D (Yin et al. 2023), CSTM_label.
    """
    if not canonical_focal:
        return 1.0
    if camera is None:
        return default_focal * frame.source[1] * frame.scale[0] / canonical_focal
    moved = camera.through(frame)
    return 0.5 * (moved.fx + moved.fy) / canonical_focal
