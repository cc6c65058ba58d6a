"""XML files of Pascal VOC: the size of an image, and its objects with a class name and a box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perception.data.formats.boxes import MAX_COORDINATE, enclose_rotated_boxes
from perception.files.index_cache import load_or_build, pack_texts
from perception.files.scalars import parse_flag, parse_number
from perception.files.strict_json import quote_value
from perception.files.strict_xml import XmlElement, check_xml_file, read_xml
from perception.types import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ROTATED_TAGS = ("robndbox", "rotated_bndbox", "rotated")
"""Tags of a rotated box: center, sides and angle (roLabelImg), or four corners (DIOR-R, SSDD)."""


def read_objects(files: Sequence[Path]) -> dict[str, NDArray]:
    """Read the objects of all files, in order.

    Returns:
        sizes: int64 [F, 2], height and width of each file's image; 0 = not given.
        corners: float64 [N, 4], xmin ymin xmax ymax as stored, or of the box around a rotated box or polygon.
        file, line, name: int64 [N], index in ``files``, line number, index in the names.
        difficult, ignored, turned: int64 [N], 0 or 1. Crowds are ignored; LabelMe's deleted objects are left out.
        names, name_offsets, image_names, image_offsets: class names and each file's <filename>, from `pack_texts`.

    Raises:
        DataError: a file is not in VOC's format. The message has file and line.
    """
    for path in files:
        check_xml_file(path)
    return load_or_build("voc 4", files, lambda: _parse_files(files))


def _parse_files(files: Sequence[Path]) -> dict[str, NDArray]:
    names: dict[str, int] = {}
    sizes, pictures, rows, corners = [], [], [], []
    for number, path in enumerate(files):
        root = read_xml(path)
        if root.tag != "annotation":
            raise DataError(f"{path} contains <{root.tag[:40]}>. Expected VOC's <annotation>.")
        sizes.append(_parse_size(root, path))
        picture = root.find_first("filename")
        pictures.append("" if picture is None else picture.text)
        for item in root.find_all("object"):
            where, name = f"{path}, line {item.line}", item.find_first("name")
            if parse_flag(_child_text(item, "deleted"), where, "deleted"):  # LabelMe
                continue
            if name is None or not name.text:
                raise DataError(f"{where}: an object has no name. Correct it.")
            box, turned = _parse_box(item, path)
            difficult, ignored, crowd = (_read_flag(item, key, where) for key in ("difficult", "ignore", "iscrowd"))
            rows.append(
                (number, item.line, names.setdefault(name.text, len(names)), difficult, ignored or crowd, turned)
            )
            corners.append(box)
    table = np.array(rows, np.int64).reshape(-1, 6)
    columns = dict(zip(("file", "line", "name", "difficult", "ignored", "turned"), table.T, strict=True))
    result = {"sizes": np.array(sizes, np.int64).reshape(-1, 2), "corners": np.array(corners).reshape(-1, 4), **columns}
    result["names"], result["name_offsets"] = pack_texts(list(names))
    result["image_names"], result["image_offsets"] = pack_texts(pictures)
    return result


def _parse_size(root: XmlElement, path: Path) -> tuple[int, int]:
    """(height, width); (0, 0) if not given: the element is absent, empty, 0 or -1."""
    size = root.find_first("size")
    if size is None:
        return 0, 0
    texts = [_child_text(size, tag) for tag in ("height", "width")]
    sides = [parse_number(text) if text else 0.0 for text in texts]
    if any(side is None or not (side == -1 or 0 <= side <= MAX_COORDINATE) for side in sides):
        raise DataError(
            f"{path}, line {size.line}: the size (height, width) is {quote_value(texts)}. "
            "Expected the image's size, in pixels."
        )
    height, width = (int(side or 0) for side in sides)
    return (height, width) if height > 0 and width > 0 else (0, 0)


def _parse_box(item: XmlElement, path: Path) -> tuple[list[float], bool]:
    """([xmin, ymin, xmax, ymax], whether it encloses a rotated box)."""
    box, several = item.find_first("bndbox"), len(item.find_all("bndbox")) > 1
    if box is not None and not several and len(_parse_points(box, path)) < 3:
        corners = [_child_number(box, tag, path) for tag in _CORNERS]
        angle = _read_rotation(item)
        return (_enclose_rotated(corners, angle), True) if angle else (corners, False)
    turned = [child for tag in _ROTATED_TAGS for child in item.find_all(tag)]
    outlines = [*item.find_all("bndbox"), *turned, *item.find_all("polygon")]
    if several or not outlines:
        raise DataError(f"{path}, line {item.line}: an object has no box, or several. Correct it.")
    points = _parse_points(outlines[0], path)
    if len(points) > 2:
        return [*points.min(0).tolist(), *points.max(0).tolist()], outlines[0].tag != "polygon"
    return _parse_rotated_box(outlines[0], path), True


def _parse_rotated_box(box: XmlElement, path: Path) -> list[float]:
    """The box around a center, two sides and an angle: in radians, or in degrees if it exceeds a full turn."""
    known = {child.tag.rpartition("_")[2]: child.tag for child in box.children}
    tags = [known.get(tag, tag) for tag in ("cx", "cy", "w", "h", "theta" if "theta" in known else "angle")]
    cx, cy, width, height, angle = (_child_number(box, tag, path) for tag in tags)
    angle = math.degrees(angle) if abs(angle) <= 2 * math.pi else angle
    return _enclose_rotated([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], angle)


def _enclose_rotated(corners: list[float], degrees: float) -> list[float]:
    """The box around a box that is rotated about its center."""
    low, high = np.array([corners[:2]]), np.array([corners[2:]])
    with np.errstate(all="ignore"):  # NaN and infinite numbers
        return enclose_rotated_boxes((low + high) / 2, high - low, np.deg2rad([degrees]))[0].tolist()


def _read_rotation(item: XmlElement) -> float:
    """CVAT's attribute ``rotation``, in degrees; 0 if absent or not a rotation."""
    angle = parse_number(_read_attribute(item, "rotation"))
    return angle if angle is not None and math.isfinite(angle) and angle % 180 else 0.0


def _read_flag(item: XmlElement, key: str, where: str) -> bool:
    """Whether a flag is set, by an element with its name or by CVAT's attribute."""
    own = _child_text(item, key)
    return parse_flag(_read_attribute(item, key) if own is None else own, where, key)


def _read_attribute(item: XmlElement, name: str) -> str | None:
    """The value of an object's CVAT attribute; None if absent."""
    attributes = [each for parent in item.find_all("attributes") for each in parent.find_all("attribute")]
    return next((_child_text(each, "value") for each in attributes if _child_text(each, "name") == name), None)


def _parse_points(outline: XmlElement, path: Path) -> NDArray[np.float64]:
    """Points float64 [K, 2] from x1 y1 x2 ... (Roboflow), x_left_top ... (DIOR-R), or pt with x and y (LabelMe)."""
    parents = outline.find_all("pt") or [outline]
    xs, ys = (
        [
            _child_number(parent, child.tag, path)
            for parent in parents
            for child in parent.children
            if child.tag.startswith(axis) and child.tag not in _CORNERS
        ]
        for axis in "xy"
    )
    return np.array([xs, ys]).T if len(xs) == len(ys) else np.zeros((0, 2))


def _child_text(parent: XmlElement, tag: str) -> str | None:
    found = parent.find_first(tag)
    return None if found is None else found.text


def _child_number(parent: XmlElement, tag: str, path: Path) -> float:
    texts = [child.text for child in parent.find_all(tag)]
    try:
        if len(texts) == 1 and len(texts[0]) < 50:
            return float(texts[0])
    except ValueError:
        pass
    raise DataError(
        f"{path}, line {parent.line}: {tag} in <{parent.tag}> is {quote_value(texts)}. Expected one number, in pixels."
    )
