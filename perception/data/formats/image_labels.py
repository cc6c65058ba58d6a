"""Reader for labels of whole images: one folder per class, a CSV file, or patterns for file names."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Literal

import numpy as np

from perception.config import config_dataclass
from perception.data.class_names import ClassNames, map_classes
from perception.files.folders import find_present_files, list_images, require_file, require_folder
from perception.files.image_finder import ImageFinder, ImageNaming
from perception.files.strict_json import detect_encoding, quote_value
from perception.types import Camera, ConfigError, DataError, ImageLabel

MAX_LINE_LENGTH = 1_000_000
"""Largest number of characters in a line of a CSV file."""

_CELL_VALUES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False, "": False}
"""Cell text in a class column -> whether the class is present. An empty cell means: not labeled."""

ClassFlags = dict[str, bool]
"""Class name in the source -> whether it is present. A class without an entry is not labeled for this image."""


@config_dataclass
class ImageLabelsConfig:
    """Configuration of the reader for image labels.

    The labels come from ``patterns`` or ``csv``. If neither is given, the folder is the class: ``images/<class>/...``.

    Attributes:
        images: folder of images, relative to the data root.
        format: name of this reader.
        task: classification task of the recipe.
        csv: file with a header. Columns: file (or filename) and label ("a;b" = several classes), or file and one
            column per class (1, 0, empty = not labeled).
        patterns: glob for the path under ``images`` -> class ("a;b" = several classes). The first match is used.
        multi_label: whether an image can have several classes. All classes that occur in the source count as labeled;
            in a CSV with one column per class, the labeled classes are given for each image.
        rename: class mapping to the recipe, as in the other readers.
        ignore: classes that give no label.
        labels_only: classes of the recipe that this source labels.
        match_by: "path" or "base": how image names in the CSV are matched to files, as in `CocoConfig`.
        max_missing: largest fraction of the listed images that may be missing.
    """

    images: str
    format: Literal["image_labels"] = "image_labels"
    task: str = "classification"
    csv: str | None = None
    patterns: dict[str, str] | None = None
    multi_label: bool = False
    rename: dict[str, str] | None = None
    ignore: ClassNames = ()
    labels_only: tuple[str, ...] | None = None
    match_by: ImageNaming = "path"
    max_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        return (self.task,)

    def __post_init__(self) -> None:
        if self.csv is not None and self.patterns is not None:
            raise ConfigError("image_labels: csv and patterns are both given. Keep one of them.")


class ImageLabelsReader:
    """Reader of images that have a classification label."""

    Config = ImageLabelsConfig

    def __init__(self, config: ImageLabelsConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        folder = require_folder(root, config.images, "images")
        if config.csv is not None:
            path = require_file(root, config.csv, "image labels")
            finder = ImageFinder(folder, root, config.match_by)
            self.where, (names, statements) = str(path), self._read_csv(path, finder)
        elif config.patterns is not None:
            self.where, pictures = str(folder), list_images(folder, root=root)
            names, statements = self._match_patterns(pictures, folder, config.patterns)
        else:
            self.where, (names, statements) = str(folder), _label_by_folder(list_images(folder, root=root), folder)
        recipe = classes[config.task]
        self.class_map = map_classes(
            sorted(names), recipe, self.where, config.rename, config.ignore, labels_only=config.labels_only
        )
        self.class_maps = {config.task: self.class_map}
        labels = {
            path: self._build_label(path, statement, len(recipe)) for path, statement in sorted(statements.items())
        }
        self._labels = {path: label for path, label in labels.items() if label is not None}
        self.images = list(self._labels)

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, ImageLabel]:
        """Return the image label: float32 [C], 1 if the class is present."""
        return {self.config.task: self._labels[self.images[index]]}

    def camera(self, index: int) -> Camera | None:
        """Return None: the source has no intrinsics."""
        return None

    def _build_label(self, path: Path, class_flags: ClassFlags, num_classes: int) -> ImageLabel | None:
        values = np.zeros(num_classes, np.float32)
        stated = np.zeros(num_classes, bool)
        for name, holds in class_flags.items():
            if self.class_map.is_labeled(name):
                index = self.class_map.indices[name]
                stated[index] = True
                values[index] = max(values[index], float(holds))
        if not self.config.multi_label:
            if values.sum() > 1:
                raise DataError(
                    f"{self.where}: {path.name} has several classes. Expected one; or set multi_label: true."
                )
            return ImageLabel(values) if values.any() else None
        if self._has_negatives:
            classes = stated
        else:
            classes = (
                np.ones(num_classes, bool) if self.class_map.labeled_classes is None else self.class_map.labeled_classes
            )
        if not classes.any():
            return None
        return ImageLabel(values, None if classes.all() else classes)

    _has_negatives = False

    def _read_csv(self, path: Path, finder: ImageFinder) -> tuple[set[str], dict[Path, ClassFlags]]:
        statements: dict[Path, ClassFlags] = {}
        with path.open("rb") as head:
            encoding = detect_encoding(head.read(2))
        with path.open(encoding=encoding, newline="") as file:
            rows = csv.DictReader(_read_lines(file, path), strict=True)
            try:
                columns = [name.strip() for name in rows.fieldnames or []]
                if "file" not in columns:  # Roboflow's _classes.csv
                    columns = ["file" if name == "filename" else name for name in columns]
                rows.fieldnames = columns
                self._has_negatives = "label" not in columns
                self._check_columns(path, columns)
                for row in rows:
                    where = f"{path}, line {rows.line_num}"
                    if None in row or None in row.values():
                        raise DataError(
                            f"{where}: the row does not have {len(columns)} values. Expected {quote_value(columns)}."
                        )
                    picture = finder.find(row.pop("file"), where)
                    if picture in statements:
                        raise DataError(f"{where}: {picture.name} occurs twice. Keep one row.")
                    statements[picture] = self._parse_row(row, where)
            except (UnicodeDecodeError, csv.Error, OSError) as error:
                raise DataError(
                    f"{path} is not a valid CSV file in UTF-8, line {rows.line_num + 1}: {error}. "
                    "Save it as CSV, UTF-8."
                ) from error
        allowed = self.config.max_missing
        found = find_present_files(list(statements), finder.folder, str(path), allowed, self.problems, finder.hint)
        names = set(columns) - {"file"} if self._has_negatives else set().union(*statements.values())
        kept = {p: s for (p, s), there in zip(statements.items(), found, strict=True) if there}
        return names, kept if self.config.multi_label else {p: s for p, s in kept.items() if s}

    def _match_patterns(
        self, image_paths: Mapping[Path, str], folder: Path, patterns: Mapping[str, str]
    ) -> tuple[set[str], dict[Path, ClassFlags]]:
        statements, used = {}, set()
        for path, name in image_paths.items():
            pattern = next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
            if pattern is not None:
                statements[path] = _parse_classes(patterns[pattern])
                used.add(pattern)
        if not used:
            raise DataError(
                f"None of the patterns {list(patterns)} matches an image under {folder}. Expected globs for the path "
                "relative to this folder."
            )
        if len(used) < len(patterns):
            self.problems["patterns that fit no image"] += len(patterns) - len(used)
        return set().union(*map(_parse_classes, patterns.values())), statements

    def _check_columns(self, path: Path, columns: list[str]) -> None:
        if "file" not in columns or len(columns) < 2 or len(set(columns)) < len(columns):
            raise DataError(
                f"{path}: the columns are {quote_value(columns)}. Expected 'file' and 'label', or 'file' "
                "and one column per class."
            )
        if "label" in columns and len(columns) > 2:
            raise DataError(
                f"{path}: the columns are {quote_value(columns)}. Expected 'label' or one column per class, not both."
            )

    def _parse_row(self, row: dict[str, str], where: str) -> ClassFlags:
        if not self._has_negatives:
            return _parse_classes(row["label"])
        statement = {}
        for name, text in row.items():
            cell = text.strip().lower()
            if cell not in _CELL_VALUES:
                raise DataError(
                    f"{where}: {quote_value(name)[1:-1]} is {quote_value(text)}. Expected 1, 0, or empty (not labeled)."
                )
            if cell:
                statement[name] = _CELL_VALUES[cell]
        return statement


def _read_lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines of a text file, none longer than `MAX_LINE_LENGTH`."""
    while line := file.readline(MAX_LINE_LENGTH + 1):
        if len(line) > MAX_LINE_LENGTH or "\0" in line:
            raise DataError(
                f"{path} contains a NUL or a line of more than {MAX_LINE_LENGTH} characters. Expected a CSV file. "
                "Download it again."
            )
        yield line


def _parse_classes(text: str) -> ClassFlags:
    return {name.strip(): True for name in text.split(";") if name.strip()}


def _label_by_folder(image_paths: Mapping[Path, str], folder: Path) -> tuple[set[str], dict[Path, ClassFlags]]:
    loose = [path for path, name in image_paths.items() if "/" not in name]
    if loose:
        raise DataError(
            f"{loose[0]} is not in a class folder. Expected {folder}/<class>/{loose[0].name}, or set csv or patterns."
        )
    statements = {path: {name.partition("/")[0]: True} for path, name in image_paths.items()}
    return set().union(*statements.values()), statements
