"""Draw the attention between tasks on the image. numpy and cv2 only."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.ops.draw_text import TEXT_COLOR, RgbImage, put_text, text_scale

TILE_GAP = 4
MARKER_COLOR = (255, 255, 255)


def draw_attention(
    image: RgbImage, tasks: Sequence[str], mean_weights: NDArray, attention_maps: NDArray, point: tuple[int, int]
) -> RgbImage:
    """Draw a grid of image tiles. Each row is a task that attends, each column is a task that it attends to.

    Args:
        image: RGB [H, W, 3].
        tasks: T task names.
        mean_weights: [T, T], mean attention of each task (row) to each task (column), written above the tile.
        attention_maps: [T, T, h, w], attention of a task at ``point`` to each location. The tiles of a row have one
            scale; bright = high attention.
        point: x, y in image pixels; marked in each tile.
    """
    tile = image.shape[0] // 2, image.shape[1] // 2
    small = np.asarray(cv2.resize(image, tile[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    scale = text_scale(small)
    line = round(40 * scale)
    step = tile[0] + line + TILE_GAP, tile[1] + TILE_GAP
    grid = np.zeros((len(tasks) * step[0] - TILE_GAP, len(tasks) * step[1] - TILE_GAP, 3), np.uint8)
    for i, asking in enumerate(tasks):
        brightest = max(float(attention_maps[i].max()), 1e-12)
        for j, asked in enumerate(tasks):
            top, left = i * step[0], j * step[1]
            here = grid[top + line : top + line + tile[0], left : left + tile[1]]
            here[:] = _overlay_heatmap(small, attention_maps[i, j] / brightest)
            cv2.drawMarker(
                here, (point[0] // 2, point[1] // 2), MARKER_COLOR, cv2.MARKER_CROSS, max(9, tile[0] // 12), 1
            )
            text = f"{asking} <- {asked} {mean_weights[i, j]:.0%}"
            put_text(grid[top : top + line, left : left + tile[1]], text, (TILE_GAP, 0), line, scale, TEXT_COLOR)
    return grid


def _overlay_heatmap(image: RgbImage, heat: NDArray) -> RgbImage:
    """Overlay a heat map with values in 0 to 1 on a gray copy of the image."""
    size = image.shape[1], image.shape[0]
    smooth = np.clip(cv2.resize(heat.astype(np.float32), size, interpolation=cv2.INTER_LINEAR), 0, 1)
    color = cv2.applyColorMap((smooth * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] * 0.5
    return (gray + (color - gray) * (0.15 + 0.75 * smooth[..., None])).astype(np.uint8)
