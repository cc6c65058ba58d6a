"""Image, segmentation mask and depth in one view, each map with its legend below. numpy and cv2 only."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.ops.draw import (
    Annotations,
    Specs,
    color_limits,
    draw_annotations,
    draw_depth,
    draw_segmentation_mask,
    select_drawable,
)
from perception.ops.draw_text import MIN_TEXT_SCALE, TEXT_COLOR, RgbImage, put_text, text_scale
from perception.ops.legend import BACKGROUND_COLOR, count_legend_rows, draw_color_bar, draw_legend, line_height
from perception.ops.palette import resolve_label_space
from perception.types import DenseMap, Instances, TaskSpec

GAP_GRAY = 255


def draw_panel(
    image: NDArray,
    annotations: Annotations,
    specs: Specs,
    notes: Sequence[str] = (),
    warning: str = "",
    compact: bool = False,
) -> RgbImage:
    """Draw image with boxes and caption | segmentation mask | depth.

    Each dense task in ``specs`` has a tile, which is dark if its annotation is missing. Width and height are even, as
    video encoders require.

    Args:
        image: uint8 RGB [H, W, 3], or gray [H, W].
        annotations: as in `draw_annotations`.
        specs: task name -> specification.
        notes: as in `draw_annotations`.
        warning: as in `draw_annotations`.
        compact: smaller dense maps in a row below the image, for videos. With two maps, half of the pixels.
    """
    height, width = image.shape[:2]
    found = select_drawable(annotations, specs)
    flat = {name: a for name, a in found.items() if not isinstance(a, DenseMap)}
    dense = [spec for spec in specs.values() if spec.annotation_type == "dense"]
    across = len(dense) if compact else 1
    scale, gap = text_scale(image), max(2, width // 200)
    size = max(1, height // max(1, across)), max(1, (width - gap * (across - 1)) // max(1, across))
    small = max(MIN_TEXT_SCALE, scale / max(1, across))
    line = line_height(small)
    rows = max((count_legend_rows(spec.classes, size[1], small) for spec in dense), default=1)
    strip = line * rows + line // 3
    counts = height + line_height(scale)
    if not dense:
        corners, total = [], (counts, width)
    elif compact:
        corners, total = [(counts, i * (size[1] + gap)) for i in range(across)], (counts + size[0] + strip, width)
    else:
        corners = [(0, (i + 1) * (width + gap)) for i in range(len(dense))]
        total = max(counts, height + strip), width + len(dense) * (gap + width)
    whole = np.full((total[0] + total[0] % 2, total[1] + total[1] % 2, 3), BACKGROUND_COLOR[0], np.uint8)
    whole[:height, :width] = draw_annotations(image, flat, specs, notes, warning)
    _write_counts(whole[height:counts, :width], flat, specs, scale)
    for spec, (top, left) in zip(dense, corners, strict=True):
        if left:
            whole[top:, left - gap : left] = GAP_GRAY
        tile = whole[top : top + size[0] + strip, left : left + size[1]]
        _fill_tile(tile, found.get(spec.name), spec, size, small)
    return whole


def _fill_tile(tile: RgbImage, annotation: object, spec: TaskSpec, size: tuple[int, int], scale: float) -> None:
    """Draw a dense map of ``size`` (height, width) and its legend."""
    height, width = size
    strip = tile.shape[0] - height
    if not isinstance(annotation, DenseMap):
        annotation = DenseMap(np.ones(size, np.float32), np.zeros(size, np.bool_))
    map_ = _shrink_map(annotation, size)
    if spec.classes:
        map_, names = resolve_label_space(map_, spec.classes)
        tile[:height] = draw_segmentation_mask(map_, names)
        tile[height:] = draw_legend(map_, names, (width, strip), scale)
    else:
        values = np.asarray(map_.values)[np.asarray(map_.valid, np.bool_)] if spec.limits is None else np.empty(0)
        limits = color_limits(values, spec.limits)
        tile[:height] = draw_depth(map_, limits, spec.unit, show_legend=False)
        line = min(line_height(scale), strip)
        tile[height : height + line] = draw_color_bar((width, line), limits, spec.unit, scale)


def _shrink_map(dense: DenseMap, size: tuple[int, int]) -> DenseMap:
    values, valid = np.asarray(dense.values), np.asarray(dense.valid, np.bool_)
    if values.shape == size:
        return dense
    if values.dtype not in (np.uint8, np.float32):
        values = values.astype(np.float32)
    parts = (cv2.resize(part, size[::-1], interpolation=cv2.INTER_NEAREST) for part in (values, valid.view(np.uint8)))
    values, valid = (np.asarray(part) for part in parts)
    return DenseMap(values, valid.view(np.bool_), label_space=dense.label_space)


def _write_counts(strip: RgbImage, annotations: Annotations, specs: Specs, scale: float) -> None:
    """Write the number of boxes per class."""
    words = []
    for name, found in annotations.items():
        if isinstance(found, Instances):
            shown = np.asarray(found.labels)
            if found.scores is not None:
                shown = shown[np.asarray(found.scores) >= specs[name].score_threshold]
            words += [f"{(shown == k).sum()} {specs[name].classes[k]}" for k in np.unique(shown)] or ["no boxes"]
    put_text(strip, ", ".join(words), (round(15 * scale), 0), line_height(scale), scale, TEXT_COLOR)
