"""Readers for the class lists and color lists of annotation tools and data sets."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perception.files.strict_json import quote_value, read_json
from perception.files.text_files import read_text
from perception.types import DataError

Color = tuple[int, int, int]

_HEX = re.compile(r"#?([0-9a-fA-F]{6})(?:[0-9a-fA-F]{2})?")
_MAX_LINE_LENGTH = 300
_EXPECTED_FORMS = (
    "Expected 'R G B name' or 'name, R, G, B' on every line, CVAT's labelmap.txt, or a JSON file of name: [R, G, B] or "
    "of classes with a title and a color."
)


def parse_color(value: object) -> Color | None:
    """Parse [R, G, B], [R, G, B, A], "#RRGGBB" or "R,G,B" to (R, G, B); None if it has another form."""
    if isinstance(value, str):
        if found := _HEX.fullmatch(value.strip()):
            return tuple(bytes.fromhex(found[1]))  # type: ignore[return-value]
        value = [int(word) for word in re.split(r"[,\s]+", value.strip()) if word.isdecimal() and len(word) < 4]
    if not isinstance(value, (list, tuple)) or len(value) not in (3, 4):
        return None
    if not all(type(part) is int and 0 <= part <= 255 for part in value):
        return None
    return value[0], value[1], value[2]


def voc_color(index: int) -> Color:
    """Return the color of an id in Pascal VOC's palette, which LabelMe and other tools also use."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> channel & 1) << (7 - bit)
        index >>= 3
    return channels[0], channels[1], channels[2]


def read_color_list(path: Path) -> dict[str, list[Color]]:
    """Read class name -> its colors, in the order of the file. Raises DataError if the file is not a color list."""
    if path.suffix.lower() == ".json":
        pairs = _parse_json(read_json(path), path)
    else:
        pairs = _parse_lines(path)
    found: dict[str, list[Color]] = {}
    for name, color in pairs:
        found.setdefault(name, []).append(color)
    if not found:
        raise DataError(f"{path} contains no colors. {_EXPECTED_FORMS}")
    return found


def _parse_lines(path: Path) -> Iterable[tuple[str, Color]]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        text = line.strip()
        if not text or (text.startswith(("#", "//")) and not _HEX.match(text)):
            continue
        if len(text) > _MAX_LINE_LENGTH:
            raise DataError(f"{path}, line {number} has {len(text)} characters. {_EXPECTED_FORMS}")
        if found := re.fullmatch(r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(.+)", text):
            name, color = found[4], parse_color([int(found[k]) for k in (1, 2, 3)])
        elif found := re.fullmatch(r"(.+?)[\s,;:]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})\s*(?::.*)?", text):
            name, color = found[1], parse_color([int(found[k]) for k in (2, 3, 4)])
        elif found := re.fullmatch(r"(.+?)[\s,;:]+(#[0-9a-fA-F]{6})", text):
            name, color = found[1], parse_color(found[2])
        elif number == 1:  # column titles
            continue
        else:
            name, color = "", None
        if color is None:
            raise DataError(
                f"{path}, line {number}: {quote_value(text, 60)} is not a class with a color. {_EXPECTED_FORMS}"
            )
        yield name.strip().strip("\"'"), color


def _parse_json(content: object, path: Path) -> Iterable[tuple[str, Color]]:
    """Supervisely's obj_class_to_machine_color.json and meta.json, Mapillary's config.json, CVAT's labels."""
    if isinstance(content, dict) and isinstance(listed := content.get("classes", content.get("labels")), list):
        content = listed
    rows: Iterable[tuple[Any, Any]]
    if isinstance(content, dict):
        rows = content.items()
    elif isinstance(content, list):
        rows = [(_label_name(row), row.get("color", row.get("colour"))) for row in content if isinstance(row, dict)]
    else:
        rows = ()
    for name, given in rows:
        color = parse_color(given)
        if not isinstance(name, str) or not name or color is None:
            raise DataError(
                f"{path}: {quote_value(name, 60)} has the color {quote_value(given, 60)}. {_EXPECTED_FORMS}"
            )
        yield name, color


def _label_name(row: Mapping[str, Any]) -> Any:
    return next((row[key] for key in ("title", "readable", "name") if key in row), None)


def read_class_list(path: Path) -> dict[int, str]:
    """Read id -> class name. Raises DataError if a name is missing or duplicated.

    The file is a text file with one name per line (ids from 0), a CSV of "id, name", or a JSON list of labels.
    """
    if path.suffix.lower() == ".json":
        content = read_json(path)
        listed = content.get("labels", content.get("classes")) if isinstance(content, dict) else content
        if not isinstance(listed, list):
            raise DataError(f"{path} has no list of labels. Expected a list, or a text file with one name per line.")
        names = [_label_name(row) if isinstance(row, dict) else row for row in listed]
        ids = dict(enumerate(names))
    elif path.suffix.lower() == ".csv":
        ids = _parse_csv(path)
    else:
        ids = dict(enumerate(line.strip() for line in read_text(path).rstrip().splitlines()))
        if "" in ids.values():
            line = list(ids.values()).index("") + 1
            raise DataError(
                f"{path}, line {line} is empty. Expected a class name on every line, because the line number is the id."
            )
    wrong = next((name for name in ids.values() if not isinstance(name, str) or not name), None)
    if wrong is not None:
        raise DataError(f"{path}: a class name is {quote_value(wrong)}. Expected text that is not empty.")
    if len(set(ids.values())) < len(ids) or not ids:
        raise DataError(f"{path}: {len(ids)} names, {len(set(ids.values()))} different. Expected each name once.")
    return ids


def _parse_csv(path: Path) -> dict[int, str]:
    """Read rows of an id and a name, such as Roboflow's _classes.csv. A first row of titles is skipped."""
    ids: dict[int, str] = {}
    lines: Sequence[str] = read_text(path).splitlines()
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, strict=True)]
    except csv.Error as error:
        raise DataError(f"{path} is not a valid CSV file: {error}. Expected 'id, name' on every line.") from error
    for number, row in enumerate(rows, 1):
        if not any(row) or (number == 1 and not row[0].isdecimal()):
            continue
        if len(row) < 2 or not row[0].isdecimal() or len(row[0]) > 5 or int(row[0]) in ids:
            raise DataError(
                f"{path}, line {number}: {quote_value(','.join(row), 60)}. Expected 'id, name', each id once."
            )
        ids[int(row[0])] = row[1]
    return ids
