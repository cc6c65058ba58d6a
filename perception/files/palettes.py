"""Palettes of segmentation masks: whether an index has one color in all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from perception.files.image_headers import PNG_SIGNATURE
from perception.files.maps import read_map
from perception.types import DataError

MISMATCHED_PALETTES = "segmentation masks in which an index has another color than in others"

_MAX_INSPECTED_MASKS = 200
_HEAD_BYTES = 4096
_PALETTE_COLOR_TYPE = 3
"""PNG's number for images with a palette."""


def count_mismatched_palettes(mask_paths: Sequence[Path], ids: Collection[int]) -> int:
    """How many of some of the maps give one of ``ids`` another color than the ones before.

    So they do where a program numbers the colors of each image for itself: then the index is no class.
    """
    palettes = {
        path: found
        for path in mask_paths[:: -(-len(mask_paths) // _MAX_INSPECTED_MASKS)]
        if (found := _read_palette(path))
    }
    colors: dict[int, bytes] = {}
    count = 0
    for path, palette in palettes.items() if len(set(palettes.values())) > 1 else ():
        try:
            used = np.intersect1d(read_map(path), list(ids)).tolist()
        except DataError:  # told where the map is used
            continue
        own = {index: palette[3 * index : 3 * index + 3] for index in used}
        count += any(colors.get(index, color) != color for index, color in own.items())
        colors = own | colors
    return count


def _read_palette(path: Path) -> bytes:
    """The colors of a PNG with a palette, RGB one after the other; empty for other files."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:  # told where the map is used
        return b""
    if not head.startswith(PNG_SIGNATURE) or head[25:26] != bytes([_PALETTE_COLOR_TYPE]):
        return b""
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(head):
        length, name = int.from_bytes(head[position : position + 4], "big"), head[position + 4 : position + 8]
        if name == b"PLTE":
            return head[position + 8 : position + 8 + length]
        position += length + 12
    return b""
