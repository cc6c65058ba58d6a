"""Palettes of label maps: whether an index has one colour in all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from perception.files.image_headers import PNG
from perception.files.maps import read_map
from perception.types import DataError

UNLIKE = "label maps in which an index has another colour than in others"

_LOOKED_AT = 200
_HEAD = 4096
_INDEXED = 3
"""PNG's number for pictures with a palette."""


def unlike_palettes(maps: Sequence[Path], ids: Collection[int]) -> int:
    """How many of some of the maps give one of ``ids`` another colour than the ones before.

    So they do where a program numbers the colours of each picture for itself: then the index is no class.
    """
    palettes = {path: found for path in maps[:: -(-len(maps) // _LOOKED_AT)] if (found := _palette(path))}
    colours: dict[int, bytes] = {}
    count = 0
    for path, palette in palettes.items() if len(set(palettes.values())) > 1 else ():
        try:
            used = np.intersect1d(read_map(path), list(ids)).tolist()
        except DataError:  # told where the map is used
            continue
        own = {index: palette[3 * index : 3 * index + 3] for index in used}
        count += any(colours.get(index, colour) != colour for index, colour in own.items())
        colours = own | colours
    return count


def _palette(path: Path) -> bytes:
    """The colours of a PNG with a palette, RGB one after the other; empty for other files."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:  # told where the map is used
        return b""
    if not head.startswith(PNG) or head[25:26] != bytes([_INDEXED]):
        return b""
    position = len(PNG)
    while position + 8 <= len(head):
        length, name = int.from_bytes(head[position : position + 4], "big"), head[position + 4 : position + 8]
        if name == b"PLTE":
            return head[position + 8 : position + 8 + length]
        position += length + 12
    return b""
