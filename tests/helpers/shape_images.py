"""Images of plain shapes."""

from __future__ import annotations

import cv2
import numpy as np

SHAPES = ("disc", "square")


LOOKS = {"plain": (1.0, 1.0, 1.0), "warm": (1.0, 0.8, 0.6)}
"""Two cameras: what becomes of red, green and blue."""


def shapes(rng: np.random.Generator, size: tuple[int, int] = (96, 128)) -> tuple[np.ndarray, list[tuple[int, list]]]:
    """Discs, squares, and triangles that nobody labels, on a mottled ground: the image, and (label, COCO box)s."""
    height, width = size
    ground = rng.integers(30, 226, (height // 8, width // 8, 3), np.uint8)
    image = cv2.resize(ground, (width, height), interpolation=cv2.INTER_CUBIC)
    boxes, taken = [], []
    for kind in rng.permutation([0, 0, 1, 1, 2, 2]):
        radius = int(rng.integers(8, 20))
        x, y = (int(rng.integers(radius, side - radius)) for side in (width, height))
        if rng.random() < 0.25 or any(max(abs(x - u), abs(y - v)) < radius + r for u, v, r in taken):
            continue
        taken.append((x, y, radius))
        colour = rng.integers(0, 256, 3).tolist()
        if kind == 0:
            cv2.circle(image, (x, y), radius, colour, cv2.FILLED, cv2.LINE_AA)
        elif kind == 1:
            cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), colour, cv2.FILLED)
        else:
            corners = np.array([[x, y - radius], [x - radius, y + radius], [x + radius, y + radius]])
            cv2.fillPoly(image, [corners], colour, cv2.LINE_AA)
        if kind < len(SHAPES):
            boxes.append((int(kind), [x - radius, y - radius, 2 * radius + 1, 2 * radius + 1]))
    return image, boxes
