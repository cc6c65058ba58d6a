"""What a JSON of COCO's says, checked and as arrays: all of it that depends on no recipe and on no picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.data.formats.boxes import around_turned
from perception.data.formats.coco_partial import partial_labels
from perception.data.formats.coco_records import (
    Arrays,
    boxes_of,
    categories_of,
    check_annotation_ids,
    checked,
    images_of,
    position,
    positions_of,
    text,
)
from perception.data.formats.masks import bounds, encode, encode_box, is_one_piece, outline_of
from perception.files.folders import present
from perception.files.image_names import PictureNames
from perception.files.images import PictureError, read_size
from perception.files.index_cache import cached, pack_bytes, pack_texts, unpack_texts
from perception.files.scalars import real, truth, whole
from perception.files.strict_json import read_json, shown
from perception.types import DataError

Measure = Callable[[str, str], tuple[int, int]]
"""(name of a picture in the JSON, where it stands there) -> (height, width), (0, 0) where it cannot be read."""

_NO_BOX = [0, 0, 0, 0]
_LOOKED_AT = 100
"""So many crowds' masks are looked at: whether they are of one piece."""


def read_instances(path: Path, masks: bool, measure: Measure) -> Arrays:
    """The arrays of an instances JSON with N images and M annotations. Raises DataError for what is wrong in it.

    image_ids int64 [N], image_sizes int64 [N, 2] (height, width), image_names, image_name_offsets (`pack_texts`)
    category_ids int64 [C], category_names, category_name_offsets, category_idle bool [C] (see `categories_of`)
    image_of, category_of int64 [M], positions in these; boxes float64 [M, 4], x y width height
    crowds, ignored, difficult, turned bool [M]: flags of the annotations; whether its box was turned
    absent bool [M]: annotations that have neither a box nor a mask
    brushed int64 [1]: crowds with run lengths, where they are many and most of them of one piece; else 0
    and those of `partial_labels`, where the images name what they do not label

    With ``masks`` also these, small masks after large ones of the same picture:
    masks, mask_offsets   compressed RLE of all masks (`pack_bytes`); a faulty mask is its box, of no bytes outside
    mask_starts int64 [N + 1], mask_rows int64 [M]   the first mask of a picture, the annotation of a mask
    mask_faults uint8 [M]   the fault of an annotation's mask, a number in `perception.data.formats.masks.FAULTS`

    Sizes that the JSON lacks come from ``measure``; such arrays are not kept in the cache.
    """
    kind = "coco instances with masks 3" if masks else "coco instances 3"
    found = cached(kind, [path], lambda: _instances(read_json(path), path, masks, None))
    return found if found["image_sizes"].all() else _instances(read_json(path), path, masks, measure)


def read_panoptic(path: Path, measure: Measure) -> Arrays:
    """The arrays of a panoptic JSON with A annotations and S segments. Raises DataError for what is wrong in it.

    Images and categories as in `read_instances`, and category_things bool [C]
    map_images int64 [A], map_names, map_name_offsets, segment_starts int64 [A + 1]
    segment_ids, category_of int64 [S]; crowds bool [S]; boxes float64 [S, 4], x y width height, 0 where stuff has none
    """
    found = cached("coco panoptic 2", [path], lambda: _panoptic(read_json(path), path))
    _measured(found, path, measure)
    return found


def category_names(index: Arrays) -> dict[int, str]:
    """Id in the JSON -> name."""
    names = unpack_texts(index["category_names"], index["category_name_offsets"])
    return dict(zip(index["category_ids"].tolist(), names, strict=True))


def measure_by(names: PictureNames) -> Measure:
    """Reads the picture's header."""

    def measure(name: str, where: str) -> tuple[int, int]:
        try:
            return read_size(names.find(name, where))
        except PictureError:  # missing or damaged: whoever asks for it is told
            return 0, 0

    return measure


def existing_pictures(
    index: Arrays, rows: Sequence[int], names: PictureNames, path: Path, allow_missing: float, problems: Counter[str]
) -> list[tuple[Path, tuple[int, int], int]]:
    """(path, (height, width), row) of the images at ``rows`` whose picture exists, sorted by path.

    Raises DataError where a name leads out of the data, where two are one file, and where too many are missing.
    """
    texts, ids = unpack_texts(index["image_names"], index["image_name_offsets"]), index["image_ids"].tolist()
    sizes = [(height, width) for height, width in index["image_sizes"].tolist()]
    records = sorted((names.find(texts[row], f"{path}, image {ids[row]}"), sizes[row], row) for row in rows)
    for (file, _, first), (other, _, second) in pairwise(records):
        if file == other:
            raise DataError(
                f"{path}: images {ids[first]} and {ids[second]} are the same file {file.name}. Keep one record."
            )
    found = present([record[0] for record in records], names.folder, str(path), allow_missing, problems, names.mend)
    return [record for record, there in zip(records, found, strict=True) if there]


def _measured(arrays: Arrays, path: Path, measure: Measure | None) -> None:
    """Fill in the sizes that the JSON lacks."""
    unknown = np.flatnonzero(~arrays["image_sizes"].all(1)).tolist()
    if measure is None or not unknown:
        return
    names, ids = unpack_texts(arrays["image_names"], arrays["image_name_offsets"]), arrays["image_ids"]
    sizes = arrays["image_sizes"] = arrays["image_sizes"].copy()
    for row in unknown:
        sizes[row] = measure(names[row], f"{path}, image {ids[row]}")


def _instances(content: Any, path: Path, masks: bool, measure: Measure | None) -> Arrays:
    content = checked(content, path, "instances")
    annotations = content["annotations"]
    if annotations and "segments_info" in annotations[0]:
        raise DataError(f"{path} is of COCO's panoptic format. Give this reader format: coco_panoptic.")
    used = {id if type(id := a.get("category_id")) is int else whole(id) for a in annotations}
    arrays = images_of(content["images"], path)
    arrays |= categories_of(content["categories"], path, {id for id in used if id is not None})
    _measured(arrays, path, measure)
    check_annotation_ids(annotations, path)
    images, categories = positions_of(arrays["image_ids"]), positions_of(arrays["category_ids"])
    sizes = arrays["image_sizes"].tolist()
    image_of, category_of, boxes, texts = [], [], [], []
    pixels, faults = np.zeros(len(annotations), np.int64), np.zeros(len(annotations), np.uint8)
    absent = np.zeros(len(annotations), bool)
    for row, annotation in enumerate(annotations):
        image = position(annotation, "image_id", images, path)
        image_of.append(image)
        category_of.append(position(annotation, "category_id", categories, path))
        box, mask = annotation.get("bbox"), b""
        if masks or not box:
            known = all(sizes[image])
            if known:
                mask, pixels[row], faults[row] = encode(annotation.get("segmentation"), *sizes[image])
            if not box and not known:
                box = _NO_BOX  # of a picture that is not there, or that another reading measures
            elif not box and not faults[row]:
                box = list(bounds(mask, sizes[image][0]))
            elif box == []:
                box, absent[row] = _NO_BOX, True
        boxes.append(box)
        texts.append(mask)
    arrays["image_of"], arrays["category_of"] = np.array(image_of, np.int64), np.array(category_of, np.int64)
    arrays["boxes"], arrays["absent"] = boxes_of(boxes, lambda row: _place(annotations[row]), path), absent
    arrays |= _flags(annotations, path)
    _turn(arrays, annotations)
    arrays["brushed"] = np.array([_brushed(annotations, arrays["crowds"])])
    arrays |= partial_labels(content["images"], categories, path)
    return arrays | _masks(arrays, texts, pixels, faults) if masks else arrays


def _place(annotation: dict) -> str:
    return f"annotation {shown(annotation.get('id'))}"


def _flags(annotations: list[dict], path: Path) -> Arrays:
    """What is said of the annotations beside their shapes, some of it among the attributes that CVAT writes."""
    found = np.zeros((3, len(annotations)), bool)
    for row, annotation in enumerate(annotations):
        attributes = annotation.get("attributes")
        for flag, key in enumerate(("iscrowd", "ignore", "difficult")):
            value = annotation.get(key)
            if value is None and flag and isinstance(attributes, dict):
                value = attributes.get(key)
            if value is not None and value != 0:
                found[flag, row] = truth(value, f"{path}, {_place(annotation)}", key)
    return {"crowds": found[0], "ignored": found[1], "difficult": found[2]}


def _turn(arrays: Arrays, annotations: list[dict]) -> None:
    """The boxes that CVAT's ``attributes.rotation`` (degrees) turns about their centre, as the boxes around them.

    It belongs to rectangles: what has a mask, which is not turned, has the mask's box.
    """
    angles = np.zeros(len(annotations))
    for row, annotation in enumerate(annotations):
        attributes, shape = annotation.get("attributes"), annotation.get("segmentation")
        if isinstance(attributes, dict) and attributes.get("rotation") and annotation.get("bbox"):
            number = real(attributes["rotation"])  # it may be an attribute of the user's own: left, right
            if number is not None and np.isfinite(number) and not isinstance(shape, dict):
                angles[row] = number
    turned = np.flatnonzero(angles % 180)
    boxes = arrays["boxes"][turned]
    with np.errstate(all="ignore"):  # numbers that are none
        corners = around_turned(boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:], np.deg2rad(angles[turned]))
    for place, row in enumerate(turned.tolist()):
        outline = outline_of(annotations[row].get("segmentation"))
        x, y, width, height = boxes[place].tolist()
        offsets = (outline[:, 0] - x, width), (outline[:, 1] - y, height)
        upright = [np.minimum(abs(offset), abs(offset - side)) <= 1 for offset, side in offsets]
        if len(outline) and not np.all(upright):  # it is no copy of the rectangle: it is drawn as it was turned
            corners[place] = [*outline.min(0), *outline.max(0)]
    arrays["boxes"][turned] = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    arrays["turned"] = np.isin(np.arange(len(annotations)), turned)


def _brushed(annotations: list[dict], crowds: NDArray[np.bool_]) -> int:
    """How many crowds are objects painted with a brush, as far as can be seen of some of them; 0 where they are few."""
    rows = [row for row in np.flatnonzero(crowds).tolist() if isinstance(annotations[row].get("segmentation"), dict)]
    if len(rows) < 2 or len(rows) < 0.05 * len(annotations):
        return 0
    some = rows[:: -(-len(rows) // _LOOKED_AT)]
    whole = sum(is_one_piece(annotations[row]["segmentation"]) for row in some)
    return len(rows) if 2 * whole >= len(some) else 0


def _masks(arrays: Arrays, texts: list[bytes], pixels: NDArray[np.int64], faults: NDArray[np.uint8]) -> Arrays:
    """The arrays of the masks, large before small; the box of a faulty one takes its place."""
    image_of, sizes = arrays["image_of"], arrays["image_sizes"]
    for row in np.flatnonzero(faults).tolist():
        height, width = sizes[image_of[row]].tolist()
        x, y, w, h = arrays["boxes"][row].tolist()
        (x1, x2), (y1, y2) = _span(x, w, width), _span(y, h, height)
        if x1 < x2 and y1 < y2:
            texts[row], pixels[row] = encode_box(x1, y1, x2, y2, height, width), (x2 - x1) * (y2 - y1)
    order = np.lexsort((-pixels, image_of))
    blob, offsets = pack_bytes([texts[row] for row in order.tolist()])
    starts = np.searchsorted(image_of[order], np.arange(len(sizes) + 1))
    return {"masks": blob, "mask_offsets": offsets, "mask_starts": starts, "mask_rows": order, "mask_faults": faults}


def _span(start: float, length: float, limit: int) -> tuple[int, int]:
    """The whole pixels that a stretch touches; all where it is infinite both ways."""
    end = start + length
    if end != end:
        return 0, limit
    return floor(min(max(start, 0), limit)), ceil(min(max(end, 0), limit))


def _panoptic(content: Any, path: Path) -> Arrays:
    content = checked(content, path, "panoptic")
    arrays = images_of(content["images"], path) | categories_of(content["categories"], path, None)
    things = [_is_thing(category, path) for category in content["categories"]]
    images, categories = positions_of(arrays["image_ids"]), positions_of(arrays["category_ids"])
    map_images, names, starts, ids, category_of, crowds, boxes, places = [], [], [0], [], [], [], [], []
    for annotation in content["annotations"]:
        where = f"image {shown(annotation.get('image_id'))}"
        map_images.append(position(annotation, "image_id", images, path))
        names.append(text(annotation, "file_name", f"{path}, annotation of {where}"))
        for segment in _segments(annotation, f"{path}, annotation of {where}"):
            place = f"segment {segment['id']} of {where}"
            category = position(segment, "category_id", categories, path, place)
            box = segment.get("bbox")
            boxes.append(_NO_BOX if not box and not things[category] else box)
            ids.append(whole(segment["id"]))
            category_of.append(category)
            crowds.append(truth(segment.get("iscrowd"), f"{path}, {place}", "iscrowd"))
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
        "crowds": np.array(crowds, bool), "boxes": boxes_of(boxes, places.__getitem__, path),
    }  # fmt: skip


def _segments(annotation: dict, where: str) -> list[dict]:
    """The segments of a picture, with ids that a PNG can hold, each once."""
    segments = annotation.get("segments_info")
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise DataError(f"{where}: segments_info is missing or no list of objects. Expected COCO's panoptic format.")
    seen: set[int] = set()
    for segment in segments:
        id = whole(segment.get("id"))
        if id is None or not 0 < id < 1 << 24:
            found = shown(segment.get("id"))
            raise DataError(f"{where}: a segment has id {found}. Expected R + 256 G + 65536 B, 1 to 16777215.")
        if id in seen:
            raise DataError(f"{where}: segment {id} is given twice. Keep one.")
        seen.add(id)
    if len(segments) >= 1 << 16:
        raise DataError(f"{where}: it has {len(segments)} segments. Expected fewer than {1 << 16}.")
    return segments


def _is_thing(category: dict, path: Path) -> bool:
    thing = category.get("isthing")
    where = f"{path}: category {shown(category.get('id'))}"
    if thing is None:
        raise DataError(f"{where} has isthing None. Expected 0 or 1 (the panoptic format).")
    return truth(thing, where, "isthing")
