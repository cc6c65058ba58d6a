"""Labels of whole pictures: a folder per class, a CSV, or patterns on file names."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Literal

import numpy as np

from perception.config import configuration
from perception.data.class_names import Names, map_classes
from perception.files.folders import existing_file, existing_folder, list_pictures, present
from perception.files.image_names import NamesBy, PictureNames
from perception.files.strict_json import encoding_of, shown
from perception.types import Camera, ConfigError, DataError, ImageLabel

MAX_LINE = 1_000_000
"""Letters in a line of a CSV."""

_CELLS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False, "": False}
"""What a cell of a class's column says; an empty one nothing."""

Statement = dict[str, bool]
"""Class name in the source -> whether it holds; a class that is absent is not labelled for this picture."""


@configuration
class ImageLabelsConfig:
    """images: folder of pictures, relative to the data root. The labels come from one of

    patterns: glob on the path under ``images`` -> class ("a;b" = several); the first that matches counts
    csv:      file with a header; columns file (or filename) and label ("a;b" = several), or file and one column per
              class (1, 0, empty = not labelled)
    neither:  ``images/<class>/...``

    multi_label: several classes may hold at once. Those that the source names anywhere count as labelled; in a CSV
        with a column per class, each picture says which
    rename, ignore, labels_only: as in the other readers; an ignored class says nothing of the picture
    names: "path" or "base", how the CSV names the pictures: as in `CocoConfig`
    allow_missing: largest fraction of the listed pictures that may be missing
    """

    images: str
    format: Literal["image_labels"] = "image_labels"
    task: str = "classification"
    csv: str | None = None
    patterns: dict[str, str] | None = None
    multi_label: bool = False
    rename: dict[str, str] | None = None
    ignore: Names = ()
    labels_only: tuple[str, ...] | None = None
    names: NamesBy = "path"
    allow_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that it may label."""
        return (self.task,)

    def __post_init__(self) -> None:
        if self.csv is not None and self.patterns is not None:
            raise ConfigError("image_labels: csv and patterns are both given. Keep one of them.")


class ImageLabelsReader:
    """Pictures that carry a label."""

    Config = ImageLabelsConfig

    def __init__(self, config: ImageLabelsConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.tasks = config.tasks
        self.problems: Counter[str] = Counter()
        folder = existing_folder(root, config.images, "pictures")
        if config.csv is not None:
            path = existing_file(root, config.csv, "image labels")
            finder = PictureNames(folder, root, config.names)
            self.where, (names, statements) = str(path), self._from_csv(path, finder)
        elif config.patterns is not None:
            self.where, pictures = str(folder), list_pictures(folder, root=root)
            names, statements = self._from_patterns(pictures, folder, config.patterns)
        else:
            self.where, (names, statements) = str(folder), _from_folders(list_pictures(folder, root=root), folder)
        recipe = classes[config.task]
        self.class_map = map_classes(
            sorted(names), recipe, self.where, config.rename, config.ignore, labels_only=config.labels_only
        )
        self.class_maps = {config.task: self.class_map}
        labels = {path: self._label(path, statement, len(recipe)) for path, statement in sorted(statements.items())}
        self._labels = {path: label for path, label in labels.items() if label is not None}
        self.images = list(self._labels)

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, ImageLabel]:
        """values float32 [C], 1 where the class holds."""
        return {self.config.task: self._labels[self.images[index]]}

    def camera(self, index: int) -> Camera | None:
        return None

    def _label(self, path: Path, statement: Statement, count: int) -> ImageLabel | None:
        values = np.zeros(count, np.float32)
        stated = np.zeros(count, bool)
        for name, holds in statement.items():
            if self.class_map.labels(name):
                index = self.class_map.index[name]
                stated[index] = True
                values[index] = max(values[index], float(holds))
        if not self.config.multi_label:
            if values.sum() > 1:
                raise DataError(
                    f"{self.where}: {path.name} has several classes. Expected one; or set multi_label: true."
                )
            return ImageLabel(values) if values.any() else None
        if self._states_absence:
            classes = stated
        else:
            classes = np.ones(count, bool) if self.class_map.classes is None else self.class_map.classes
        if not classes.any():
            return None
        return ImageLabel(values, None if classes.all() else classes)

    _states_absence = False

    def _from_csv(self, path: Path, finder: PictureNames) -> tuple[set[str], dict[Path, Statement]]:
        statements: dict[Path, Statement] = {}
        with path.open("rb") as head:
            encoding = encoding_of(head.read(2))
        with path.open(encoding=encoding, newline="") as file:
            rows = csv.DictReader(_lines(file, path), strict=True)
            try:
                columns = [name.strip() for name in rows.fieldnames or []]
                if "file" not in columns:  # Roboflow's _classes.csv
                    columns = ["file" if name == "filename" else name for name in columns]
                rows.fieldnames = columns
                self._states_absence = "label" not in columns
                self._check_columns(path, columns)
                for row in rows:
                    where = f"{path}, line {rows.line_num}"
                    if None in row or None in row.values():
                        raise DataError(f"{where}: not {len(columns)} values. Expected {shown(columns)}.")
                    picture = finder.find(row.pop("file"), where)
                    if picture in statements:
                        raise DataError(f"{where}: {picture.name} is given twice. Keep one row.")
                    statements[picture] = self._row(row, where)
            except (UnicodeDecodeError, csv.Error, OSError) as error:
                raise DataError(
                    f"{path} is no valid CSV in UTF-8, line {rows.line_num + 1}: {error}. Save it as CSV, UTF-8."
                ) from error
        allowed = self.config.allow_missing
        found = present(list(statements), finder.folder, str(path), allowed, self.problems, finder.mend)
        names = set(columns) - {"file"} if self._states_absence else set().union(*statements.values())
        kept = {p: s for (p, s), there in zip(statements.items(), found, strict=True) if there}
        return names, kept if self.config.multi_label else {p: s for p, s in kept.items() if s}

    def _from_patterns(
        self, pictures: Mapping[Path, str], folder: Path, patterns: Mapping[str, str]
    ) -> tuple[set[str], dict[Path, Statement]]:
        statements, used = {}, set()
        for path, name in pictures.items():
            pattern = next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
            if pattern is not None:
                statements[path] = _split(patterns[pattern])
                used.add(pattern)
        if not used:
            raise DataError(
                f"None of the patterns {list(patterns)} fits a picture under {folder}. They match the path under it."
            )
        if len(used) < len(patterns):
            self.problems["patterns that fit no picture"] += len(patterns) - len(used)
        return set().union(*map(_split, patterns.values())), statements

    def _check_columns(self, path: Path, columns: list[str]) -> None:
        if "file" not in columns or len(columns) < 2 or len(set(columns)) < len(columns):
            raise DataError(
                f"{path}: the columns are {shown(columns)}. Expected 'file' and 'label', or 'file' and one per class."
            )
        if "label" in columns and len(columns) > 2:
            raise DataError(
                f"{path}: the columns are {shown(columns)}. Expected 'label' or one column per class, not both."
            )

    def _row(self, row: dict[str, str], where: str) -> Statement:
        if not self._states_absence:
            return _split(row["label"])
        statement = {}
        for name, text in row.items():
            cell = text.strip().lower()
            if cell not in _CELLS:
                raise DataError(
                    f"{where}: {shown(name)[1:-1]} is {shown(text)}. Expected 1, 0, or empty (not labelled)."
                )
            if cell:
                statement[name] = _CELLS[cell]
        return statement


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines of a text file, none longer than `MAX_LINE`."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE or "\0" in line:
            raise DataError(f"{path} holds a NUL or a line of over {MAX_LINE} letters. Expected a CSV: fetch it again.")
        yield line


def _split(text: str) -> Statement:
    return {name.strip(): True for name in text.split(";") if name.strip()}


def _from_folders(pictures: Mapping[Path, str], folder: Path) -> tuple[set[str], dict[Path, Statement]]:
    loose = [path for path, name in pictures.items() if "/" not in name]
    if loose:
        raise DataError(
            f"{loose[0]} lies in no folder of a class. Expected {folder}/<class>/{loose[0].name}, or csv or patterns."
        )
    statements = {path: {name.partition("/")[0]: True} for path, name in pictures.items()}
    return set().union(*statements.values()), statements
