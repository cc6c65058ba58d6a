"""Lists of a Pascal VOC data set: class names, and the images of a split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from perception.files.folders import require_file, resolve_inside
from perception.files.images import IMAGE_SUFFIXES
from perception.files.strict_json import quote_value
from perception.files.text_files import MAX_LIST_BYTES, read_text
from perception.types import DataError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""VOC's class names. In its segmentation masks they have ids 1 to 20; ``background`` has id 0."""


def read_class_names(given: str | Sequence[str] | None, root: Path) -> tuple[str, ...]:
    """Read class names from a list, or from a text file under ``root``, one per line; None = VOC. Raises DataError."""
    if given is None:
        return CLASSES
    where, names = "voc: classes", tuple(given)
    if isinstance(given, str):
        path = require_file(root, given, "class names")
        where, names = str(path), tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if len(set(names)) < len(names) or not 0 < len(names) < 254 or "background" in names:
        raise DataError(
            f"{where}: {len(names)} names, {len(set(names))} different. Expected 1 to 253, each once, without "
            "'background', which always has id 0."
        )
    return names


def strip_image_suffix(name: str) -> str:
    """Remove an image extension, which some lists contain, from a name."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def read_image_list(path: Path) -> list[str]:
    """Read the names in a list of ``ImageSets``, each once. Raises DataError if a line is invalid."""
    names: dict[str, None] = {}
    for number, line in enumerate(read_text(path, MAX_LIST_BYTES).splitlines(), 1):
        where, name = f"{path}, line {number}", line.strip()
        if name[1:] and name[0] == name[-1] == '"':  # Datumaro and CVAT quote names with spaces
            name = name[1:-1]
        elif len(words := name.split()) > 1 and words[-1] in ("-1", "0", "1"):
            raise DataError(
                f"{where} is {quote_value(name)}. Expected one name, without extension. The lists of one class "
                "(<class>_<split>.txt) are not supported: use the list of the split."
            )
        if name:
            resolve_inside(path.parent.resolve(), name, where)
            names[name] = None
    if not names:
        raise DataError(f"{path} is empty. Expected one name per line.")
    return list(names)
