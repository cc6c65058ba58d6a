"""What a JSON of COCO's says, checked and as arrays: all of it that depends on no recipe and on no picture."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.data.files.folders import inside, present
from perception.data.files.images import MAX_PIXELS
from perception.data.files.index_cache import cached, pack_bytes, pack_texts, unpack_texts
from perception.data.files.strict_json import read_json, shown
from perception.data.formats.masks import bounds, encode, encode_box
from perception.types import DataError

Arrays = dict[str, NDArray]

MAX_NAME = 1000


def read_instances(path: Path, masks: bool) -> Arrays:
    """The arrays of an instances JSON with N images and M annotations. Raises DataError for what is wrong in it.

    image_ids int64 [N], image_sizes int64 [N, 2] (height, width), image_names, image_name_offsets (`pack_texts`)
    category_ids int64 [C], category_names, category_name_offsets
    image_of, category_of int64 [M], positions in these; crowds bool [M]; boxes float64 [M, 4], x y width height

    With ``masks`` also these, small masks after large ones of the same picture:
    masks, mask_offsets   compressed RLE of all masks (`pack_bytes`); a faulty mask is its box, of no bytes outside
    mask_starts int64 [N + 1], mask_rows int64 [M]   the first mask of a picture, the annotation of a mask
    mask_faults uint8 [M]   the fault of an annotation's mask, a number in `perception.data.formats.masks.FAULTS`
    """
    kind = "coco instances with masks 1" if masks else "coco instances 1"
    return cached(kind, [path], lambda: _instances(read_json(path), path, masks))


def read_panoptic(path: Path) -> Arrays:
    """The arrays of a panoptic JSON with A annotations and S segments. Raises DataError for what is wrong in it.

    Images and categories as in `read_instances`, and category_things bool [C]
    map_images int64 [A], map_names, map_name_offsets, segment_starts int64 [A + 1]
    segment_ids, category_of int64 [S]; crowds bool [S]; boxes float64 [S, 4], x y width height, 0 where stuff has none
    """
    return cached("coco panoptic 1", [path], lambda: _panoptic(read_json(path), path))


def category_names(index: Arrays) -> dict[int, str]:
    """Id in the JSON -> name."""
    names = unpack_texts(index["category_names"], index["category_name_offsets"])
    return dict(zip(index["category_ids"].tolist(), names, strict=True))


def existing_pictures(
    index: Arrays, rows: Sequence[int], folder: Path, path: Path, allow_missing: float, problems: Counter[str]
) -> list[tuple[Path, tuple[int, int], int]]:
    """(path, (height, width), row) of the images at ``rows`` whose picture exists, sorted by path.

    Raises DataError where a name leads out of the folder, where two are one file, and where too many are missing.
    """
    names, ids = unpack_texts(index["image_names"], index["image_name_offsets"]), index["image_ids"].tolist()
    sizes = [(height, width) for height, width in index["image_sizes"].tolist()]
    records = sorted((inside(folder, names[row], f"{path}, image {ids[row]}"), sizes[row], row) for row in rows)
    for (file, _, first), (other, _, second) in pairwise(records):
        if file == other:
            raise DataError(
                f"{path}: images {ids[first]} and {ids[second]} are the same file {file.name}. Keep one record."
            )
    found = present([record[0] for record in records], folder, str(path), allow_missing, problems)
    return [record for record, there in zip(records, found, strict=True) if there]


def _instances(content: Any, path: Path, masks: bool) -> Arrays:
    content = _checked(content, path, "instances")
    arrays = _images(content["images"], path) | _categories(content["categories"], path)
    annotations = content["annotations"]
    _check_ids(annotations, path, "annotations", optional=True)
    images, categories = _positions(arrays["image_ids"]), _positions(arrays["category_ids"])
    sizes = arrays["image_sizes"].tolist()
    image_of, category_of, boxes, texts = [], [], [], []
    pixels, faults = np.zeros(len(annotations), np.int64), np.zeros(len(annotations), np.uint8)
    for row, annotation in enumerate(annotations):
        image = _position(annotation, "image_id", images, path)
        image_of.append(image)
        category_of.append(_position(annotation, "category_id", categories, path))
        box, text = annotation.get("bbox"), b""
        if masks or box is None:
            text, pixels[row], faults[row] = encode(annotation.get("segmentation"), *sizes[image])
            if box is None and not faults[row]:
                box = list(bounds(text, sizes[image][0]))
        boxes.append(box)
        texts.append(text)
    arrays["image_of"], arrays["category_of"] = np.array(image_of, np.int64), np.array(category_of, np.int64)
    arrays["crowds"] = np.array([bool(annotation.get("iscrowd")) for annotation in annotations], bool)
    arrays["boxes"] = _numbers(boxes, lambda row: f"annotation {annotations[row].get('id')}", path)
    return arrays | _masks(arrays, texts, pixels, faults) if masks else arrays


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
    content = _checked(content, path, "panoptic")
    arrays = _images(content["images"], path) | _categories(content["categories"], path)
    things = [category.get("isthing") for category in content["categories"]]
    for id, thing in zip(arrays["category_ids"].tolist(), things, strict=True):
        if thing not in (0, 1):
            raise DataError(f"{path}: category {id} has isthing {shown(thing)}. Expected 0 or 1 (the panoptic format).")
    images, categories = _positions(arrays["image_ids"]), _positions(arrays["category_ids"])
    map_images, names, starts, ids, category_of, crowds, boxes, places = [], [], [0], [], [], [], [], []
    for annotation in content["annotations"]:
        where = f"image {shown(annotation.get('image_id'))}"
        map_images.append(_position(annotation, "image_id", images, path))
        names.append(_text(annotation, "file_name", f"{path}, annotation of {where}"))
        for segment in _segments(annotation, f"{path}, annotation of {where}"):
            place = f"segment {segment['id']} of {where}"
            category = _position(segment, "category_id", categories, path, place)
            box = segment.get("bbox")
            boxes.append([0, 0, 0, 0] if box is None and not things[category] else box)
            ids.append(segment["id"])
            category_of.append(category)
            crowds.append(bool(segment.get("iscrowd")))
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
        "crowds": np.array(crowds, bool), "boxes": _numbers(boxes, places.__getitem__, path),
    }  # fmt: skip


def _segments(annotation: dict, where: str) -> list[dict]:
    """The segments of a picture, with ids that a PNG can hold, each once."""
    segments = annotation.get("segments_info")
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise DataError(f"{where}: segments_info is missing or no list of objects. Expected COCO's panoptic format.")
    seen: set[int] = set()
    for segment in segments:
        id = segment.get("id")
        if type(id) is not int or not 0 < id < 1 << 24:
            raise DataError(f"{where}: a segment has id {shown(id)}. Expected R + 256 G + 65536 B, 1 to 16777215.")
        if id in seen:
            raise DataError(f"{where}: segment {id} is given twice. Keep one.")
        seen.add(id)
    if len(segments) >= 1 << 16:
        raise DataError(f"{where}: it has {len(segments)} segments. Expected fewer than {1 << 16}.")
    return segments


def _images(images: list[dict], path: Path) -> Arrays:
    _check_ids(images, path, "images")
    sizes, names = [], []
    for image in images:
        where = f"{path}, image {image['id']}"
        height, width = image.get("height"), image.get("width")
        if type(height) is not int or type(width) is not int or height <= 0 or width <= 0:
            raise DataError(
                f"{where}: height and width are {shown((height, width))}. Expected the picture's, in pixels."
            )
        if height * width > MAX_PIXELS:
            raise DataError(
                f"{where}: height and width make {shown(height * width // 10**6)} Mpx. At most "
                f"{MAX_PIXELS // 10**6} Mpx are decoded. Correct them, or scale the picture."
            )
        sizes.append((height, width))
        names.append(_text(image, "file_name", where))
    blob, offsets = pack_texts(names)
    return {
        "image_ids": np.array([image["id"] for image in images], np.int64),
        "image_sizes": np.array(sizes, np.int64),
        "image_names": blob,
        "image_name_offsets": offsets,
    }


def _categories(categories: list[dict], path: Path) -> Arrays:
    _check_ids(categories, path, "categories")
    names = [_text(category, "name", f"{path}: categories {category['id']}") for category in categories]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: the category name {shown(name)} is given twice. Rename one.")
    blob, offsets = pack_texts(names)
    ids = np.array([category["id"] for category in categories], np.int64)
    return {"category_ids": ids, "category_names": blob, "category_name_offsets": offsets}


def _checked(content: Any, path: Path, format: str) -> dict[str, list[dict]]:
    """Content whose three lists hold objects."""
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a {type(content).__name__}. Expected COCO's object with images, annotations, categories."
        )
    for part in ("images", "annotations", "categories"):
        records = content.get(part)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DataError(f"{path}: '{part}' is missing or no list of objects. Expected COCO's format ({format}).")
    if not content["images"] or not content["categories"]:
        raise DataError(
            f"{path} lists {len(content['images'])} images and {len(content['categories'])} categories. Expected some."
        )
    return content


def _check_ids(records: list[dict], path: Path, part: str, optional: bool = False) -> None:
    seen: set[int] = set()
    for position, record in enumerate(records):
        if optional and "id" not in record:
            continue
        id = record.get("id")
        if type(id) is not int or not -(1 << 63) <= id < 1 << 63:
            raise DataError(f"{path}: {part}[{position}] has id {shown(id)}. Expected an integer of 64 bits.")
        if id in seen:
            raise DataError(f"{path}: id {id} is given twice in {part} (again at position {position}). Renumber them.")
        seen.add(id)


def _positions(ids: NDArray[np.int64]) -> dict[int, int]:
    return {id: position for position, id in enumerate(ids.tolist())}


def _position(record: dict, key: str, positions: dict[int, int], path: Path, place: str = "") -> int:
    """The position of the image or category that a record names."""
    id = record.get(key)
    if type(id) is int and id in positions:
        return positions[id]
    what, mend = ("images", "Correct or remove it.") if key == "image_id" else ("categories", "Correct it.")
    raise DataError(
        f"{path}, {place or 'annotation ' + shown(record.get('id'))}: {key} {shown(id)} is not among the "
        f"{len(positions)} {what} ({', '.join(map(str, sorted(positions)[:20]))}). {mend}"
    )


def _text(record: dict, key: str, where: str) -> str:
    text = record.get(key)
    if not isinstance(text, str) or not 0 < len(text) <= MAX_NAME or not _encodable(text):
        raise DataError(f"{where} has {key} {shown(text)}. Expected a name of at most {MAX_NAME} characters.")
    return text


def _encodable(text: str) -> bool:
    """Whether it can be written in UTF-8: JSON can hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _numbers(boxes: list[Any], place: Callable[[int], str], path: Path) -> NDArray[np.float64]:
    """[M, 4] x, y, width, height. Infinite ones are numbers too (1e999); who uses them skips them."""
    try:
        if all(len(box) == 4 for box in boxes):
            return np.array(array("d", chain.from_iterable(boxes))).reshape(-1, 4)  # takes nothing but numbers
    except (TypeError, OverflowError):
        pass
    for row, box in enumerate(boxes):
        if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
            raise DataError(
                f"{path}, {place(row)}: bbox is {shown(box)}. Expected [x, y, width, height] in pixels"
                f"{', or a mask to take it from' if box is None else ''}."
            )
    limit = 1e300  # integers beyond 64 bits
    return np.array([[float(min(max(value, -limit), limit)) for value in box] for box in boxes]).reshape(-1, 4)
