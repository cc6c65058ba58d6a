"""Color legends below images. numpy and cv2 only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from perception.ops.draw_text import FONT, TEXT_COLOR, Color, RgbImage, put_text, text_thickness
from perception.ops.palette import class_palette
from perception.types import DenseMap

BACKGROUND_COLOR: Color = (48, 48, 48)


def line_height(scale: float) -> int:
    """Return the height in pixels of a text line at a cv2 font ``scale``."""
    return round(30 * scale / 0.4)


def count_legend_rows(classes: Sequence[str], width: int, scale: float) -> int:
    """Return the number of rows for all classes in a strip of ``width``, at most 4."""
    return max(1, min(4, len({y for _, _, y in _arrange_names(tuple(classes), width, scale)})))


def draw_legend(mask: DenseMap, classes: Sequence[str], size: tuple[int, int], scale: float) -> RgbImage:
    """Draw color swatches and names of all classes.

    If there is not enough space, draw only the classes in the mask, most frequent first. ``size`` is (width, height).
    """
    names = tuple(dict.fromkeys(classes))
    if (_arrange_names(names, size[0], scale)[-1][2] + 1) * line_height(scale) > size[1]:
        known = np.asarray(mask.values)[np.asarray(mask.valid, np.bool_)].astype(np.int64)
        pixels = np.bincount(known, minlength=len(classes))
        names = tuple(classes[int(k)] for k in np.argsort(-pixels, kind="stable") if pixels[k])
    return _draw_swatches(names, tuple(classes), size, scale)


@lru_cache(64)
def _draw_swatches(names: tuple[str, ...], classes: tuple[str, ...], size: tuple[int, int], scale: float) -> RgbImage:
    width, height = size
    strip = np.full((height, width, 3), BACKGROUND_COLOR, np.uint8)
    line, side = line_height(scale), round(13 * scale / 0.4)
    colors = dict(zip(classes, class_palette(classes).tolist(), strict=True))
    for name, x, row in _arrange_names(names, width, scale):
        y = row * line + line // 4
        if y + side > height:
            break
        cv2.rectangle(strip, (x, y), (x + side, y + side), colors[name], cv2.FILLED)
        cv2.rectangle(strip, (x, y), (x + side, y + side), TEXT_COLOR, text_thickness(scale))
        put_text(strip, name, (x + side + side // 2, y), side, scale, TEXT_COLOR)
    strip.flags.writeable = False
    return strip


@lru_cache(64)
def _arrange_names(names: tuple[str, ...], width: int, scale: float) -> tuple[tuple[str, int, int], ...]:
    """Name, x in pixels and row of each swatch."""
    side = round(13 * scale / 0.4)
    left, row, places = side // 2, 0, []
    x = left
    for name in names:
        needed = cv2.getTextSize(name, FONT, scale, text_thickness(scale))[0][0] + 2 * side + side // 2
        if x > left and x + needed > width:
            x, row = left, row + 1
        places.append((name, x, row))
        x += needed
    return tuple(places)


@lru_cache(64)
def draw_color_bar(size: tuple[int, int], limits: tuple[float, float], unit: str, scale: float) -> RgbImage:
    """Draw the scale of a depth map with round numbers, right = far. ``size`` is (width, height)."""
    width, height = size
    bar = np.full((height, width, 3), BACKGROUND_COLOR, np.uint8)
    ramp = cv2.applyColorMap(np.linspace(255, 0, width).round().astype(np.uint8)[None], cv2.COLORMAP_TURBO)
    bar[: height // 3] = ramp[..., ::-1]
    end = 0
    for value in [part * 10.0**power for power in range(-2, 5) for part in (1, 2, 5)]:
        x = round(np.log(value / limits[0]) / np.log(limits[1] / limits[0]) * (width - 1))
        text = f"{value:g} {unit}"
        length = cv2.getTextSize(text, FONT, scale, text_thickness(scale))[0][0]
        left = min(max(2, x - length // 2), width - length - 2)
        if 0 <= x < width and left > end:
            cv2.line(bar, (x, 0), (x, height // 3), TEXT_COLOR, text_thickness(scale))
            put_text(bar, text, (left, height // 3), height - height // 3, scale, TEXT_COLOR)
            end = left + length + round(15 * scale)
    bar.flags.writeable = False
    return bar
