"""Check of the palettes of segmentation masks: an index should have the same color in all of them."""

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
    """Count the masks, in a sample of them, in which one of ``ids`` has another color than in earlier masks.

    This happens if a program numbers the colors of each image separately. Then the index is not a class.
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
        except DataError:  # reported when the map is used
            continue
        own = {index: palette[3 * index : 3 * index + 3] for index in used}
        count += any(colors.get(index, color) != color for index, color in own.items())
        colors = own | colors
    return count


def _read_palette(path: Path) -> bytes:
    """The palette of a PNG as RGB bytes; empty for other files."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:  # reported when the map is used
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
