"""Place images in the network input and map results back. numpy and cv2, no torch.

Training crops, evaluation and the torch-free runtime all describe their preprocessing as an `ImageTransform` and use
these functions, so preprocessing is identical everywhere. Normalization is the first layer of the network.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.types import Annotation, Camera, DenseMap, ImageLabel, ImageTransform, Instances

PAD_VALUE = 114
"""Gray value of the padding around a letterboxed image."""


def compute_letterbox(source_size: tuple[int, int], input_size: tuple[int, int]) -> ImageTransform:
    """Fit a whole image of ``source_size`` (height, width) into ``input_size``, at the top left.

    The aspect ratio is kept.
    """
    height, width = source_size
    placed = _round_ratio(width * input_size[0], height), _round_ratio(height * input_size[1], width)
    placed = max(1, min(input_size[1], placed[0])), max(1, min(input_size[0], placed[1]))
    return ImageTransform(source_size, input_size, (0, 0, width, height), (0, 0, *placed))


def _round_ratio(numerator: int, denominator: int) -> int:
    """Round ``numerator / denominator``, halves to even. Integer arithmetic: an exported graph computes the same."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


def warp_image(image: NDArray[np.uint8], transform: ImageTransform, reduction: int = 1) -> NDArray[np.uint8]:
    """Map uint8 [H, W, 3] in source pixels to [h, w, 3] in input pixels. Downscaling averages over areas.

    Args:
        image: the source image, downscaled by ``reduction``.
        transform: the mapping.
        reduction: integer factor; the transform's crop is a multiple of it.
    """
    return pad_to_input(crop_and_resize(image, transform, reduction), transform, PAD_VALUE)


def crop_and_resize(image: NDArray[np.uint8], transform: ImageTransform, reduction: int = 1) -> NDArray[np.uint8]:
    """As `warp_image`, without padding: [h, w, 3], the size of the placement."""
    x, y, width, height = (side // reduction for side in transform.crop)
    resized = _resize_image(image[y : y + height, x : x + width], transform.placement[2:])
    return np.asarray(cv2.flip(resized, 1), np.uint8) if transform.flip else resized


def warp_map(values: NDArray, transform: ImageTransform, fill_value: float) -> NDArray:
    """Map [H, W] values to input pixels by nearest neighbor; the padding is ``fill_value``."""
    x, y, width, height = transform.crop
    cut = values[y : y + height, x : x + width]
    if cut.shape != transform.placement[:1:-1]:
        cut = _cv2_resize(cut, transform.placement[2:], cv2.INTER_NEAREST_EXACT)
    return pad_to_input(cut[:, ::-1] if transform.flip else cut, transform, fill_value)


def pad_to_input(values: NDArray, transform: ImageTransform, fill_value: float) -> NDArray:
    """Pad cropped, resized and mirrored values [h, w] or [h, w, C] to the input size."""
    if values.shape[:2] == transform.input_size:
        return np.ascontiguousarray(values)
    canvas = np.full((*transform.input_size, *values.shape[2:]), fill_value, values.dtype)
    left, top, right, bottom = content_box(transform)
    canvas[top:bottom, left:right] = values
    return canvas


def content_box(transform: ImageTransform) -> tuple[int, int, int, int]:
    """Return x1 y1 x2 y2 of the image within the input, after mirroring."""
    x, y, width, height = transform.placement
    left = transform.input_size[1] - x - width if transform.flip else x
    return left, y, left + width, y + height


def _resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize to ``size`` (width, height).

    Up to a downscaling of 1.4, bilinear is as close to the ideal (Lanczos) as area averaging. Up to 2.8, bilinear to
    twice the size and 2 x 2 averaging is nearly area averaging in a third of its time.
    """
    present = image.shape[1], image.shape[0]
    shrinkage = max(present[0] / size[0], present[1] / size[1])
    if shrinkage < 1.4:
        return image if present == size else _cv2_resize(image, size, cv2.INTER_LINEAR)
    doubled = 2 * size[0], 2 * size[1]
    if shrinkage < 2.8 and present != doubled:
        image = _cv2_resize(image, doubled, cv2.INTER_LINEAR)
    return _cv2_resize(image, size, cv2.INTER_AREA)


def _cv2_resize(image: NDArray, size: tuple[int, int], interpolation: int) -> NDArray:
    return np.asarray(cv2.resize(image, size, interpolation=interpolation))


def unwarp_map(values: NDArray, transform: ImageTransform, smooth: bool) -> NDArray:
    """Map [h, w] values in input pixels back to source pixels.

    Args:
        values: [h, w].
        transform: the mapping; it must contain the whole source (letterbox).
        smooth: bilinear interpolation; otherwise nearest neighbor.
    """
    if transform.flip:
        values = values[:, ::-1]
    x, y, width, height = transform.placement
    cut = np.ascontiguousarray(values[y : y + height, x : x + width])
    if cut.shape == transform.source_size:
        return cut
    size = transform.source_size[1], transform.source_size[0]
    return cv2.resize(cut, size, interpolation=cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST_EXACT)


def warp_boxes(boxes: NDArray[np.float32], transform: ImageTransform) -> NDArray[np.float32]:
    """Map [N, 4] boxes to input pixels, without clipping."""
    scale_x, scale_y = transform.scale
    moved = (boxes.astype(np.float64) - np.tile(transform.crop[:2], 2)) * (scale_x, scale_y, scale_x, scale_y)
    moved += np.tile(transform.placement[:2], 2)
    if transform.flip:
        moved[:, [0, 2]] = transform.input_size[1] - moved[:, [2, 0]]
    return moved.astype(np.float32)


def unwarp_boxes(boxes: NDArray[np.float32], transform: ImageTransform) -> NDArray[np.float32]:
    """Map [N, 4] boxes back to source pixels and clip them to the source."""
    moved = boxes.astype(np.float64)
    if transform.flip:
        moved[:, [0, 2]] = transform.input_size[1] - moved[:, [2, 0]]
    scale_x, scale_y = transform.scale
    moved = (moved - np.tile(transform.placement[:2], 2)) / (scale_x, scale_y, scale_x, scale_y) + np.tile(
        transform.crop[:2], 2
    )
    height, width = transform.source_size
    return np.clip(moved, 0, (width, height, width, height)).astype(np.float32)


def warp_annotation(annotation: Annotation, transform: ImageTransform, min_visibility: float = 0.25) -> Annotation:
    """Map a target (numpy) from source pixels to input pixels.

    Boxes are clipped to the visible part of the image. A box becomes an ignore region if less than ``min_visibility``
    of its area is visible or a side is under 1 px: it is then neither a good example nor background.
    """
    match annotation:
        case Instances():
            return _warp_instances(annotation, transform, min_visibility)
        case DenseMap(values=values, valid=valid, label_space=classes):
            seen = warp_map(valid.view(np.uint8), transform, 0).view(bool)
            planes = values if values.ndim == 3 else values[None]
            moved = np.stack([warp_map(plane, transform, 0) for plane in planes])
            return DenseMap(moved if values.ndim == 3 else moved[0], seen, label_space=classes)
        case ImageLabel():
            return annotation


def _warp_instances(target: Instances, transform: ImageTransform, min_visibility: float) -> Instances:
    boxes = warp_boxes(target.boxes, transform)
    left, top, right, bottom = content_box(transform)
    low = np.array([max(left, 0), max(top, 0)] * 2, np.float32)
    high = np.array([min(right, transform.input_size[1]), min(bottom, transform.input_size[0])] * 2, np.float32)
    clipped = np.clip(boxes, low, high)
    sides = clipped[:, 2:] - clipped[:, :2]
    area = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-9)
    inside = (sides > 0).all(1)
    doubtful = (sides.prod(1) / area < min_visibility) | (sides < 1).any(1)
    ignore = doubtful if target.ignore is None else doubtful | target.ignore
    return Instances(
        boxes=clipped[inside],
        labels=target.labels[inside],
        ignore=ignore[inside],
        labeled_classes=target.labeled_classes,
        track_ids=None if target.track_ids is None else target.track_ids[inside],
        partial_classes=target.partial_classes,
    )


def focal_scale(
    camera: Camera | None, transform: ImageTransform, canonical_focal: float, default_focal: float
) -> float:
    """Return the factor that converts a canonical quantity to metres for a camera and a transform.

    Source: the camera-aware label transform of Metric3D (Yin et al. 2023), CSTM_label.

    Args:
        camera: intrinsics in source pixels; None = unknown.
        transform: mapping from source to input.
        canonical_focal: reference focal length in input pixels; 0 = the factor is 1.
        default_focal: focal length if ``camera`` is None, as a fraction of the source image's width.
    """
    if not canonical_focal:
        return 1.0
    if camera is None:
        return default_focal * transform.source_size[1] * transform.scale[0] / canonical_focal
    moved = camera.to_input(transform)
    return 0.5 * (moved.fx + moved.fy) / canonical_focal
