"""Labels in the format of Scalabel (https://doc.scalabel.ai/format.html), as BDD100K publishes them: JSON of frames.

Supported forms: a list of frames or an object with ``frames`` in one file, or, as in 2018, a file per image with one
frame of ``objects``. Boxes and frame attributes are read. Labels with only polygons, curves, masks or graphs (in 2018
also lanes and drivable areas) are skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.data.formats.boxes import MAX_COORDINATE
from perception.files.index_cache import load_or_build, pack_texts, unpack_texts
from perception.files.scalars import parse_flag, parse_integer, parse_number
from perception.files.strict_json import quote_value, read_json
from perception.files.text_files import list_folder_files
from perception.types import DataError

ATTRIBUTES = ("weather", "scene", "timeofday")
_OTHER_SHAPES = ("poly2d", "box3d", "rle", "graph")
_CORNERS = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True, slots=True)
class ScalabelFrames:
    """All frames and boxes of a file or folder.

    Attributes:
        names: image names, unique.
        sizes: int64 [F, 2], height and width; 0 = not given.
        attributes: int64 [F, 3], positions in ``values`` of the `ATTRIBUTES`; -1 = undefined.
        values: attribute values.
        frame_indices: int64 [N], frame of every box.
        category_indices: int64 [N], position in ``categories`` of every box.
        categories: category names.
        ignore: bool [N], boxes of crowds and boxes that the evaluation ignores.
        corners: float64 [N, 4], x1 y1 x2 y2 as stored.
        num_shapeless: number of labels without a shape.
    """

    names: list[str]
    sizes: NDArray[np.int64]
    attributes: NDArray[np.int64]
    values: list[str]
    frame_indices: NDArray[np.int64]
    category_indices: NDArray[np.int64]
    categories: list[str]
    ignore: NDArray[np.bool_]
    corners: NDArray[np.float64]
    num_shapeless: int


def read_scalabel_frames(path: Path) -> ScalabelFrames:
    """Read the frames of a JSON file, or of a folder with a file per image.

    Raises DataError with file and frame if the content does not have this format.
    """
    single = path.is_dir()
    files = list(list_folder_files(path.resolve(), path.resolve(), ".json").values()) if single else [path]
    if not files:
        raise DataError(f"{path} holds no *.json. Expected a file of labels per image.")
    stored = load_or_build(f"scalabel 2 {single}", files, lambda: _parse_files(files, single))
    names, categories, values = (
        unpack_texts(stored[key], stored[f"{key}_offsets"]) for key in ("names", "categories", "values")
    )
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{path}: image {quote_value(twice)} is given twice. Keep one frame of it.")
    return ScalabelFrames(
        names, stored["sizes"], stored["attributes"], values, stored["frame"], stored["category"], categories,
        stored["ignore"].astype(bool), stored["corners"], int(stored["bare"][0]),
    )  # fmt: skip


def _parse_files(files: Sequence[Path], per_image: bool) -> dict[str, NDArray]:
    names, sizes, attributes, rows, corners = [], [], [], [], []
    categories: dict[str, int] = {}
    values: dict[str, int] = {}
    bare = 0
    for path in files:
        for number, frame in enumerate(_parse_frames(read_json(path), path, per_image)):
            where = f"{path}, frame {number}"
            names.append(_check_text(frame.get("name"), where, "name"))
            where = f"{where} ({quote_value(names[-1])})"
            sizes.append(_parse_size(frame.get("size"), where))
            known = _check_object(frame.get("attributes"), where, "attributes")
            attributes.append([_index_value(known.get(key), values, where, key) for key in ATTRIBUTES])
            for label in _check_list(frame.get("labels"), where, "labels"):
                box = label.get("box2d")
                if box is None:
                    bare += not any(label.get(shape) for shape in _OTHER_SHAPES)
                    continue
                name = _check_text(label.get("category"), where, "category")
                category = categories.setdefault(name, len(categories))
                rows.append((len(names) - 1, category, _is_ignored(label, where)))
                corners.append(_parse_corners(box, where))
    table = np.array(rows, np.int64).reshape(-1, 3)
    result = {
        "sizes": np.array(sizes, np.int64).reshape(-1, 2),
        "attributes": np.array(attributes, np.int64).reshape(-1, 3),
        "frame": table[:, 0], "category": table[:, 1], "ignore": table[:, 2],
        "corners": np.array(corners, np.float64).reshape(-1, 4), "bare": np.array([bare], np.int64),
    }  # fmt: skip
    for key, texts in (("names", names), ("categories", list(categories)), ("values", list(values))):
        result[key], result[f"{key}_offsets"] = pack_texts(texts)
    return result


def _parse_frames(content: object, path: Path, per_image: bool) -> list[dict]:
    if per_image:
        whole = _check_object(content, str(path), "content")
        frames = _check_list(whole.get("frames"), str(path), "frames")
        name = _check_text(whole.get("name"), str(path), "name")
        if len(frames) != 1:
            raise DataError(f"{path} holds {len(frames)} frames. Expected one, with objects.")
        name = name if Path(name).suffix else f"{name}.jpg"
        return [{"name": name, "attributes": whole.get("attributes"), "labels": frames[0].get("objects")}]
    if isinstance(content, dict) and "frames" in content:
        content = content["frames"]
    if not isinstance(content, list) or not content:
        raise DataError(
            f"{path} does not contain a list of frames. Expected BDD100K's labels: [{{name, attributes, labels}}, ...]."
        )
    return _check_list(content, str(path), "frames")


def _check_list(value: object, where: str, key: str) -> list[dict]:
    """A list of objects; empty if it is null or absent."""
    if value is not None and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise DataError(f"{where}: {key} is {quote_value(value)}. Expected a list of objects.")
    return value or []


def _check_object(value: object, where: str, key: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise DataError(f"{where}: {key} is {quote_value(value)}. Expected an object.")
    return value or {}


def _check_text(value: object, where: str, key: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
        raise DataError(f"{where}: {key} is {quote_value(value)}. Expected a name.")
    return value


def _index_value(value: object, values: dict[str, int], where: str, key: str) -> int:
    if value is None or value in ("", "undefined"):
        return -1
    return values.setdefault(_check_text(value, where, key), len(values))


def _parse_size(value: object, where: str) -> tuple[int, int]:
    """(height, width); (0, 0) if not given."""
    if value is None:
        return 0, 0
    size = _check_object(value, where, "size")
    sides = [0 if key in size and size[key] is None else parse_integer(size.get(key)) for key in ("height", "width")]
    if None not in sides and all(-1 <= (side or 0) <= MAX_COORDINATE for side in sides):
        height, width = (side or 0 for side in sides)
        return (height, width) if min(height, width) > 0 else (0, 0)
    raise DataError(f"{where}: size is {quote_value(size)}. Expected the image's height and width, in pixels.")


def _is_ignored(label: dict, where: str) -> bool:
    """Whether a box is a crowd, or is ignored in the evaluation."""
    known = _check_object(label.get("attributes"), where, "attributes")
    return parse_flag(known.get("crowd"), where, "crowd") | parse_flag(known.get("ignored"), where, "ignored")


def _parse_corners(box: object, where: str) -> list[float]:
    corners = [parse_number(box.get(key)) for key in _CORNERS] if isinstance(box, dict) else [None]
    numbers = [corner for corner in corners if corner is not None]
    if len(numbers) < len(corners):
        raise DataError(f"{where}: box2d is {quote_value(box)}. Expected x1, y1, x2, y2 in pixels.")
    return numbers
