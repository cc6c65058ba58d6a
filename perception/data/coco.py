"""Boxes in COCO's JSON (https://cocodataset.org/#format-data). Only boxes are read; masks are left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from perception.config import configuration
from perception.data.boxes import BoxTable, labels_and_doubts
from perception.data.class_names import Names, map_classes
from perception.data.dataset import check_size
from perception.data.folders import existing_file, existing_folder, inside, present
from perception.data.strict_json import read_json
from perception.types import Camera, DataError, Instances


@configuration
class CocoConfig:
    """images, annotations: folder of pictures and JSON file, relative to the data root.

    rename:      category -> class of the recipe; several may become one
    ignore:      categories whose boxes become ignore regions, neither object nor background
    background:  categories whose boxes are dropped: the recipe does not care for such things
    labels_only: classes of the recipe that this source labels; default: those that its categories map to
    allow_missing: largest fraction of the listed pictures that may be missing
    """

    images: str
    annotations: str
    format: Literal["coco"] = "coco"
    task: str = "detection"
    rename: dict[str, str] | None = None
    ignore: Names = ()
    background: Names = ()
    labels_only: tuple[str, ...] | None = None
    allow_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return (self.task,)


class CocoReader:
    """Every picture of the JSON is labelled; one without annotations is labelled as empty.

    Attributes beside the protocol's: ``categories`` (JSON id -> name) and ``class_map`` (name -> the recipe's class).
    """

    Config = CocoConfig

    def __init__(self, config: CocoConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        self.path = existing_file(root, config.annotations, "COCO annotations")
        folder = existing_folder(root, config.images, "pictures")
        content = _checked(read_json(self.path), self.path)
        self.categories = {c["id"]: _text(c, "name", self.path, "categories") for c in content["categories"]}
        if len(set(self.categories.values())) < len(self.categories):
            raise DataError(
                f"{self.path}: a category name is given twice in {sorted(self.categories.values())}. Rename one."
            )
        self.class_map = map_classes(
            self.categories.values(), classes[config.task], str(self.path), config.rename, config.ignore,
            config.background, config.labels_only,
        )  # fmt: skip
        records = self._records(content["images"], folder)
        self.images = [path for path, _, _ in records]
        self.sizes = [size for _, size, _ in records]
        positions = {id: i for i, (_, _, id) in enumerate(records)}
        self._boxes_of = self._boxes(content["annotations"], positions, {image["id"] for image in content["images"]})

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Instances]:
        """Boxes clipped to the picture. Raises DataError where the JSON's size is not the picture's."""
        check_size(f"{self.path}: the record of {self.images[index].name}", self.sizes[index], self.images[index], size)
        return {self.config.task: self._boxes_of.instances(index)}

    def camera(self, index: int) -> Camera | None:
        return None

    def _records(self, images: list[dict], folder: Path) -> list[tuple[Path, tuple[int, int], int]]:
        """(path, (height, width), id) of the pictures that exist, sorted by path."""
        records = []
        for image in images:
            where = f"{self.path}, image {image['id']}"
            size = image.get("height"), image.get("width")
            if not all(isinstance(side, int) and side > 0 for side in size):
                raise DataError(f"{where}: height and width are {size}. Expected the picture's, in pixels.")
            records.append((inside(folder, image.get("file_name", ""), where), size, image["id"]))
        records.sort()
        for (path, _, first), (other, _, second) in pairwise(records):
            if path == other:
                raise DataError(
                    f"{self.path}: images {first} and {second} are the same file {path.name}. Keep one record."
                )
        found = present([r[0] for r in records], folder, str(self.path), self.config.allow_missing, self.problems)
        return [record for record, there in zip(records, found, strict=True) if there]

    def _boxes(self, annotations: list[dict], positions: dict[int, int], known: set[int]) -> BoxTable:
        places, names, crowds, boxes = [], [], [], []
        for annotation in annotations:
            image, category = annotation.get("image_id"), annotation.get("category_id")
            known_category = type(category) is int and category in self.categories
            if type(image) is not int or image not in known or not known_category:
                raise self._unknown(annotation, known)
            places.append(positions.get(image, -1))
            names.append(self.categories[category])
            crowds.append(bool(annotation.get("iscrowd")))
            boxes.append(annotation.get("bbox"))
        labels, doubts = labels_and_doubts(names, self.class_map)
        corners = _numbers(boxes, annotations, self.path)
        corners[:, 2:] += corners[:, :2]
        ignore = np.array(doubts, bool) | np.array(crowds, bool)
        return BoxTable(places, corners, labels, ignore, self.sizes, self.class_map, self.problems)

    def _unknown(self, annotation: dict, known: set[int]) -> DataError:
        where = f"{self.path}, annotation {annotation.get('id')}"
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if type(image) is not int or image not in known:
            return DataError(f"{where}: image_id {image!r} is not among the {len(known)} images. Correct or remove it.")
        return DataError(f"{where}: category_id {category!r} is not among {sorted(self.categories)[:20]}. Correct it.")


def _numbers(boxes: list[Any], annotations: list[dict], path: Path) -> NDArray[np.float64]:
    """[M, 4] x, y, width, height. Infinite ones are numbers too (1e999); the caller skips them."""
    try:
        table = np.array(boxes)
    except (ValueError, OverflowError):  # of unequal length
        table = np.empty(0, object)
    if boxes and (table.dtype.kind not in "fi" or table.shape != (len(boxes), 4)):
        for annotation, box in zip(annotations, boxes, strict=True):
            if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
                where = f"{path}, annotation {annotation.get('id')}"
                raise DataError(f"{where}: bbox is {str(box)[:60]}. Expected [x, y, width, height] in pixels.")
        table = np.array(
            [[min(max(value, -1e300), 1e300) for value in box] for box in boxes]
        )  # integers beyond 64 bits
    return table.astype(np.float64).reshape(-1, 4)


def _checked(content: Any, path: Path) -> dict[str, list[dict]]:
    """Content whose three lists hold objects with unique integer ids."""
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a {type(content).__name__}. Expected COCO's object with images, annotations, categories."
        )
    for part in ("images", "annotations", "categories"):
        records = content.get(part)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DataError(f"{path}: '{part}' is missing or no list of objects. Expected COCO's format (instances).")
        seen: set[int] = set()
        for position, record in enumerate(records):
            id = record.get("id", -1 - position if part == "annotations" else None)
            if type(id) is not int:
                raise DataError(f"{path}: {part}[{position}] has id {id!r}. Expected an integer.")
            if id in seen:
                raise DataError(
                    f"{path}: id {id} is given twice in {part} (again at position {position}). Renumber them."
                )
            seen.add(id)
    if not content["images"] or not content["categories"]:
        raise DataError(
            f"{path} lists {len(content['images'])} images and {len(content['categories'])} categories. Expected some."
        )
    return content


def _text(record: dict, key: str, path: Path, part: str) -> str:
    if not isinstance(record.get(key), str) or not record[key]:
        raise DataError(f"{path}: {part} {record['id']} has {key} {record.get(key)!r}. Expected a name.")
    return record[key]
