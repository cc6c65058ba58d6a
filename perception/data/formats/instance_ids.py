"""Boxes from instance maps, in which every object has its own id: the smallest box around each id, in one pass."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def find_id_boxes(ids: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids of a map [H, W], unique and ascending, and their boxes int64 [N, 4] (x1 y1 x2 y2)."""
    if not ids.size:
        return np.zeros(0, np.int64), np.zeros((0, 4), np.int64)
    width, flat = ids.shape[1], np.ascontiguousarray(ids).ravel()
    begins = np.empty(flat.size, bool)  # runs of one id in one row
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[::width] = True
    starts = np.flatnonzero(begins)
    stops = np.append(starts[1:], flat.size)
    order = np.argsort(flat[starts], kind="stable")
    values, starts, stops = flat[starts][order], starts[order], stops[order]
    first = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    last = np.append(first[1:], len(values)) - 1
    rows, columns = np.divmod(starts, width)
    left = np.minimum.reduceat(columns, first)
    right = np.maximum.reduceat(columns + (stops - starts), first)
    return values[first].astype(np.int64), np.stack([left, rows[first], right, rows[last] + 1], axis=1)


def find_region_boxes(ids: NDArray[np.uint16], id: int) -> NDArray[np.int64]:
    """Return int64 [N, 4] (x1 y1 x2 y2), one box per connected region (8 neighbors) of the pixels of one id."""
    _, _, stats, _ = cv2.connectedComponentsWithStats((ids == id).astype(np.uint8), connectivity=8)
    boxes = stats[1:, :4].astype(np.int64)  # label 0 is the background
    boxes[:, 2:] += boxes[:, :2]
    return boxes
