"""COCO masks (polygons, and compressed or uncompressed run lengths, RLE) to the pixels of a segmentation mask.

pycocotools draws the polygons. It crashes or uses all memory on invalid numbers, reads beyond the end of invalid RLE
strings, and writes out of bounds when it compresses long runs. Therefore all input is checked first, and pycocotools
gets no run lengths. A checked mask is stored as COCO's compressed RLE.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import chain, pairwise
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.data.formats.boxes import MAX_COORDINATE
from perception.files.images import MAX_PIXELS
from perception.files.index_cache import MappedBytes
from perception.files.scalars import parse_integer, parse_number
from perception.types import DataError

MAX_OUTLINE_LENGTH = 1_000_000
"""Limit for one mask: pixels and corners along its outline, or its runs. pycocotools uses about 100 bytes for each."""

MAX_POLYGON_PIXELS = 3 * (1 << 24)
"""Images with this many pixels or more get no polygons. pycocotools allocates 6 bytes per run and none for the end:
too little for four runs of 2**24 pixels (for three, allocators round up enough)."""

MASK_FAULTS = (
    "",
    "no mask",
    "neither polygons nor run lengths",
    "a polygon of fewer than 6 numbers, or of an odd number of them",
    "a polygon with invalid coordinates",
    "an outline that is too long",
    "run lengths for an image of another size",
    "damaged run lengths",
    "run lengths that do not add up to the image size",
    "no pixel",
    "polygons in an image of more than 50 Mpx",
)
"""Faults of a mask; 0 = none. An index file may contain the numbers: only append."""

_ABSENT, _KIND, _CORNERS, _NUMBERS, _ENDLESS, _SIZE, _RUNS, _SUM, _EMPTY, _LARGE = range(1, len(MASK_FAULTS))


def encode_rle(segmentation: object, height: int, width: int) -> tuple[bytes, int, int]:
    """Encode an annotation's ``segmentation`` as compressed RLE.

    Invalid content never raises an error. Time and memory are proportional to the annotation and the image.

    Args:
        segmentation: polygons or run lengths, unchecked.
        height: height of the image.
        width: width of the image.

    Returns:
        (compressed RLE, number of mask pixels, 0), or (b"", 0, index in `MASK_FAULTS`) for a faulty mask.
    """
    if segmentation is None or segmentation == []:
        return b"", 0, _ABSENT
    if isinstance(segmentation, list):
        text, pixels, fault = _encode_polygons(segmentation, height, width)
    elif isinstance(segmentation, dict):
        text, pixels, fault = _encode_runs(segmentation, height, width)
    else:
        return b"", 0, _KIND
    return (text, pixels, 0) if pixels else (b"", 0, fault or _EMPTY)


def encode_box_rle(x1: int, y1: int, x2: int, y2: int, height: int, width: int) -> bytes:
    """Encode a rectangle of whole pixels in an image; one wider than `MAX_COORDINATE` covers whole columns."""
    if x2 - x1 > MAX_COORDINATE:
        x1, x2, y1, y2, height, width = 0, 1, x1 * height, x2 * height, height * width, 1
    inside, between = y2 - y1, height - (y2 - y1)
    runs = [x1 * height + y1, *[inside, between] * (x2 - x1)]
    runs[-1] = height * width - sum(runs[:-1])
    return encode_run_lengths(np.array(runs, np.int64))


def find_rle_bounds(rle: bytes, height: int) -> tuple[int, int, int, int]:
    """Return x, y, width, height of a checked mask's pixels."""
    ends = np.cumsum(decode_run_lengths(rle))
    starts, stops = ends[: len(ends) // 2 * 2 : 2], ends[1::2]
    starts, lasts = starts[stops > starts], stops[stops > starts] - 1
    left, right = int(starts.min()) // height, int(lasts.max()) // height
    if (starts // height < lasts // height).any():  # a run that continues in the next column
        return left, 0, right - left + 1, height
    top, bottom = int((starts % height).min()), int((lasts % height).max())
    return left, top, right - left + 1, bottom - top + 1


class MaskTable:
    """Masks of images 0 to N - 1 with one value per mask, drawn on request, the last on top.

    Args:
        blob: compressed RLE of all masks, concatenated.
        offsets: [M + 1], start of each mask in ``blob``. A mask of 0 bytes is not drawn.
        starts: [N + 1], first mask of each image.
        values: uint8 [M], value of each mask.
    """

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray, starts: NDArray, values: NDArray[np.uint8]) -> None:
        self._bytes, self._offsets, self._starts, self._values = MappedBytes(blob), offsets, starts, values

    def draw_mask(self, image_index: int, size: tuple[int, int], fill: int) -> NDArray[np.uint8]:
        """Draw the masks of one image of ``size`` (height, width): uint8 [H, W], ``fill`` outside of all masks."""
        first, last = (int(row) for row in self._starts[image_index : image_index + 2])
        edges = (self._offsets[first : last + 1] - self._offsets[first]).tolist()
        data = self._bytes.read(int(self._offsets[first]), int(self._offsets[last]))
        texts = [data[a:b] for a, b in pairwise(edges)]
        masks = [(text, value) for text, value in zip(texts, self._values[first:last].tolist(), strict=True) if text]
        return draw_masks(masks, *size, fill)


def draw_masks(masks: Iterable[tuple[bytes, int]], height: int, width: int, fill: int) -> NDArray[np.uint8]:
    """Draw (checked mask, value) pairs over ``fill``, the last on top: uint8 [H, W]."""
    canvas = np.full(height * width, fill, np.uint8)  # column-major, like the runs
    for text, value in masks:
        runs = decode_run_lengths(text)
        runs = runs[: len(runs) // 2 * 2]  # up to the last pixel of the mask
        inside = np.repeat(np.arange(1, len(runs)) % 2 == 1, runs[1:])
        start = int(runs[0])
        np.copyto(canvas[start : start + len(inside)], value, where=inside)
    return np.ascontiguousarray(canvas.reshape(width, height).T)


def decode_run_lengths(rle: bytes) -> NDArray[np.int64]:
    """Decode a compressed RLE to run lengths, alternately outside and inside the mask, column-major.

    Numbers are little-endian groups of 5 bits in the characters 48 to 111. The 6th bit is set if another group follows.
    From the fourth number on, each is the difference to the number two places before. Raises DataError if damaged.
    """
    codes = np.frombuffer(rle, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0) + 1
    if len(ends) == 0 or ends[-1] != len(codes) or codes.min() < 0 or codes.max() > 63:
        raise DataError("A mask's run lengths are damaged. Export them again.")
    sizes = np.diff(ends, prepend=0)
    if sizes.max() > 7:  # beyond 32 bits
        raise DataError("A mask's run lengths are damaged. Export them again.")
    starts = ends - sizes
    places = np.arange(len(codes)) - np.repeat(starts, sizes)
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    numbers -= ((codes[ends - 1] & 16) != 0) * (1 << (5 * sizes))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def encode_run_lengths(runs: NDArray[np.int64]) -> bytes:
    """Encode run lengths [N], each under 2**31, as compressed RLE; the inverse of `decode_run_lengths`."""
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    limits = 1 << (5 * np.arange(1, 7) - 1)  # what fits in 1 to 6 groups, with its sign
    sizes = 1 + ((numbers[:, None] >= limits) | (numbers[:, None] < -limits)).sum(1)
    places = np.arange(7)
    groups = (numbers[:, None] >> (5 * places)) & 31 | np.where(places < sizes[:, None] - 1, 32, 0)
    return (groups + 48)[places < sizes[:, None]].astype(np.uint8).tobytes()


def _encode_runs(segmentation: dict[str, Any], height: int, width: int) -> tuple[bytes, int, int]:
    if segmentation.get("size") != [height, width]:
        return b"", 0, _SIZE
    counts = segmentation.get("counts")
    if not isinstance(counts, (str, list)):
        return b"", 0, _KIND
    if len(counts) > MAX_OUTLINE_LENGTH:
        return b"", 0, _ENDLESS
    if isinstance(counts, str):
        try:
            runs = decode_run_lengths(counts.encode("ascii"))
        except (UnicodeEncodeError, DataError):
            return b"", 0, _RUNS
    else:
        runs = _to_numbers(counts, "q")
    if runs is None or len(runs) == 0 or runs.min() < 0 or runs.max() > height * width:
        return b"", 0, _RUNS
    if int(runs.sum()) != height * width:
        return b"", 0, _SUM
    return encode_run_lengths(runs) if isinstance(counts, list) else counts.encode(), int(runs[1::2].sum()), 0


def is_connected(segmentation: dict[str, Any]) -> bool:
    """Return whether run lengths form one connected region, as from a brush tool; false if damaged."""
    size = segmentation.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        return False
    height, width = size
    text, pixels, _ = _encode_runs(segmentation, height, width) if height * width <= MAX_PIXELS else (b"", 0, 0)
    if not pixels:
        return False
    x, y, w, h = find_rle_bounds(text, height)
    return cv2.connectedComponents(draw_masks([(text, 1)], height, width, 0)[y : y + h, x : x + w])[0] == 2


def collect_polygon_points(segmentation: object) -> NDArray[np.float64]:
    """Return the polygon corners x, y, float64 [K, 2]; without invalid polygons, and empty if not a list."""
    polygons = _normalize_polygons(segmentation) if isinstance(segmentation, list) and segmentation else []
    outlines = [_to_numbers(polygon, "d") if isinstance(polygon, list) else None for polygon in polygons]
    sound = [outline.reshape(-1, 2) for outline in outlines if outline is not None and len(outline) % 2 == 0]
    return np.concatenate([np.zeros((0, 2)), *sound])


def _normalize_polygons(segmentation: list[Any]) -> list[Any]:
    """Polygons x1 y1 x2 y2 ..., also from a single polygon (VGG Image Annotator) and from lists of points [x, y]."""
    if parse_number(segmentation[0]) is not None or (len(segmentation) > 2 and _is_point_list(segmentation)):
        segmentation = [segmentation]
    return [list(chain.from_iterable(each)) if _is_point_list(each) else each for each in segmentation]


def _is_point_list(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(point, list) and len(point) == 2 for point in values)


def _encode_polygons(segmentation: list[Any], height: int, width: int) -> tuple[bytes, int, int]:
    if height * width >= MAX_POLYGON_PIXELS:
        return b"", 0, _LARGE
    outlines, corners, largest = [], 0, 0.0
    for polygon in _normalize_polygons(segmentation):
        if not isinstance(polygon, list):
            return b"", 0, _KIND
        if len(polygon) < 6 or len(polygon) % 2:
            return b"", 0, _CORNERS
        outline = _to_numbers(polygon, "d")
        if outline is None or not (extent := float(np.abs(outline).max())) <= MAX_COORDINATE:  # also excludes NaN
            return b"", 0, _NUMBERS
        outlines.append(outline)
        corners, largest = corners + len(outline) // 2, max(largest, extent)
    if corners * (2 * largest + 1) > MAX_OUTLINE_LENGTH and sum(map(_outline_length, outlines)) > MAX_OUTLINE_LENGTH:
        return b"", 0, _ENDLESS
    library = _import_pycocotools()
    parts = library.frPyObjects(outlines, height, width)
    while len(parts) > 1:  # in groups: merging n at once takes n times as long
        parts = [library.merge(parts[i : i + 8]) for i in range(0, len(parts), 8)]
    return parts[0]["counts"], int(library.area(parts[0])), 0


def _outline_length(outline: NDArray[np.float64]) -> float:
    """Pixels and corners along a closed outline."""
    steps = np.abs(np.diff(outline.reshape(-1, 2), axis=0, append=outline[None, :2]))
    return float(steps.max(1).sum()) + len(steps)


def _import_pycocotools() -> ModuleType:
    try:
        from pycocotools import mask
    except ImportError:
        raise DataError("Reading COCO masks requires the package pycocotools. Install it.") from None
    return mask


def _to_numbers(values: list[Any], kind: str) -> NDArray | None:
    """Numbers, or strings of numbers, as float64 ("d") or int64 ("q") [N]; None for anything else."""
    try:
        return np.array(array(kind, values))  # unlike numpy, array rejects strings and lists
    except (TypeError, OverflowError):
        numbers = [(parse_number if kind == "d" else parse_integer)(value) for value in values]
        return None if None in numbers else np.array(numbers, np.float64 if kind == "d" else np.int64)
