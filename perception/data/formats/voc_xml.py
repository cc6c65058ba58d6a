"""The XML files of Pascal VOC: a picture's size, and its objects with a class name and a box."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perception.data.files.index_cache import cached, pack_texts
from perception.data.files.strict_json import shown
from perception.data.files.strict_xml import Element, check_file, read_xml
from perception.data.formats.boxes import HUGE
from perception.types import DataError


def read_objects(files: Sequence[Path]) -> dict[str, NDArray]:
    """The objects of all files, in order.

    sizes:   int64 [F, 2], height and width of each file's picture; 0 = not given
    corners: float64 [N, 4], xmin ymin xmax ymax as stored
    file, line, name, difficult: int64 [N], position in ``files``, line in it, position in the names, 0 or 1
    names, name_offsets: the names, by `pack_texts`

    Raises DataError with file and line where a file is not VOC's.
    """
    for path in files:
        check_file(path)
    return cached("voc 1", files, lambda: _parse(files))


def _parse(files: Sequence[Path]) -> dict[str, NDArray]:
    names: dict[str, int] = {}
    sizes, rows, corners = [], [], []
    for number, path in enumerate(files):
        root = read_xml(path)
        if root.tag != "annotation":
            raise DataError(f"{path} holds <{root.tag[:40]}>. Expected VOC's <annotation>.")
        sizes.append(_size(root, path))
        for item in root.all("object"):
            name, box, difficult = _object(item, path)
            rows.append((number, item.line, names.setdefault(name, len(names)), difficult))
            corners.append(box)
    table = np.array(rows, np.int64).reshape(-1, 4)
    blob, offsets = pack_texts(list(names))
    return {
        "sizes": np.array(sizes, np.int64).reshape(-1, 2), "corners": np.array(corners, np.float64).reshape(-1, 4),
        "file": table[:, 0], "line": table[:, 1], "name": table[:, 2], "difficult": table[:, 3],
        "names": blob, "name_offsets": offsets,
    }  # fmt: skip


def _size(root: Element, path: Path) -> tuple[int, int]:
    """(height, width), (0, 0) where not given."""
    size = root.first("size")
    if size is None:
        return 0, 0
    height, width = (_number(size, tag, path) for tag in ("height", "width"))
    if not (0 <= height <= HUGE and 0 <= width <= HUGE):
        raise DataError(f"{path}, line {size.line}: the size is {width} x {height}. Expected the picture's, in pixels.")
    return (int(height), int(width)) if height and width else (0, 0)


def _object(item: Element, path: Path) -> tuple[str, list[float], bool]:
    """(name, [xmin, ymin, xmax, ymax], difficult)."""
    name, box, difficult = item.first("name"), item.first("bndbox"), item.first("difficult")
    if name is None or not name.text or box is None or len(item.all("bndbox")) > 1:
        raise DataError(
            f"{path}, line {item.line}: an object without a name or with other than one bndbox. Correct it."
        )
    flag = "" if difficult is None else difficult.text.lower()
    if flag not in ("", "0", "1", "false", "true", "unspecified"):
        raise DataError(f"{path}, line {item.line}: difficult is {shown(flag)}. Expected 0 or 1.")
    return name.text, [_number(box, tag, path) for tag in ("xmin", "ymin", "xmax", "ymax")], flag in ("1", "true")


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
