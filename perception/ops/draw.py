"""Predictions and targets as pictures. numpy and cv2 only: the torch-free runtime draws with this too.

`draw` puts everything on the picture, `draw_depth` colours a depth map, `panel` sets picture, label map and depth side
by side. All of them return uint8 RGB whose size depends on the picture's size and the specs alone, never on what is in
the picture, so that they can be written to a video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.ops.palette import palette
from perception.types import Annotation, DenseMap, ImageLabel, Instances, TaskSpec

Picture: TypeAlias = NDArray[np.uint8]
"""RGB [H, W, 3]."""
Color: TypeAlias = tuple[int, int, int]
Specs: TypeAlias = Mapping[str, TaskSpec]
Annotations: TypeAlias = Mapping[str, Annotation | None]

UNKNOWN: Color = (48, 48, 48)
"""Where a depth map is not valid, and the ground of legends."""
VOID: Color = (0, 0, 0)
"""Where a label map is not valid (Cityscapes' colour; dark gray is its buildings')."""
IGNORED: Color = (160, 160, 160)
"""Outline of ignore regions."""
INK: Color = (235, 235, 235)
FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw(image: NDArray, annotations: Annotations, specs: Specs, distances: Any = None) -> Picture:
    """The picture with its label map blended in, its boxes ("car 0.87 14 m") and its labels as a caption.

    image:       uint8 RGB [H, W, 3], or gray [H, W]
    annotations: predictions or targets in pixels of ``image``; names without a spec are left out
    distances:   [N] metres to each box of the first "instances" task; NaN or None = unknown

    A quantity (depth) has no place on the picture: it is drawn only where there is nothing else to draw.
    """
    canvas = _rgb(image)
    found = _drawable(annotations, specs)
    quantities = {name: a for name, a in found.items() if isinstance(a, DenseMap) and not specs[name].classes}
    if quantities and len(quantities) == len(found):
        name, depth = next(iter(quantities.items()))
        return draw_depth(depth, specs[name].limits, specs[name].unit)
    for name, annotation in found.items():
        if isinstance(annotation, DenseMap) and name not in quantities:
            canvas = _blend(canvas, annotation, specs[name].classes)
    writing = _Writing(canvas)
    for name, annotation in found.items():
        if isinstance(annotation, ImageLabel):
            writing.caption(caption(annotation, specs[name]))
    for name, annotation in found.items():
        if isinstance(annotation, Instances):
            _draw_instances(writing, annotation, specs[name], distances)
            distances = None
    return canvas


def draw_labels(label_map: DenseMap, classes: Sequence[str]) -> Picture:
    """A label map in its classes' colours; black where it is not valid."""
    values = np.asarray(label_map.values)
    known = np.asarray(label_map.valid, np.bool_) & (values >= 0) & (values < len(classes))
    table = np.concatenate([palette(classes), np.array([VOID], np.uint8)])
    return table[np.where(known, values, len(classes)).astype(np.intp)]


def draw_depth(depth: DenseMap, limits: tuple[float, float] | None, unit: str = "m", legend: bool = True) -> Picture:
    """A depth map in the turbo colour map, near = red, on a logarithmic scale; dark gray where it is not valid.

    limits: metres at the two ends of the scale; None = those of this map
    """
    values, valid = np.asarray(depth.values, np.float32), np.asarray(depth.valid, np.bool_)
    valid = valid & np.isfinite(values) & (values > 0)
    low, high = _limits(values[valid], limits)
    place = 1.0 - np.log(np.clip(np.where(valid, values, high), low, high) / low) / np.log(high / low)
    colors = cv2.applyColorMap(np.rint(255 * place).astype(np.uint8), cv2.COLORMAP_TURBO)
    canvas = np.ascontiguousarray(np.where(valid[..., None], colors[..., ::-1], np.array(UNKNOWN, np.uint8)))
    height, width = canvas.shape[:2]
    bar = min(width - 2, max(160, width // 2)), round(34 * _text_scale(canvas) / 0.4)
    if legend and bar[0] >= 100 and height >= 3 * bar[1]:
        canvas[height - bar[1] :, width - bar[0] :] = _color_bar(bar, (low, high), unit, _text_scale(canvas))
    return canvas


def panel(image: NDArray, annotations: Annotations, specs: Specs, distances: Any = None) -> Picture:
    """Side by side, each with its legend below: picture with boxes and caption | label map | depth.

    There is a tile for each dense task in ``specs``, dark where it is missing; width and height are even, as video
    encoders want them.
    """
    canvas = _rgb(image)
    height, width = canvas.shape[:2]
    found = _drawable(annotations, specs)
    scale = _text_scale(canvas)
    line = round(30 * scale / 0.4)
    rows = max(
        (_legend_rows(spec.classes, width, scale) for spec in specs.values() if spec.shape == "dense"), default=1
    )
    strip = line * rows + line // 3
    flat = {name: a for name, a in found.items() if not isinstance(a, DenseMap)}
    columns = [np.concatenate([draw(canvas, flat, specs, distances), _counts(flat, specs, (width, strip), scale)])]
    for name, spec in specs.items():
        if spec.shape != "dense":
            continue
        dense = found.get(name)
        if not isinstance(dense, DenseMap):
            dense = DenseMap(np.ones((height, width), np.float32), np.zeros((height, width), np.bool_))
        if spec.classes:
            tile, legend = draw_labels(dense, spec.classes), _legend(dense, spec.classes, (width, strip), scale)
        else:
            limits = _limits(np.asarray(dense.values)[np.asarray(dense.valid, np.bool_)], spec.limits)
            tile = draw_depth(dense, limits, spec.unit, legend=False)
            legend = np.full((strip, width, 3), UNKNOWN, np.uint8)
            legend[: min(line, strip)] = _color_bar((width, line), limits, spec.unit, scale)[:strip]
        columns.append(np.concatenate([tile, legend]))
    gap = np.full((height + strip, max(2, width // 200), 3), 255, np.uint8)
    whole = np.concatenate([part for column in columns for part in (gap, column)][1:], axis=1)
    return np.pad(whole, ((0, whole.shape[0] % 2), (0, whole.shape[1] % 2), (0, 0)))


def caption(label: ImageLabel, spec: TaskSpec) -> str:
    """An image label in words: "day 0.98", "day" for a target, "no label" where no class is over the threshold."""
    values = np.asarray(label.values, np.float64)
    order = np.argsort(-values, kind="stable")
    chosen = [k for k in order if values[k] >= spec.threshold] if spec.multi_label else order[:1]
    certain = bool(np.isin(values, (0, 1)).all())
    words = [spec.classes[k] if certain else f"{spec.classes[k]} {values[k]:.2f}" for k in chosen]
    return ", ".join(words) or "no label"


class _Writing:
    """Text on a canvas that keeps clear of the text already there and, where it can, of small boxes."""

    def __init__(self, canvas: Picture) -> None:
        self.canvas = canvas
        self.scale = _text_scale(canvas)
        self.small: list[tuple[int, int, int, int]] = []
        self._taken: list[tuple[int, int, int, int]] = []
        self._bottom = 0

    def caption(self, text: str) -> None:
        """A line at the top left, under those before it."""
        width, height = self._size(text)
        if self._put(text, (0, self._bottom, width, self._bottom + height), (24, 24, 24)):
            self._bottom += height

    def beside(self, text: str, box: tuple[int, int, int, int], color: Color) -> None:
        """Above, below or inside a box (x1, y1, x2, y2): the first place that is free; nowhere where none is."""
        width, height = self._size(text)
        x1, y1, x2, y2 = box
        left = max(0, min(x1, self.canvas.shape[1] - width))
        right = max(0, x2 - width)
        places = ((left, y1 - height), (left, y2), (right, y1 - height), (right, y2), (left, y1))
        areas = [(x, y, x + width, y + height) for x, y in places]
        clear = [area for area in areas if not any(_overlap(area, other) for other in self.small)]
        for area in (*clear, *areas):
            if self._put(text, area, color):
                return

    def _size(self, text: str) -> tuple[int, int]:
        (width, height), baseline = cv2.getTextSize(text, FONT, self.scale, 1)
        return width + height // 2, height + baseline + 2

    def _put(self, text: str, area: tuple[int, int, int, int], color: Color) -> bool:
        x1, y1, x2, y2 = area
        height, width = self.canvas.shape[:2]
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            return False
        if any(_overlap(area, other) for other in self._taken):
            return False
        self._taken.append(area)
        cv2.rectangle(self.canvas, (x1, y1), (x2 - 1, y2 - 1), color, cv2.FILLED)
        _text(self.canvas, text, (x1 + (y2 - y1) // 5, y1), y2 - y1, self.scale, _readable_on(color))
        return True


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _draw_instances(writing: _Writing, instances: Instances, spec: TaskSpec, distances: Any) -> None:
    canvas = writing.canvas
    thickness = max(1, round(min(canvas.shape[:2]) / 200))
    colors = [_bright(color) for color in palette(spec.classes)]
    boxes, labels = np.asarray(instances.boxes, np.float64), np.asarray(instances.labels)
    ignore = np.zeros(len(boxes), np.bool_) if instances.ignore is None else np.asarray(instances.ignore, np.bool_)
    scores = None if instances.scores is None else np.asarray(instances.scores, np.float64)
    shown = np.logical_and.reduce(np.isfinite(boxes), axis=1)
    order = list(range(len(boxes)))
    if scores is not None:
        shown = shown & (scores >= spec.threshold)
        order = np.argsort(-scores, kind="stable").tolist()
    order = [i for i in order if shown[i]]
    corners = {i: _corners(boxes[i], canvas) for i in order}
    for i in reversed(order):  # the best on top
        x1, y1, x2, y2 = corners[i]
        color = IGNORED if ignore[i] else colors[int(labels[i])]
        thin = ignore[i] or min(x2 - x1, y2 - y1) < 8 * thickness
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, max(1, thickness // 2) if thin else thickness, cv2.LINE_AA)
    writing.small = [box for box in corners.values() if max(box[2] - box[0], box[3] - box[1]) < 100 * writing.scale]
    for i in order:
        if ignore[i]:
            continue
        words = [spec.classes[int(labels[i])]]
        if instances.tracks is not None and int(instances.tracks[i]) >= 0:
            words.append(f"#{int(instances.tracks[i])}")
        if scores is not None:
            words.append(f"{scores[i]:.2f}")
        if distances is not None and np.isfinite(distances[i]):
            words.append(f"{distances[i]:.1f} m" if distances[i] < 9.95 else f"{distances[i]:.0f} m")
        writing.beside(" ".join(words), corners[i], colors[int(labels[i])])


def _corners(box: NDArray[np.float64], canvas: Picture) -> tuple[int, int, int, int]:
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = np.clip(np.rint(box), 0, (width - 1, height - 1, width - 1, height - 1)).astype(int).tolist()
    return x1, y1, x2, y2


def _blend(canvas: Picture, label_map: DenseMap, classes: Sequence[str], opacity: float = 0.5) -> Picture:
    mixed = cv2.addWeighted(canvas, 1 - opacity, draw_labels(label_map, classes), opacity, 0)
    return np.ascontiguousarray(np.where(np.asarray(label_map.valid, np.bool_)[..., None], mixed, canvas))


def _legend_rows(classes: Sequence[str], width: int, scale: float) -> int:
    """Rows that all classes need in a strip of ``width``, at most 4."""
    return max(1, min(4, len({y for _, _, y in _layout(classes, width, scale)})))


def _layout(names: Sequence[str], width: int, scale: float) -> list[tuple[str, int, int]]:
    """Each name with the x in pixels and the row of its swatch."""
    side, x, row, places = round(13 * scale / 0.4), 6, 0, []
    for name in names:
        needed = cv2.getTextSize(name, FONT, scale, 1)[0][0] + 2 * side + side // 2
        if x > 6 and x + needed > width:
            x, row = 6, row + 1
        places.append((name, x, row))
        x += needed
    return places


def _legend(label_map: DenseMap, classes: Sequence[str], size: tuple[int, int], scale: float) -> Picture:
    """Swatches and names of all classes, or, where these do not fit, of the most frequent ones."""
    width, height = size
    strip = np.full((height, width, 3), UNKNOWN, np.uint8)
    line, side = round(30 * scale / 0.4), round(13 * scale / 0.4)
    colors = dict(zip(classes, palette(classes).tolist(), strict=True))
    names = list(colors)
    if (_layout(names, width, scale)[-1][2] + 1) * line > height:
        known = np.asarray(label_map.values)[np.asarray(label_map.valid, np.bool_)].astype(np.int64)
        pixels = np.bincount(known, minlength=len(classes))
        names = [classes[int(k)] for k in np.argsort(-pixels, kind="stable") if pixels[k]]
    for name, x, row in _layout(names, width, scale):
        y = row * line + line // 4
        if y + side > height:
            break
        cv2.rectangle(strip, (x, y), (x + side, y + side), colors[name], cv2.FILLED)
        cv2.rectangle(strip, (x, y), (x + side, y + side), INK, 1)
        _text(strip, name, (x + side + side // 2, y), side, scale, INK)
    return strip


def _counts(annotations: Annotations, specs: Specs, size: tuple[int, int], scale: float) -> Picture:
    """How many boxes of each class, in words."""
    strip = np.full((size[1], size[0], 3), UNKNOWN, np.uint8)
    words = []
    for name, found in annotations.items():
        if isinstance(found, Instances):
            shown = np.asarray(found.labels)
            if found.scores is not None:
                shown = shown[np.asarray(found.scores) >= specs[name].threshold]
            words += [f"{(shown == k).sum()} {specs[name].classes[k]}" for k in np.unique(shown)] or ["no boxes"]
    _text(strip, ", ".join(words), (6, 0), round(30 * scale / 0.4), scale, INK)
    return strip


def _color_bar(size: tuple[int, int], limits: tuple[float, float], unit: str, scale: float) -> Picture:
    """The scale of `draw_depth` with round numbers at their places, right = far."""
    width, height = size
    bar = np.full((height, width, 3), UNKNOWN, np.uint8)
    ramp = cv2.applyColorMap(np.linspace(255, 0, width).round().astype(np.uint8)[None], cv2.COLORMAP_TURBO)
    bar[: height // 3] = ramp[..., ::-1]
    end = 0
    for value in [part * 10.0**power for power in range(-2, 5) for part in (1, 2, 5)]:
        x = round(np.log(value / limits[0]) / np.log(limits[1] / limits[0]) * (width - 1))
        text = f"{value:g} {unit}"
        length = cv2.getTextSize(text, FONT, scale, 1)[0][0]
        left = min(max(2, x - length // 2), width - length - 2)
        if 0 <= x < width and left > end:
            cv2.line(bar, (x, 0), (x, height // 3), INK, 1)
            _text(bar, text, (left, height // 3), height - height // 3, scale, INK)
            end = left + length + 6
    return bar


def _limits(values: NDArray, limits: tuple[float, float] | None) -> tuple[float, float]:
    low, high = limits or ((float(values.min()), float(values.max())) if values.size else (1.0, 10.0))
    low = max(float(low), 1e-3)
    return low, max(float(high), low * 1.1)


def _text(canvas: Picture, text: str, corner: tuple[int, int], line: int, scale: float, color: Color) -> None:
    """Text from ``corner`` (left, top of the line), vertically in the middle of a line of ``line`` pixels."""
    height = cv2.getTextSize("M", FONT, scale, 1)[0][1]
    cv2.putText(canvas, text, (corner[0], corner[1] + (line + height) // 2), FONT, scale, color, 1, cv2.LINE_AA)


def _text_scale(canvas: Picture) -> float:
    """Of cv2's font: readable on small pictures, in proportion on large ones (0.4 is about 11 pixels high)."""
    return max(0.4, float(np.sqrt(canvas.shape[0] * canvas.shape[1])) / 1500)


def _bright(color: NDArray[np.uint8]) -> Color:
    """A colour light enough for a thin line on a street at night."""
    mixed = color.astype(np.float64)
    missing = 110 - _luminance(mixed)
    if missing > 0:
        mixed += (255 - mixed) * missing / (255 - _luminance(mixed))
    red, green, blue = (round(float(part)) for part in mixed)
    return red, green, blue


def _readable_on(color: Color) -> Color:
    return (0, 0, 0) if _luminance(np.array(color)) > 120 else (255, 255, 255)


def _luminance(color: NDArray) -> float:
    return float(color @ np.array([0.299, 0.587, 0.114]))


def _rgb(image: NDArray) -> Picture:
    """A copy to draw on."""
    return np.array(np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image, np.uint8, order="C")


def _drawable(annotations: Annotations, specs: Specs) -> dict[str, Annotation]:
    return {name: found for name, found in annotations.items() if found is not None and name in specs}
