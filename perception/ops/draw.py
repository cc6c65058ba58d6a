"""Draw predictions and targets. numpy and cv2 only, so the torch-free runtime uses this module too.

`draw_annotations` draws everything on the image, `draw_depth` colors a depth map, `perception.ops.panel` shows them
side by side. All return uint8 RGB. The output size depends only on the image size and the specs, not on the content,
so the results can be written to a video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.ops.draw_text import Color, Rectangle, RgbImage, TextLayout, brighten, text_scale
from perception.ops.legend import draw_color_bar
from perception.ops.palette import class_palette, resolve_label_space
from perception.types import Annotation, DenseMap, ImageLabel, Instances, Prediction, TaskSpec

Specs: TypeAlias = Mapping[str, TaskSpec]
Annotations: TypeAlias = Mapping[str, Annotation | None]

INVALID_COLOR: Color = (48, 48, 48)
"""Color of invalid pixels in a depth map."""
IGNORE_COLOR: Color = (0, 0, 0)
"""Color of invalid pixels in a segmentation mask (as in Cityscapes; dark gray is its building color)."""
IGNORE_REGION_COLOR: Color = (160, 160, 160)
"""Outline of ignore regions."""


def draw_annotations(
    image: NDArray, annotations: Annotations, specs: Specs, notes: Sequence[str] = (), warning: str = ""
) -> RgbImage:
    """Draw segmentation mask, boxes ("car 0.87 14 m") and image labels (as a caption) on the image.

    A quantity (depth) is not drawn on the image. It is drawn alone if there is no other annotation.

    Args:
        image: uint8 RGB [H, W, 3], or gray [H, W].
        annotations: predictions or targets in pixels of ``image``. Names without a spec are skipped.
        specs: task name -> specification.
        notes: [N], text after the label of each box of the first "instances" task, as from `format_distances`; () =
            none.
        warning: text on a red band at the top; "" = no band.
    """
    canvas = _copy_as_rgb(image)
    found = select_drawable(annotations, specs)
    quantities = {name: a for name, a in found.items() if isinstance(a, DenseMap) and not specs[name].classes}
    if quantities and len(quantities) == len(found):
        name, depth = next(iter(quantities.items()))
        return draw_depth(depth, specs[name].limits, specs[name].unit)
    for name, annotation in found.items():
        if isinstance(annotation, DenseMap) and name not in quantities:
            _blend_mask(canvas, annotation, specs[name].classes)
    writing = TextLayout(canvas)
    if warning:
        writing.add_warning(warning)
    for name, annotation in found.items():
        if isinstance(annotation, ImageLabel):
            writing.add_caption(format_label(annotation, specs[name]))
    for name, annotation in found.items():
        if isinstance(annotation, Instances):
            _draw_instances(writing, annotation, specs[name], notes)
            notes = ()
    return canvas


def draw_segmentation_mask(mask: DenseMap, classes: Sequence[str]) -> RgbImage:
    """Color a segmentation mask by class; black where it is not valid.

    Each set of classes of a label space has its own color.
    """
    mask, classes = resolve_label_space(mask, classes)
    values = np.asarray(mask.values)
    if values.dtype != np.uint8:
        values = np.where((values >= 0) & (values < len(classes)), values, 255).astype(np.uint8)
    picture = np.asarray(cv2.applyColorMap(values, _color_table(classes)), np.uint8)
    valid = np.asarray(mask.valid, np.bool_)
    if not valid.all():
        picture[~valid] = IGNORE_COLOR
    return picture


def draw_depth(
    depth: DenseMap, limits: tuple[float, float] | None, unit: str = "m", show_legend: bool = True
) -> RgbImage:
    """Color a depth map with the turbo color map, near = red, logarithmic scale; dark gray where it is not valid.

    Args:
        depth: float32 [H, W], metres.
        limits: metres at both ends of the scale; None = those of this map.
        unit: unit in the legend.
        show_legend: draw a color bar if there is enough space.
    """
    values = np.asarray(depth.values, np.float32)
    valid = np.asarray(depth.valid, np.bool_) & (values > 0) & (values < np.inf)
    low, high = color_limits(values[valid] if limits is None else values[:0], limits)
    if not valid.all():
        values = np.where(valid, values, np.float32(high))
    steps = 255 / np.log(high / low)
    place = cv2.convertScaleAbs(cv2.log(np.clip(values, low, high)), alpha=-steps, beta=steps * np.log(high))
    canvas = np.asarray(cv2.applyColorMap(place, _turbo_table()), np.uint8)
    if not valid.all():
        canvas[~valid] = INVALID_COLOR
    height, width = canvas.shape[:2]
    bar = min(width - 2, max(160, width // 2)), round(34 * text_scale(canvas) / 0.4)
    if show_legend and bar[0] >= 100 and height >= 3 * bar[1]:
        canvas[height - bar[1] :, width - bar[0] :] = draw_color_bar(bar, (low, high), unit, text_scale(canvas))
    return canvas


def format_label(label: ImageLabel, spec: TaskSpec) -> str:
    """Format an image label: "day 0.98", "day" for a target, "no label" if no class reaches the threshold."""
    values = np.asarray(label.values, np.float64)
    order = np.argsort(-values, kind="stable")
    chosen = [k for k in order if values[k] >= spec.score_threshold] if spec.multi_label else order[:1]
    certain = bool(np.isin(values, (0, 1)).all())
    words = [spec.classes[k] if certain else f"{spec.classes[k]} {values[k]:.2f}" for k in chosen]
    return ", ".join(words) or "no label"


def format_distances(prediction: Prediction) -> list[str]:
    """Format the distance of each box of the first "instances" task: "14 m", "14 m +3.2 m/s 4.4 s".

    The second value is the closing speed, the third one the time to contact.
    """
    if prediction.distances is None:
        return []
    words = []
    for i, distance in enumerate(np.asarray(prediction.distances).tolist()):
        parts = [] if np.isnan(distance) else [f"{distance:.1f} m" if distance < 9.95 else f"{distance:.0f} m"]
        if prediction.closing_speeds is not None and abs(speed := float(prediction.closing_speeds[i])) >= 0.5:
            parts.append(f"{'+' if prediction.closing_speeds[i] > 0 else '-'}{speed:.1f} m/s")
        if prediction.times_to_contact is not None and np.isfinite(seconds := float(prediction.times_to_contact[i])):
            parts.append(f"{seconds:.1f} s")
        words.append(" ".join(parts))
    return words


def format_warning(prediction: Prediction) -> str:
    """Return the warning text for an invalid prediction; empty if it is valid."""
    return "" if prediction.valid else f"NOT VALID: {'; '.join(prediction.flags)}"


def _draw_instances(labels_layout: TextLayout, instances: Instances, spec: TaskSpec, notes: Sequence[str]) -> None:
    canvas = labels_layout.canvas
    thickness = max(1, round(min(canvas.shape[:2]) / 200))
    colors = [brighten(color) for color in class_palette(spec.classes)]
    boxes, labels = np.asarray(instances.boxes, np.float64), np.asarray(instances.labels)
    ignore = np.zeros(len(boxes), np.bool_) if instances.ignore is None else np.asarray(instances.ignore, np.bool_)
    scores = None if instances.scores is None else np.asarray(instances.scores, np.float64)
    shown = np.logical_and.reduce(np.isfinite(boxes), axis=1)
    order = list(range(len(boxes)))
    if scores is not None:
        shown = shown & (scores >= spec.score_threshold)
        order = np.argsort(-scores, kind="stable").tolist()
    order = [i for i in order if shown[i]]
    corners = {i: _clip_box(boxes[i], canvas) for i in order}
    for i in reversed(order):  # draw the best one last, on top
        x1, y1, x2, y2 = corners[i]
        color = IGNORE_REGION_COLOR if ignore[i] else colors[int(labels[i])]
        thin = ignore[i] or min(x2 - x1, y2 - y1) < 8 * thickness
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, max(1, thickness // 2) if thin else thickness, cv2.LINE_AA)
    labels_layout.small_boxes = [
        box for box in corners.values() if max(box[2] - box[0], box[3] - box[1]) < 100 * labels_layout.scale
    ]
    for i in order:
        if ignore[i]:
            continue
        words = [name := spec.classes[int(labels[i])]]
        if instances.track_ids is not None and int(instances.track_ids[i]) >= 0:
            words.append(f"#{int(instances.track_ids[i])}")
        if scores is not None:
            words.append(f"{scores[i]:.2f}")
        if i < len(notes) and notes[i]:
            words.append(notes[i])
        labels_layout.add_box_label((" ".join(words), name), corners[i], colors[int(labels[i])])


def _clip_box(box: NDArray[np.float64], canvas: RgbImage) -> Rectangle:
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = np.clip(np.rint(box), 0, (width - 1, height - 1, width - 1, height - 1)).astype(int).tolist()
    return x1, y1, x2, y2


def _blend_mask(canvas: RgbImage, mask: DenseMap, classes: Sequence[str], opacity: float = 0.5) -> None:
    mixed = cv2.addWeighted(canvas, 1 - opacity, draw_segmentation_mask(mask, classes), opacity, 0)
    cv2.copyTo(mixed, np.asarray(mask.valid, np.bool_).view(np.uint8), canvas)


def color_limits(values: NDArray, limits: tuple[float, float] | None) -> tuple[float, float]:
    """Return the ends of a logarithmic scale: ``limits``, or those of the values."""
    low, high = limits or ((float(values.min()), float(values.max())) if values.size else (1.0, 10.0))
    low = max(float(low), 1e-3)
    return low, max(float(high), low * 1.1)


@cache
def _turbo_table() -> RgbImage:
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)
    return np.ascontiguousarray(table[..., ::-1], np.uint8)


@cache
def _color_table(classes: tuple[str, ...]) -> RgbImage:
    """[256, 1, 3]: color of each value of a segmentation mask."""
    table = np.full((256, 1, 3), IGNORE_COLOR, np.uint8)
    table[: len(classes), 0] = class_palette(classes)[:256]
    return table


def _copy_as_rgb(image: NDArray) -> RgbImage:
    """Copy an image to RGB, to draw on it."""
    planes = image[..., None].repeat(3, axis=2) if image.ndim == 2 else image
    return planes.astype(np.uint8, order="C", copy=True)


def select_drawable(annotations: Annotations, specs: Specs) -> dict[str, Annotation]:
    """Return the annotations that are labeled and have a spec."""
    return {name: found for name, found in annotations.items() if found is not None and name in specs}
