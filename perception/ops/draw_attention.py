"""Which task attends to which, and where, on the picture itself. numpy and cv2 only."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.ops.draw_text import INK, Picture, text_scale, write

GAP = 4
MARK = (255, 255, 255)


def draw_attention(
    image: Picture, names: Sequence[str], shares: NDArray, maps: NDArray, point: tuple[int, int]
) -> Picture:
    """A grid of the picture: a row for each task that attends, a column for each task that it attends to.

    image:  RGB [H, W, 3]
    shares: [T, T], how much each task (row) takes of each (column) over the whole picture; written on the tile
    maps:   [T, T, h, w], where a task at ``point`` takes it from; a row of tiles has one scale, bright is much
    point:  x, y in pixels of the image; it is marked
    """
    tile = image.shape[0] // 2, image.shape[1] // 2
    small = np.asarray(cv2.resize(image, tile[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    scale = text_scale(small)
    line = round(40 * scale)
    step = tile[0] + line + GAP, tile[1] + GAP
    grid = np.zeros((len(names) * step[0] - GAP, len(names) * step[1] - GAP, 3), np.uint8)
    for i, asking in enumerate(names):
        brightest = max(float(maps[i].max()), 1e-12)
        for j, asked in enumerate(names):
            top, left = i * step[0], j * step[1]
            here = grid[top + line : top + line + tile[0], left : left + tile[1]]
            here[:] = _heated(small, maps[i, j] / brightest)
            cv2.drawMarker(here, (point[0] // 2, point[1] // 2), MARK, cv2.MARKER_CROSS, max(9, tile[0] // 12), 1)
            text = f"{asking} <- {asked} {shares[i, j]:.0%}"
            write(grid[top : top + line, left : left + tile[1]], text, (GAP, 0), line, scale, INK)
    return grid


def _heated(image: Picture, heat: NDArray) -> Picture:
    """The picture in grey, with heat from 0 to 1 in colour over it."""
    size = image.shape[1], image.shape[0]
    smooth = np.clip(cv2.resize(heat.astype(np.float32), size, interpolation=cv2.INTER_LINEAR), 0, 1)
    color = cv2.applyColorMap((smooth * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] * 0.5
    return (grey + (color - grey) * (0.15 + 0.75 * smooth[..., None])).astype(np.uint8)
