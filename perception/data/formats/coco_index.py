"""Checked content of COCO's JSON files as arrays, independent of the recipe and of the image files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, floor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perception.data.formats.boxes import enclose_rotated_boxes
from perception.data.formats.coco_partial import read_partial_labels
from perception.data.formats.coco_records import (
    Arrays,
    check_annotation_ids,
    check_content,
    find_position,
    index_ids,
    parse_boxes,
    parse_categories,
    parse_images,
    parse_name,
)
from perception.data.formats.rle_masks import (
    collect_polygon_points,
    encode_box_rle,
    encode_rle,
    find_rle_bounds,
    is_connected,
)
from perception.files.folders import find_present_files
from perception.files.image_finder import ImageFinder
from perception.files.images import ImageError, read_image_size
from perception.files.index_cache import load_or_build, pack_bytes, pack_texts, unpack_texts
from perception.files.scalars import parse_flag, parse_integer, parse_number
from perception.files.strict_json import quote_value, read_json
from perception.types import DataError

SizeReader = Callable[[str, str], tuple[int, int]]
"""(image name in the JSON, its location for messages) -> (height, width); (0, 0) if the image cannot be read."""

_NO_BOX = [0, 0, 0, 0]
_MAX_INSPECTED_MASKS = 100
"""Largest number of crowd masks that are checked for being one connected piece."""


def read_instance_index(path: Path, masks: bool, read_size_of: SizeReader) -> Arrays:
    """Read the arrays of an instances JSON with N images, C categories and M annotations.

    Args:
        path: the JSON file.
        masks: whether to read the masks.
        read_size_of: reads the sizes that the JSON lacks. Arrays with such sizes are not cached.

    Returns:
        image_ids int64 [N], image_sizes int64 [N, 2] (height, width), image_names, image_name_offsets (`pack_texts`).
        category_ids int64 [C], category_names, category_name_offsets, category_idle bool [C] (`parse_categories`).
        image_of, category_of int64 [M], positions of image and category; boxes float64 [M, 4], x y width height.
        crowds, ignored, difficult bool [M], flags of the annotations; turned bool [M], whether the box was rotated.
        absent bool [M], annotations that have neither a box nor a mask.
        brushed int64 [1], number of crowds with run lengths if they are many and most are one piece; else 0.
        The arrays of `read_partial_labels`, if the images list which categories are not labeled completely.

        Only with ``masks``, small masks after large ones of the same image:
        masks, mask_offsets, compressed RLE (`pack_bytes`). The box replaces a faulty mask; no bytes if it is outside.
        mask_starts int64 [N + 1], mask_rows int64 [M], the first mask of an image and the annotation of a mask.
        mask_faults uint8 [M], index of the mask's fault in `perception.data.formats.rle_masks.MASK_FAULTS`.

    Raises:
        DataError: the JSON is invalid.
    """
    kind = "coco instances with masks 3" if masks else "coco instances 3"
    found = load_or_build(kind, [path], lambda: _parse_instances(read_json(path), path, masks, None))
    return found if found["image_sizes"].all() else _parse_instances(read_json(path), path, masks, read_size_of)


def read_panoptic_index(path: Path, read_size_of: SizeReader) -> Arrays:
    """Read the arrays of a panoptic JSON with C categories, A annotations and S segments.

    Args:
        path: the JSON file.
        read_size_of: reads the sizes that the JSON lacks.

    Returns:
        Images and categories as in `read_instance_index`, and category_things bool [C].
        map_images int64 [A], map_names, map_name_offsets, segment_starts int64 [A + 1].
        segment_ids, category_of int64 [S]; crowds bool [S]; boxes float64 [S, 4], x y width height, 0 for stuff
        without a box.

    Raises:
        DataError: the JSON is invalid.
    """
    found = load_or_build("coco panoptic 2", [path], lambda: _parse_panoptic(read_json(path), path))
    _fill_missing_sizes(found, path, read_size_of)
    return found


def category_names(index: Arrays) -> dict[int, str]:
    """Return the category names by their id in the JSON."""
    names = unpack_texts(index["category_names"], index["category_name_offsets"])
    return dict(zip(index["category_ids"].tolist(), names, strict=True))


def make_size_reader(finder: ImageFinder) -> SizeReader:
    """Return a function that reads an image's size from its header."""

    def measure(name: str, where: str) -> tuple[int, int]:
        try:
            return read_image_size(finder.find(name, where))
        except ImageError:  # missing or damaged: reported when the image is read
            return 0, 0

    return measure


def find_existing_images(
    index: Arrays, rows: Sequence[int], finder: ImageFinder, path: Path, max_missing: float, problems: Counter[str]
) -> list[tuple[Path, tuple[int, int], int]]:
    """Find the image files of an index that exist.

    Args:
        index: arrays of `read_instance_index` or `read_panoptic_index`.
        rows: positions of the images.
        finder: finds the files by their names.
        path: the JSON file, for messages.
        max_missing: largest fraction of the images that may be missing.
        problems: counts of the problems found.

    Returns:
        (path, (height, width), row) of each existing image, sorted by path.

    Raises:
        DataError: a name leads out of the data folder, two names are the same file, or too many images are missing.
    """
    texts, ids = unpack_texts(index["image_names"], index["image_name_offsets"]), index["image_ids"].tolist()
    sizes = [(height, width) for height, width in index["image_sizes"].tolist()]
    records = sorted((finder.find(texts[row], f"{path}, image {ids[row]}"), sizes[row], row) for row in rows)
    for (file, _, first), (other, _, second) in pairwise(records):
        if file == other:
            raise DataError(
                f"{path}: images {ids[first]} and {ids[second]} are the same file {file.name}. Keep one record."
            )
    found = find_present_files(
        [record[0] for record in records], finder.folder, str(path), max_missing, problems, finder.hint
    )
    return [record for record, there in zip(records, found, strict=True) if there]


def _fill_missing_sizes(arrays: Arrays, path: Path, read_size_of: SizeReader | None) -> None:
    """Fill in the sizes that the JSON lacks."""
    unknown = np.flatnonzero(~arrays["image_sizes"].all(1)).tolist()
    if read_size_of is None or not unknown:
        return
    names, ids = unpack_texts(arrays["image_names"], arrays["image_name_offsets"]), arrays["image_ids"]
    sizes = arrays["image_sizes"] = arrays["image_sizes"].copy()
    for row in unknown:
        sizes[row] = read_size_of(names[row], f"{path}, image {ids[row]}")


def _parse_instances(content: object, path: Path, masks: bool, read_size_of: SizeReader | None) -> Arrays:
    content = check_content(content, path, "instances")
    annotations = content["annotations"]
    if annotations and "segments_info" in annotations[0]:
        raise DataError(f"{path} is in COCO's panoptic format. Set format: coco_panoptic for this source.")
    used = {id if type(id := a.get("category_id")) is int else parse_integer(id) for a in annotations}
    arrays = parse_images(content["images"], path)
    arrays |= parse_categories(content["categories"], path, {id for id in used if id is not None})
    _fill_missing_sizes(arrays, path, read_size_of)
    check_annotation_ids(annotations, path)
    images, categories = index_ids(arrays["image_ids"]), index_ids(arrays["category_ids"])
    sizes = arrays["image_sizes"].tolist()
    image_of, category_of, boxes, texts = [], [], [], []
    pixels, faults = np.zeros(len(annotations), np.int64), np.zeros(len(annotations), np.uint8)
    absent = np.zeros(len(annotations), bool)
    for row, annotation in enumerate(annotations):
        image = find_position(annotation, "image_id", images, path)
        image_of.append(image)
        category_of.append(find_position(annotation, "category_id", categories, path))
        box, mask = annotation.get("bbox"), b""
        if masks or not box:
            known = all(sizes[image])
            if known:
                mask, pixels[row], faults[row] = encode_rle(annotation.get("segmentation"), *sizes[image])
            if not box and not known:
                box = _NO_BOX  # the image is missing, or a second pass reads its size
            elif not box and not faults[row]:
                box = list(find_rle_bounds(mask, sizes[image][0]))
            elif box == []:
                box, absent[row] = _NO_BOX, True
        boxes.append(box)
        texts.append(mask)
    arrays["image_of"], arrays["category_of"] = np.array(image_of, np.int64), np.array(category_of, np.int64)
    arrays["boxes"], arrays["absent"] = (
        parse_boxes(boxes, lambda row: _describe_annotation(annotations[row]), path),
        absent,
    )
    arrays |= _read_flags(annotations, path)
    _enclose_rotated(arrays, annotations)
    arrays["brushed"] = np.array([_count_brushed_crowds(annotations, arrays["crowds"])])
    arrays |= read_partial_labels(content["images"], categories, path)
    return arrays | _build_masks(arrays, texts, pixels, faults) if masks else arrays


def _describe_annotation(annotation: dict) -> str:
    return f"annotation {quote_value(annotation.get('id'))}"


def _read_flags(annotations: list[dict], path: Path) -> Arrays:
    """Flags of the annotations; CVAT writes some of them as attributes."""
    found = np.zeros((3, len(annotations)), bool)
    for row, annotation in enumerate(annotations):
        attributes = annotation.get("attributes")
        for flag, key in enumerate(("iscrowd", "ignore", "difficult")):
            value = annotation.get(key)
            if value is None and flag and isinstance(attributes, dict):
                value = attributes.get(key)
            if value is not None and value != 0:
                found[flag, row] = parse_flag(value, f"{path}, {_describe_annotation(annotation)}", key)
    return {"crowds": found[0], "ignored": found[1], "difficult": found[2]}


def _enclose_rotated(arrays: Arrays, annotations: list[dict]) -> None:
    """Replace boxes that CVAT's ``attributes.rotation`` (degrees) rotates about their center by the enclosing boxes.

    The rotation applies to rectangles only. A mask is stored without rotation; its annotation keeps the mask's box.
    """
    angles = np.zeros(len(annotations))
    for row, annotation in enumerate(annotations):
        attributes, shape = annotation.get("attributes"), annotation.get("segmentation")
        if isinstance(attributes, dict) and attributes.get("rotation") and annotation.get("bbox"):
            number = parse_number(attributes["rotation"])  # users may define this attribute: left, right
            if number is not None and np.isfinite(number) and not isinstance(shape, dict):
                angles[row] = number
    turned = np.flatnonzero(angles % 180)
    boxes = arrays["boxes"][turned]
    with np.errstate(all="ignore"):  # NaN and infinity
        corners = enclose_rotated_boxes(boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:], np.deg2rad(angles[turned]))
    for place, row in enumerate(turned.tolist()):
        outline = collect_polygon_points(annotations[row].get("segmentation"))
        x, y, width, height = boxes[place].tolist()
        offsets = (outline[:, 0] - x, width), (outline[:, 1] - y, height)
        upright = [np.minimum(abs(offset), abs(offset - side)) <= 1 for offset, side in offsets]
        if len(outline) and not np.all(upright):  # not a copy of the rectangle: the outline is already rotated
            corners[place] = [*outline.min(0), *outline.max(0)]
    arrays["boxes"][turned] = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    arrays["turned"] = np.isin(np.arange(len(annotations)), turned)


def _count_brushed_crowds(annotations: list[dict], crowds: NDArray[np.bool_]) -> int:
    """How many crowds are objects painted with a brush, estimated from a sample; 0 if there are few."""
    rows = [row for row in np.flatnonzero(crowds).tolist() if isinstance(annotations[row].get("segmentation"), dict)]
    if len(rows) < 2 or len(rows) < 0.05 * len(annotations):
        return 0
    some = rows[:: -(-len(rows) // _MAX_INSPECTED_MASKS)]
    whole = sum(is_connected(annotations[row]["segmentation"]) for row in some)
    return len(rows) if 2 * whole >= len(some) else 0


def _build_masks(arrays: Arrays, texts: list[bytes], pixels: NDArray[np.int64], faults: NDArray[np.uint8]) -> Arrays:
    """The arrays of the masks, large before small; the box replaces a faulty mask."""
    image_of, sizes = arrays["image_of"], arrays["image_sizes"]
    for row in np.flatnonzero(faults).tolist():
        height, width = sizes[image_of[row]].tolist()
        x, y, w, h = arrays["boxes"][row].tolist()
        (x1, x2), (y1, y2) = _find_pixel_span(x, w, width), _find_pixel_span(y, h, height)
        if x1 < x2 and y1 < y2:
            texts[row], pixels[row] = encode_box_rle(x1, y1, x2, y2, height, width), (x2 - x1) * (y2 - y1)
    order = np.lexsort((-pixels, image_of))
    blob, offsets = pack_bytes([texts[row] for row in order.tolist()])
    starts = np.searchsorted(image_of[order], np.arange(len(sizes) + 1))
    return {"masks": blob, "mask_offsets": offsets, "mask_starts": starts, "mask_rows": order, "mask_faults": faults}


def _find_pixel_span(start: float, length: float, limit: int) -> tuple[int, int]:
    """First and end pixel that an interval touches; all pixels if it is infinite on both sides."""
    end = start + length
    if end != end:
        return 0, limit
    return floor(min(max(start, 0), limit)), ceil(min(max(end, 0), limit))


def _parse_panoptic(content: object, path: Path) -> Arrays:
    content = check_content(content, path, "panoptic")
    arrays = parse_images(content["images"], path) | parse_categories(content["categories"], path, None)
    things = [_is_thing(category, path) for category in content["categories"]]
    images, categories = index_ids(arrays["image_ids"]), index_ids(arrays["category_ids"])
    map_images, names, starts, ids, category_of, crowds, boxes, places = [], [], [0], [], [], [], [], []
    for annotation in content["annotations"]:
        where = f"image {quote_value(annotation.get('image_id'))}"
        map_images.append(find_position(annotation, "image_id", images, path))
        names.append(parse_name(annotation, "file_name", f"{path}, annotation of {where}"))
        for segment in _read_segments(annotation, f"{path}, annotation of {where}"):
            place = f"segment {segment['id']} of {where}"
            category = find_position(segment, "category_id", categories, path, place)
            box = segment.get("bbox")
            boxes.append(_NO_BOX if not box and not things[category] else box)
            ids.append(parse_integer(segment["id"]))
            category_of.append(category)
            crowds.append(parse_flag(segment.get("iscrowd"), f"{path}, {place}", "iscrowd"))
            places.append(place)
        starts.append(len(ids))
    if len(set(map_images)) < len(map_images):
        most = Counter(map_images).most_common(1)[0][0]
        raise DataError(f"{path}: image {arrays['image_ids'][most]} has two annotations. Keep one.")
    map_names, map_name_offsets = pack_texts(names)
    return arrays | {
        "category_things": np.array(things, bool), "map_images": np.array(map_images, np.int64),
        "map_names": map_names, "map_name_offsets": map_name_offsets, "segment_starts": np.array(starts, np.int64),
        "segment_ids": np.array(ids, np.int64), "category_of": np.array(category_of, np.int64),
        "crowds": np.array(crowds, bool), "boxes": parse_boxes(boxes, places.__getitem__, path),
    }  # fmt: skip


def _read_segments(annotation: dict, where: str) -> list[dict]:
    """The segments of an image, with unique ids that fit in a PNG's color."""
    segments = annotation.get("segments_info")
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise DataError(f"{where}: segments_info is missing or not a list of objects. Expected COCO's panoptic format.")
    seen: set[int] = set()
    for segment in segments:
        id = parse_integer(segment.get("id"))
        if id is None or not 0 < id < 1 << 24:
            found = quote_value(segment.get("id"))
            raise DataError(
                f"{where}: a segment has id {found}. Expected the integer R + 256 G + 65536 B, 1 to 16777215."
            )
        if id in seen:
            raise DataError(f"{where}: segment {id} is given twice. Keep one.")
        seen.add(id)
    if len(segments) >= 1 << 16:
        raise DataError(f"{where}: it has {len(segments)} segments. Expected fewer than {1 << 16}.")
    return segments


def _is_thing(category: dict, path: Path) -> bool:
    thing = category.get("isthing")
    where = f"{path}: category {quote_value(category.get('id'))}"
    if thing is None:
        raise DataError(f"{where} has isthing None. Expected 0 or 1 (the panoptic format).")
    return parse_flag(thing, where, "isthing")
