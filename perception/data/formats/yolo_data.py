"""The file that describes a data set in YOLO's layout: class names and locations of the images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception.config import load_yaml
from perception.files.text_files import read_text
from perception.types import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class YoloDataFile:
    """Content of a ``data.yaml``.

    Attributes:
        names: class names in the order of their ids.
        splits: "train", "val", "test" -> folders and lists of images. Empty splits are absent.
        path: folder that the paths start from, as written in the file; "" if not given.
        num_keypoint_values: number of pose values after the box on every line.
    """

    names: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    path: str
    num_keypoint_values: int


def read_yolo_data_file(path: Path) -> YoloDataFile:
    """Read a ``data.yaml``. Other keys, such as ``download``, are not used. Raises DataError if it is invalid.

    Also reads darknet's ``obj.data`` (CVAT's YOLO 1.1), and a list of class names only (``classes.txt`` of Label
    Studio and LabelImg, ``obj.names``). For such a list, all images are in the folder ``images`` beside it, if there
    is one, else in the same folder.
    """
    if path.suffix in (".txt", ".names"):
        folder = "images" if (path.parent / "images").is_dir() else "."
        return YoloDataFile(_parse_names({"names": _read_lines(path)}, path), {"train": (folder,)}, "", 0)
    try:
        content = _read_darknet(path) if path.suffix == ".data" else load_yaml(path)
    except (ConfigError, OSError, ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise DataError(f"{path} is not a YOLO data file: {error}") from error
    splits = {}
    for split, key in (("train", "train"), ("val", "validation"), ("val", "valid"), ("val", "val"), ("test", "test")):
        value = content.get(key)
        if value not in (None, "", []):
            splits[split] = _check_paths(value, f"{path}: '{key}'")
    start = content.get("path")
    if not isinstance(start, (str, type(None))) or "\0" in (start or ""):
        raise DataError(f"{path}: 'path' is {start!r:.80}. Expected a folder.")
    return YoloDataFile(
        _parse_names(content, path), splits, start or "", _parse_keypoints(content.get("kpt_shape"), path)
    )


def _read_lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _read_darknet(path: Path) -> dict[str, Any]:
    """Convert lines ``key = value`` to the content of a ``data.yaml``. The list of names may be beside the file."""
    content: dict[str, Any] = {}
    for line in _read_lines(path):
        key, sign, value = (part.strip() for part in line.partition("="))
        if not sign or key in content:
            raise ValueError(f"{line!r:.80} is not 'key = value', or its key is given twice.")
        content[key] = value
    names = Path(content.get("names", "").replace("\\", "/"))
    found = next((p for p in (path.parent / names, path.parent / names.name) if names.name and p.is_file()), None)
    splits = {key: content[key] for key in ("train", "val", "valid", "test") if content.get(key)}
    return {"val": splits.pop("valid", None), **splits, "names": None if found is None else _read_lines(found)}


def _check_paths(value: object, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    paths = tuple(item for item in values if isinstance(item, str) and item and "\0" not in item)
    if len(paths) < len(values):
        raise DataError(f"{where} is {str(value)[:80]}. Expected a folder, a list of folders, or a .txt list.")
    return paths


def _parse_names(content: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Class names in the order of their ids."""
    names, count = content.get("names"), content.get("nc")
    if count is not None and (type(count) is not int or not 0 < count < 1 << 16):
        raise DataError(f"{path}: 'nc' is {str(count)[:40]}. Expected the number of classes.")
    if names is None and count is not None:
        names = [f"class_{i}" for i in range(count)]
    if isinstance(names, dict):
        ids = {int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 9 else key for key in names}
        if not all(type(id) is int for id in ids) or ids != set(range(len(names))):
            raise DataError(
                f"{path}: the ids in 'names' are {str(list(names))[:80]}. Expected 0, 1, 2, ... without gaps."
            )
        names = [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: 'names' is {str(names)[:80]}. Expected the list of class names.")
    names = [str(name) if type(name) is int else name for name in names]
    wrong = next((name for name in names if not isinstance(name, str) or not name), None)
    if wrong is not None or not all(names):
        raise DataError(f"{path}: a class is called {wrong!r:.60} in 'names'. Expected text: put it in quotes.")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"{path}: the class name {twice!r:.60} is given twice in 'names'. Rename one.")
    if count is not None and count != len(names):
        raise DataError(f"{path}: 'nc' is {count}, but 'names' has {len(names)}. Correct one of them.")
    return tuple(names)


def _parse_keypoints(shape: object, path: Path) -> int:
    if shape is None:
        return 0
    if not (
        isinstance(shape, list) and len(shape) == 2 and all(type(side) is int for side in shape)
        and 1 <= shape[0] <= 10_000 and shape[1] in (2, 3)
    ):  # fmt: skip
        raise DataError(f"{path}: 'kpt_shape' is {str(shape)[:40]}. Expected [number of keypoints, 2 or 3].")
    return shape[0] * shape[1]
