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
    placed = _ratio(width * size[0], height), _ratio(height * size[1], width)
    placed = max(1, min(size[1], placed[0])), max(1, min(size[0], placed[1]))
    return Frame(source, size, (0, 0, width, height), (0, 0, *placed))


def _ratio(above: int, below: int) -> int:
    """``above / below`` to the nearest, halves to even, in whole numbers: an exported graph computes the same."""
    whole, rest = divmod(above, below)
    return whole + (2 * rest > below or (2 * rest == below and whole % 2 == 1))


def warp_image(image: NDArray[np.uint8], frame: Frame, reduction: int = 1) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] in source pixels to [h, w, 3] in input pixels, area-averaged where it shrinks.

    reduction: ``image`` is the source shrunk by this whole number, of which the frame's crop is a multiple
    """
    return on_canvas(cut_image(image, frame, reduction), frame, PAD_VALUE)


def cut_image(image: NDArray[np.uint8], frame: Frame, reduction: int = 1) -> NDArray[np.uint8]:
    """As `warp_image`, without the padding: [h, w, 3] of the frame's place, mirrored where the frame is."""
    x, y, width, height = (side // reduction for side in frame.crop)
    resized = _resized(image[y : y + height, x : x + width], frame.place[2:])
    return np.asarray(cv2.flip(resized, 1), np.uint8) if frame.flip else resized


def warp_map(values: NDArray, frame: Frame, fill: float) -> NDArray:
    """[H, W] values to input pixels by nearest neighbour; ``fill`` in the padding."""
    x, y, width, height = frame.crop
    cut = values[y : y + height, x : x + width]
    if cut.shape != frame.place[:1:-1]:
        cut = _resize(cut, frame.place[2:], cv2.INTER_NEAREST_EXACT)
    return on_canvas(cut[:, ::-1] if frame.flip else cut, frame, fill)


def on_canvas(cut: NDArray, frame: Frame, fill: float) -> NDArray:
    """What a frame places, [h, w] or [h, w, C] and mirrored where the frame is, on a canvas of its input's size."""
    if cut.shape[:2] == frame.input:
        return np.ascontiguousarray(cut)
    canvas = np.full((*frame.input, *cut.shape[2:]), fill, cut.dtype)
    left, top, right, bottom = window(frame)
    canvas[top:bottom, left:right] = cut
    return canvas


def window(frame: Frame) -> tuple[int, int, int, int]:
    """x1 y1 x2 y2 of the picture within the input, after mirroring."""
    x, y, width, height = frame.place
    left = frame.input[1] - x - width if frame.flip else x
    return left, y, left + width, y + height


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resized to ``size`` (width, height).

    Bilinear up to a shrinkage of 1.4, where it is as close to the ideal (Lanczos) as the mean over areas; up to 2.8
    bilinear to twice the size and the mean of 2 x 2, which is nearly the mean over areas in a third of its time.
    """
    present = image.shape[1], image.shape[0]
    shrinkage = max(present[0] / size[0], present[1] / size[1])
    if shrinkage < 1.4:
        return image if present == size else _resize(image, size, cv2.INTER_LINEAR)
    doubled = 2 * size[0], 2 * size[1]
    if shrinkage < 2.8 and present != doubled:
        image = _resize(image, doubled, cv2.INTER_LINEAR)
    return _resize(image, size, cv2.INTER_AREA)


def _resize(image: NDArray, size: tuple[int, int], interpolation: int) -> NDArray:
    return np.asarray(cv2.resize(image, size, interpolation=interpolation))


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
        case DenseMap(values=values, valid=valid, classes=classes):
            seen = warp_map(valid.view(np.uint8), frame, 0).view(bool)
            planes = values if values.ndim == 3 else values[None]
            moved = np.stack([warp_map(plane, frame, 0) for plane in planes])
            return DenseMap(moved if values.ndim == 3 else moved[0], seen, classes=classes)
        case ImageLabel():
            return annotation


def _warp_instances(target: Instances, frame: Frame, min_visible: float) -> Instances:
    boxes = warp_boxes(target.boxes, frame)
    left, top, right, bottom = window(frame)
    low = np.array([max(left, 0), max(top, 0)] * 2, np.float32)
    high = np.array([min(right, frame.input[1]), min(bottom, frame.input[0])] * 2, np.float32)
    clipped = np.clip(boxes, low, high)
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
        partial=target.partial,
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
