"""Checks of the records in COCO's JSON files: images, categories, and references to them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from perception.data.formats.foreign_json import describe_known_format
from perception.files.images import MAX_PIXELS
from perception.files.index_cache import pack_texts
from perception.files.scalars import parse_integer, parse_number
from perception.files.strict_json import quote_value
from perception.types import DataError

Arrays = dict[str, NDArray]

MAX_NAME_LENGTH = 1000

_PLACEHOLDER_NAMES = ("background", "_background_", "__background__", "__ignore__")
"""Categories that converters of LabelMe and similar tools add, and that are not classes."""


def check_content(content: object, path: Path, format: str) -> dict[str, list[dict]]:
    """Return the content after a check that its three lists contain objects. Raises DataError otherwise."""
    if not isinstance(content, dict):
        raise DataError(
            f"{path} contains a {type(content).__name__}. Expected COCO's object with images, annotations, categories."
            f"{describe_known_format(content)}"
        )
    for part in ("images", "annotations", "categories"):
        records = content.get(part)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DataError(
                f"{path}: '{part}' is missing or not a list of objects. Expected COCO's format ({format})."
                f"{describe_known_format(content)}"
            )
    if not content["images"] or not content["categories"]:
        raise DataError(
            f"{path} lists {len(content['images'])} images and {len(content['categories'])} categories. "
            "Expected at least one of each."
        )
    return content


def parse_images(images: list[dict], path: Path) -> Arrays:
    """Read the image records.

    Returns image_ids int64 [N], image_sizes int64 [N, 2] (0 = not given), image_names and image_name_offsets.
    """
    ids = parse_ids(images, path, "images")
    sizes, names = [], []
    for id, image in zip(ids, images, strict=True):
        where = f"{path}, image {id}"
        sizes.append(_parse_size(image, where))
        if "file_name" not in image and isinstance(image.get("coco_url"), str):  # LVIS
            image = {"file_name": "/".join(_url_path(image["coco_url"]).split("/")[-2:])}
        names.append(parse_name(image, "file_name", where))
    blob, offsets = pack_texts(names)
    return {
        "image_ids": np.array(ids, np.int64), "image_sizes": np.array(sizes, np.int64), "image_names": blob,
        "image_name_offsets": offsets,
    }  # fmt: skip


def _url_path(address: str) -> str:
    try:
        return urlsplit(address).path
    except ValueError:  # an address with an invalid host
        return address


def _parse_size(image: dict, where: str) -> tuple[int, int]:
    """(height, width); (0, 0) if it is not given: absent, null, 0, -1 (VGG Image Annotator)."""
    height, width = image.get("height"), image.get("width")
    if type(height) is not int or type(width) is not int:
        known = [-1 if side in (None, "") else parse_integer(side) for side in (height, width)]
        if None in known:
            raise DataError(
                f"{where}: height and width are {quote_value((height, width))}. Expected the image's, in pixels."
            )
        height, width = (side or 0 for side in known)
    if min(height, width) < -1:
        raise DataError(
            f"{where}: height and width are {quote_value((height, width))}. Expected the image's, in pixels."
        )
    if min(height, width) <= 0:
        return 0, 0
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{where}: height and width give {quote_value(height * width // 10**6)} Mpx. At most "
            f"{MAX_PIXELS // 10**6} Mpx are decoded. Correct them, or scale the image."
        )
    return height, width


def parse_categories(categories: list[dict], path: Path, used: set[int] | None) -> Arrays:
    """Read the category records.

    A category is a placeholder if it has no annotations and is either the background or the supercategory of all
    others (Roboflow writes such a category). A placeholder with the name of another category is dropped.

    Args:
        categories: category records of the JSON.
        path: the JSON file, for messages.
        used: ids of the categories with annotations; None = all.

    Returns:
        category_ids int64 [C], category_names, category_name_offsets; category_idle bool [C], placeholders.

    Raises:
        DataError: an id or a name is invalid or is given twice.
    """
    ids = parse_ids(categories, path, "categories")
    named = [{"name": str(c["name"])} if type(c.get("name")) is int else c for c in categories]
    names = [parse_name(category, "name", f"{path}: categories {id}") for id, category in zip(ids, named, strict=True)]
    parents = [quote_value(category.get("supercategory")) for category in categories]
    below, counts = Counter(parents), Counter(names)
    # The supercategory of all other categories is the root of the list and is treated like a placeholder name.
    others_below = [below[quote_value(name)] - (parents[row] == quote_value(name)) for row, name in enumerate(names)]
    is_root = [name in _PLACEHOLDER_NAMES or 0 < len(names) - 1 == others_below[row] for row, name in enumerate(names)]
    idle = [used is not None and id not in used and root for id, root in zip(ids, is_root, strict=True)]
    kept = [row for row, name in enumerate(names) if not (idle[row] and counts[name] > 1)]
    name, count = Counter(names[row] for row in kept).most_common(1)[0] if kept else (names[0], len(names))
    if count > 1:
        raise DataError(f"{path}: the category name {quote_value(name)} is given twice. Rename one.")
    blob, offsets = pack_texts([names[row] for row in kept])
    return {
        "category_ids": np.array([ids[row] for row in kept], np.int64), "category_names": blob,
        "category_name_offsets": offsets, "category_idle": np.array([idle[row] for row in kept], bool),
    }  # fmt: skip


def parse_ids(records: list[dict], path: Path, part: str) -> list[int]:
    """Read the unique integer ids of records, also from floats or texts. Raises DataError for an invalid id."""
    ids = [record.get("id") if type(record.get("id")) is int else parse_integer(record.get("id")) for record in records]
    for position, (id, record) in enumerate(zip(ids, records, strict=True)):
        if id is None or not -(1 << 63) <= id < 1 << 63:
            found = quote_value(record.get("id"))
            raise DataError(f"{path}: {part}[{position}] has id {found}. Expected an integer of 64 bits.")
    check_unique_ids(ids, path, part)
    return ids  # pyright: ignore[reportReturnType]


def check_annotation_ids(annotations: list[dict], path: Path) -> None:
    """Raise DataError if an id is given twice. The ids are not used otherwise: they may be absent, or texts."""
    ids = []
    for position, annotation in enumerate(annotations):
        id = annotation.get("id")
        if id is not None and not isinstance(id, str):
            id = parse_integer(id)
            if id is None:
                found = quote_value(annotation.get("id"))
                raise DataError(f"{path}: annotations[{position}] has id {found}. Expected an integer of 64 bits.")
        ids.append(id)
    check_unique_ids(ids, path, "annotations")


def check_unique_ids(ids: list[Any], path: Path, part: str) -> None:
    """Raise DataError if an id other than None is given twice."""
    known = [id for id in ids if id is not None]
    if len(set(known)) == len(known):
        return
    seen = set()
    for position, id in enumerate(ids):
        if id is not None and id in seen:
            raise DataError(
                f"{path}: id {quote_value(id)} is given twice in {part} (again at position {position}). Renumber them."
            )
        seen.add(id)


def index_ids(ids: NDArray[np.int64]) -> dict[int, int]:
    """Return the position of each id."""
    return {id: position for position, id in enumerate(ids.tolist())}


def find_position(record: dict, key: str, positions: dict[int, int], path: Path, place: str = "") -> int:
    """Return the position of the image or category that a record refers to. Raises DataError for an unknown id."""
    given = record.get(key)
    id = given if type(given) is int else parse_integer(given)
    if id in positions:
        return positions[id]
    what, mend = ("images", "Correct or remove it.") if key == "image_id" else ("categories", "Correct it.")
    raise DataError(
        f"{path}, {place or 'annotation ' + quote_value(record.get('id'))}: "
        f"{key} {quote_value(given)} is not among the "
        f"{len(positions)} {what} ({', '.join(map(str, sorted(positions)[:20]))}). {mend}"
    )


def parse_name(record: dict, key: str, where: str) -> str:
    """Read a name. Raises DataError if it is not a text of 1 to `MAX_NAME_LENGTH` characters."""
    found = record.get(key)
    if not isinstance(found, str) or not 0 < len(found) <= MAX_NAME_LENGTH or not _is_encodable(found):
        raise DataError(
            f"{where} has {key} {quote_value(found)}. Expected a name of at most {MAX_NAME_LENGTH} characters."
        )
    return found


def _is_encodable(text: str) -> bool:
    """Whether a text can be encoded as UTF-8: JSON may contain unpaired surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_boxes(boxes: list[Any], describe_row: Callable[[int], str], path: Path) -> NDArray[np.float64]:
    """Read boxes as float64 [M, 4], x, y, width, height. Raises DataError for an invalid box.

    Infinite numbers (1e999) are valid here; users of the boxes skip them.
    """
    try:
        if all(len(box) == 4 for box in boxes):
            return np.array(array("d", chain.from_iterable(boxes))).reshape(-1, 4)  # accepts only numbers
    except (TypeError, OverflowError):
        pass
    rows = []
    for row, box in enumerate(boxes):
        values = [parse_number(value) for value in box] if isinstance(box, list) and len(box) == 4 else [None]
        if None in values:
            raise DataError(
                f"{path}, {describe_row(row)}: bbox is {quote_value(box)}. Expected [x, y, width, height] in pixels"
                f"{', or a mask to compute it from' if box is None else ''}."
            )
        rows.append(values)
    return np.array(rows, np.float64).reshape(-1, 4)
