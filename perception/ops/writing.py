"""Writing on pictures, with text that keeps clear of text. numpy and cv2 only."""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Picture: TypeAlias = NDArray[np.uint8]
"""RGB [H, W, 3]."""
Color: TypeAlias = tuple[int, int, int]
Area: TypeAlias = tuple[int, int, int, int]
"""x1, y1, x2, y2 in whole pixels."""

INK: Color = (235, 235, 235)
ALARM: Color = (200, 20, 20)
FONT = cv2.FONT_HERSHEY_SIMPLEX


class Writing:
    """Text on a canvas that keeps clear of the text already there and, where it can, of small boxes."""

    def __init__(self, canvas: Picture) -> None:
        self.canvas = canvas
        self.scale = text_scale(canvas)
        self.small: list[Area] = []
        self._taken: list[Area] = []
        self._bottom = 0

    def alarm(self, text: str) -> None:
        """A red band over the whole width, under the captions before it, with as much of the text as fits."""
        height, width = self._size(text)[1], self.canvas.shape[1]
        while text and self._size(text)[0] > width:
            text = text[:-1]
        if text and self._put(text, (0, self._bottom, width, self._bottom + height), ALARM):
            self._bottom += height

    def caption(self, text: str) -> None:
        """A line at the top left, under those before it."""
        width, height = self._size(text)
        if self._put(text, (0, self._bottom, width, self._bottom + height), (24, 24, 24)):
            self._bottom += height

    def beside(self, text: str, box: Area, color: Color) -> None:
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

    def _put(self, text: str, area: Area, color: Color) -> bool:
        x1, y1, x2, y2 = area
        height, width = self.canvas.shape[:2]
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            return False
        if any(_overlap(area, other) for other in self._taken):
            return False
        self._taken.append(area)
        cv2.rectangle(self.canvas, (x1, y1), (x2 - 1, y2 - 1), color, cv2.FILLED)
        write(self.canvas, text, (x1 + (y2 - y1) // 5, y1), y2 - y1, self.scale, _readable_on(color))
        return True


def _overlap(first: Area, second: Area) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def write(canvas: Picture, text: str, corner: tuple[int, int], line: int, scale: float, color: Color) -> None:
    """Text from ``corner`` (left, top of the line), vertically in the middle of a line of ``line`` pixels."""
    height = cv2.getTextSize("M", FONT, scale, 1)[0][1]
    cv2.putText(canvas, text, (corner[0], corner[1] + (line + height) // 2), FONT, scale, color, 1, cv2.LINE_AA)


def text_scale(canvas: Picture) -> float:
    """Of cv2's font: readable on small pictures, in proportion on large ones (0.4 is about 11 pixels high)."""
    return max(0.4, float(np.sqrt(canvas.shape[0] * canvas.shape[1])) / 1500)


def bright(color: NDArray[np.uint8]) -> Color:
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
