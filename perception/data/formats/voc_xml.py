"""The XML files of Pascal VOC: a picture's size, and its objects with a class name and a box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perception.data.formats.boxes import HUGE, around_turned
from perception.files.index_cache import cached, pack_texts
from perception.files.scalars import real, truth
from perception.files.strict_json import shown
from perception.files.strict_xml import Element, check_file, read_xml
from perception.types import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_TURNED = ("robndbox", "rotated_bndbox", "rotated")
"""Names of a turned rectangle: a centre, sides and an angle (roLabelImg), or four corners (DIOR-R, SSDD)."""


def read_objects(files: Sequence[Path]) -> dict[str, NDArray]:
    """The objects of all files, in order.

    sizes:   int64 [F, 2], height and width of each file's picture; 0 = not given
    corners: float64 [N, 4], xmin ymin xmax ymax as stored, or around the turned rectangle or the polygon stored
    file, line, name: int64 [N], position in ``files``, line in it, position in the names
    difficult, ignored, turned: int64 [N], 0 or 1; a crowd is ignored, what LabelMe calls deleted is not there
    names, name_offsets, pictures, picture_offsets: the names, and what each file calls its picture, by `pack_texts`

    Raises DataError with file and line where a file is not VOC's.
    """
    for path in files:
        check_file(path)
    return cached("voc 3", files, lambda: _parse(files))


def _parse(files: Sequence[Path]) -> dict[str, NDArray]:
    names: dict[str, int] = {}
    sizes, pictures, rows, corners = [], [], [], []
    for number, path in enumerate(files):
        root = read_xml(path)
        if root.tag != "annotation":
            raise DataError(f"{path} holds <{root.tag[:40]}>. Expected VOC's <annotation>.")
        sizes.append(_size(root, path))
        picture = root.first("filename")
        pictures.append("" if picture is None else picture.text)
        for item in root.all("object"):
            where, name = f"{path}, line {item.line}", item.first("name")
            if truth(_text(item, "deleted"), where, "deleted"):  # LabelMe
                continue
            if name is None or not name.text:
                raise DataError(f"{where}: an object without a name. Correct it.")
            box, turned = _box(item, path)
            difficult, ignored, crowd = (_flag(item, key, where) for key in ("difficult", "ignore", "iscrowd"))
            rows.append(
                (number, item.line, names.setdefault(name.text, len(names)), difficult, ignored or crowd, turned)
            )
            corners.append(box)
    table = np.array(rows, np.int64).reshape(-1, 6)
    columns = dict(zip(("file", "line", "name", "difficult", "ignored", "turned"), table.T, strict=True))
    result = {"sizes": np.array(sizes, np.int64).reshape(-1, 2), "corners": np.array(corners).reshape(-1, 4), **columns}
    result["names"], result["name_offsets"] = pack_texts(list(names))
    result["pictures"], result["picture_offsets"] = pack_texts(pictures)
    return result


def _size(root: Element, path: Path) -> tuple[int, int]:
    """(height, width); (0, 0) where not given: no element, or one that is empty, 0 or -1."""
    size = root.first("size")
    if size is None:
        return 0, 0
    texts = [_text(size, tag) for tag in ("height", "width")]
    sides = [real(text) if text else 0.0 for text in texts]
    if any(side is None or not (side == -1 or 0 <= side <= HUGE) for side in sides):
        raise DataError(
            f"{path}, line {size.line}: the size (height, width) is {shown(texts)}. Expected the picture's, in pixels."
        )
    height, width = (int(side or 0) for side in sides)
    return (height, width) if height > 0 and width > 0 else (0, 0)


def _box(item: Element, path: Path) -> tuple[list[float], bool]:
    """([xmin, ymin, xmax, ymax], whether it is the box around a turned one)."""
    box, several = item.first("bndbox"), len(item.all("bndbox")) > 1
    if box is not None and not several and len(_points(box, path)) < 3:
        corners = [_number(box, tag, path) for tag in _CORNERS]
        angle = _angle(item)
        return (_around(corners, angle), True) if angle else (corners, False)
    turned = [child for tag in _TURNED for child in item.all(tag)]
    outlines = [*item.all("bndbox"), *turned, *item.all("polygon")]
    if several or not outlines:
        raise DataError(f"{path}, line {item.line}: an object without a box, or with several. Correct it.")
    points = _points(outlines[0], path)
    if len(points) > 2:
        return [*points.min(0).tolist(), *points.max(0).tolist()], outlines[0].tag != "polygon"
    return _rectangle(outlines[0], path), True


def _rectangle(box: Element, path: Path) -> list[float]:
    """The box around a rectangle of a centre, two sides and an angle, in radians or, beyond a turn, in degrees."""
    known = {child.tag.rpartition("_")[2]: child.tag for child in box.children}
    tags = [known.get(tag, tag) for tag in ("cx", "cy", "w", "h", "theta" if "theta" in known else "angle")]
    cx, cy, width, height, angle = (_number(box, tag, path) for tag in tags)
    angle = math.degrees(angle) if abs(angle) <= 2 * math.pi else angle
    return _around([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], angle)


def _around(corners: list[float], degrees: float) -> list[float]:
    """The box around one that is turned about its centre."""
    low, high = np.array([corners[:2]]), np.array([corners[2:]])
    with np.errstate(all="ignore"):  # numbers that are none
        return around_turned((low + high) / 2, high - low, np.deg2rad([degrees]))[0].tolist()


def _angle(item: Element) -> float:
    """CVAT's attribute ``rotation``, in degrees; 0 where there is none, or one that stands for something else."""
    angle = real(_attribute(item, "rotation"))
    return angle if angle is not None and math.isfinite(angle) and angle % 180 else 0.0


def _flag(item: Element, key: str, where: str) -> bool:
    """Whether a flag is set, by an element of its name or by CVAT's attribute."""
    own = _text(item, key)
    return truth(_attribute(item, key) if own is None else own, where, key)


def _attribute(item: Element, name: str) -> str | None:
    """The value of an attribute that CVAT writes for an object; None where it has none of that name."""
    attributes = [each for parent in item.all("attributes") for each in parent.all("attribute")]
    return next((_text(each, "value") for each in attributes if _text(each, "name") == name), None)


def _points(outline: Element, path: Path) -> NDArray[np.float64]:
    """float64 [K, 2] from children x1 y1 x2 ... (Roboflow), x_left_top ... (DIOR-R), or pt with x and y (LabelMe)."""
    parents = outline.all("pt") or [outline]
    xs, ys = (
        [
            _number(parent, child.tag, path)
            for parent in parents
            for child in parent.children
            if child.tag.startswith(axis) and child.tag not in _CORNERS
        ]
        for axis in "xy"
    )
    return np.array([xs, ys]).T if len(xs) == len(ys) else np.zeros((0, 2))


def _text(parent: Element, tag: str) -> str | None:
    found = parent.first(tag)
    return None if found is None else found.text


def _number(parent: Element, tag: str, path: Path) -> float:
    texts = [child.text for child in parent.all(tag)]
    try:
        if len(texts) == 1 and len(texts[0]) < 50:
            return float(texts[0])
    except ValueError:
        pass
    raise DataError(
        f"{path}, line {parent.line}: {tag} in <{parent.tag}> is {shown(texts)}. Expected one number, in pixels."
    )
