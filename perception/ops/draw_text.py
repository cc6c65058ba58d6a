"""Write text on images without overlaps. numpy and cv2 only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

RgbImage: TypeAlias = NDArray[np.uint8]
"""RGB [H, W, 3]."""
Color: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[int, int, int, int]
"""x1, y1, x2, y2 in whole pixels."""

TEXT_COLOR: Color = (235, 235, 235)
WARNING_COLOR: Color = (200, 20, 20)
FONT = cv2.FONT_HERSHEY_SIMPLEX
MIN_TEXT_SCALE = 0.35
"""Font scale below which letters are not readable."""
MAX_LABEL_COVERAGE = 0.2
"""Maximum fraction of the image that the box labels cover together."""
MIN_BOX_TO_LABEL_AREA = 8
"""A label is placed inside a box only if the box area is at least this many times the label area."""
MAX_UNPLACED_LABELS = 20
"""Number of labels without space after which no more labels are placed."""


class TextLayout:
    """Places text on a canvas. It avoids existing text and small boxes, and limits the covered area."""

    def __init__(self, canvas: RgbImage) -> None:
        self.canvas = canvas
        self.scale = text_scale(canvas)
        self.small_boxes: list[Rectangle] = []
        self._occupied: list[Rectangle] = []
        self._header_height = self._num_unplaced = 0
        self._remaining_area = round(MAX_LABEL_COVERAGE * canvas.shape[0] * canvas.shape[1])

    def add_warning(self, text: str) -> None:
        """Add a full-width red band below previous captions, with as much of the text as fits."""
        height, width = self._text_size(text)[1], self.canvas.shape[1]
        while text and self._text_size(text)[0] > width:
            text = text[:-1]
        if text and self._is_free((0, self._header_height, width, self._header_height + height)):
            self._place_text(text, (0, self._header_height, width, self._header_height + height), WARNING_COLOR)
            self._header_height += height

    def add_caption(self, text: str) -> None:
        """Add a line at the top left, below previous captions."""
        width, height = self._text_size(text)
        if self._is_free((0, self._header_height, width, self._header_height + height)):
            self._place_text(text, (0, self._header_height, width, self._header_height + height), (24, 24, 24))
            self._header_height += height

    def add_box_label(self, texts: Sequence[str], box: Rectangle, color: Color) -> None:
        """Write the first of ``texts`` (longest first) that fits above, below or inside a box (x1, y1, x2, y2).

        If none fits there, place it farther away with a line to the box. Write nothing if there is no space, or if
        `MAX_UNPLACED_LABELS` boxes had no space.
        """
        if self._num_unplaced >= MAX_UNPLACED_LABELS:
            return
        for near in (True, False):
            for text in texts:
                width, height = self._text_size(text)
                if width * height > self._remaining_area:
                    continue
                places = (
                    _adjacent_areas(box, width, height, self.canvas.shape[1])
                    if near
                    else _surrounding_areas(box, width, height)
                )
                for area in self._filter_free(places):
                    if not near and not self._draw_leader_line(area, box, color):
                        continue
                    self._place_text(text, area, color)
                    self._remaining_area -= width * height
                    return
        self._num_unplaced += 1

    def _text_size(self, text: str) -> tuple[int, int]:
        (width, height), baseline = cv2.getTextSize(text, FONT, self.scale, text_thickness(self.scale))
        return width + height // 2, height + baseline + round(5 * self.scale)

    def _filter_free(self, areas: Sequence[Rectangle]) -> list[Rectangle]:
        """Select areas inside the image that do not cover text or small boxes."""
        height, width = self.canvas.shape[:2]
        these = np.array(areas, np.int64).reshape(-1, 1, 4)
        blocked = np.array([*self._occupied, *self.small_boxes], np.int64).reshape(1, -1, 4)
        inside = np.logical_and(these[:, 0, :2] >= 0, these[:, 0, 2:] <= (width, height)).all(axis=-1)
        covers = np.logical_and(these[..., :2] < blocked[..., 2:], blocked[..., :2] < these[..., 2:]).all(2)
        free = np.logical_and(inside, np.logical_not(covers.any(axis=-1)))
        return [area for area, its in zip(areas, free.tolist(), strict=True) if its]

    def _is_free(self, area: Rectangle) -> bool:
        return bool(self._filter_free([area]))

    def _draw_leader_line(self, area: Rectangle, box: Rectangle, color: Color) -> bool:
        """Draw a thin line from a label to its box. Return False if it would cross text or another small box."""
        ends = [
            (min(max(middle, low), high), middle)
            for low, high, middle in (
                (area[0], area[2] - 1, (box[0] + box[2]) // 2),
                (area[1], area[3] - 1, (box[1] + box[3]) // 2),
            )
        ]
        start = ends[0][0], ends[1][0]
        end = min(max(start[0], box[0]), box[2]), min(max(start[1], box[1]), box[3])
        for x1, y1, x2, y2 in (*self._occupied, *(other for other in self.small_boxes if other != box)):
            if cv2.clipLine((x1, y1, x2 - x1, y2 - y1), start, end)[0]:
                return False
        cv2.line(self.canvas, start, end, color, max(1, text_thickness(self.scale) // 2), cv2.LINE_AA)
        return True

    def _place_text(self, text: str, area: Rectangle, color: Color) -> None:
        x1, y1, x2, y2 = area
        self._occupied.append(area)
        cv2.rectangle(self.canvas, (x1, y1), (x2 - 1, y2 - 1), color, cv2.FILLED)
        put_text(self.canvas, text, (x1 + (y2 - y1) // 5, y1), y2 - y1, self.scale, _contrasting_color(color))


def _adjacent_areas(box: Rectangle, width: int, height: int, image_width: int) -> list[Rectangle]:
    """Areas above, below and, if the box is large enough, inside it."""
    x1, y1, x2, y2 = box
    left, right = max(0, min(x1, image_width - width)), max(0, x2 - width)
    places = [(left, y1 - height), (left, y2 + 1), (right, y1 - height), (right, y2 + 1)]
    if MIN_BOX_TO_LABEL_AREA * width * height <= (x2 - x1) * (y2 - y1) and width < x2 - x1:
        places.append((x1, y1))
    return [(x, y, x + width, y + height) for x, y in places]


def _surrounding_areas(box: Rectangle, width: int, height: int) -> list[Rectangle]:
    """Areas one to three lines away from the box, nearest first."""
    x1, y1, x2, y2 = box
    places = []
    for step in (1, 2, 3):
        off = step * height
        for x in ((x1 + x2 - width) // 2, x1 - width // 2, x2 - width // 2, x1 - width - off, x2 + off):
            places += [(x, y1 - height - off), (x, y2 + off)]
        places += [(x1 - width - off, (y1 + y2 - height) // 2), (x2 + off, (y1 + y2 - height) // 2)]
    return [(x, y, x + width, y + height) for x, y in places]


def put_text(
    canvas: RgbImage, text: str, corner: tuple[int, int], line_height: int, scale: float, color: Color
) -> None:
    """Write text from ``corner`` (left, top), vertically centered in a line of ``line_height`` pixels."""
    thickness = text_thickness(scale)
    height = cv2.getTextSize("M", FONT, scale, thickness)[0][1]
    at = corner[0], corner[1] + (line_height + height) // 2
    cv2.putText(canvas, text, at, FONT, scale, color, thickness, cv2.LINE_AA)


def text_scale(canvas: RgbImage) -> float:
    """Return the cv2 font scale, proportional to the image (0.4, about 11 pixels high, at 640x380), but readable."""
    return max(MIN_TEXT_SCALE, 0.4 * float(np.sqrt(canvas.shape[0] * canvas.shape[1] / (640 * 380))))


def text_thickness(scale: float) -> int:
    """Return the line thickness in pixels for a cv2 font scale."""
    return max(1, round(1.7 * scale))


def brighten(color: NDArray[np.uint8]) -> Color:
    """Lighten a color so that a thin line is visible on a street at night."""
    mixed = color.astype(np.float64)
    missing = 110 - _luminance(mixed)
    if missing > 0:
        mixed += (255 - mixed) * missing / (255 - _luminance(mixed))
    red, green, blue = (round(float(part)) for part in mixed)
    return red, green, blue


def _contrasting_color(color: Color) -> Color:
    return (0, 0, 0) if _luminance(np.array(color)) > 120 else (255, 255, 255)


def _luminance(color: NDArray) -> float:
    return float(color @ np.array([0.299, 0.587, 0.114]))
