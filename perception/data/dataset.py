"""What a reader is, and how readers that label the same pictures make one source."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from perception.data.class_names import ClassMap
from perception.data.fingerprint import Fingerprint, labels_of
from perception.files.images import StoredPicture, open_image
from perception.types import Annotation, Camera, DataError, Sample


class Reader(Protocol):
    """One format of labels over a list of pictures. Listed in ``perception.data.DATASETS``.

    ``Reader(config, root, classes)``: ``classes`` is the class list of every task that the recipe trains (empty for a
    quantity); a reader provides nothing for other tasks. Opening validates; pictures and maps are read when asked for.
    class_maps: task -> the classes of the recipe that it labels, for tasks with classes.
    """

    tasks: tuple[str, ...]
    class_maps: dict[str, ClassMap]
    images: list[Path]
    problems: Counter[str]

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Task -> annotation of ``images[index]`` in its pixels; a task that is not labelled there is absent.

        size: (height, width) of the picture as read, upright; labels that do not fit it raise DataError.
        """
        ...

    def camera(self, index: int) -> Camera | None:
        """Intrinsics of ``images[index]``, None where unknown."""
        ...


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a source: its file, and its index in every reader that knows it (None = does not)."""

    path: Path
    indices: tuple[int | None, ...]


class Source:
    """Readers joined on the same pictures (by resolved path): the union of their pictures, sorted by path.

    camera:   intrinsics of the pictures for which no reader has any
    tasks:    names of the tasks that any of the readers labels
    problems: what opening it skipped or repaired: kind -> count
    """

    def __init__(
        self, name: str, weight: float, readers: Sequence[Reader], root: Path = Path(), camera: Camera | None = None
    ) -> None:
        self.name, self.weight, self.readers = name, weight, tuple(readers)
        self._camera = camera
        self.root = Path(os.path.realpath(root))
        self.tasks = tuple(dict.fromkeys(task for reader in readers for task in reader.tasks))
        positions = [{path: index for index, path in enumerate(reader.images)} for reader in readers]
        paths = sorted(set().union(*positions))
        self.pictures = [Picture(path, tuple(p.get(path) for p in positions)) for path in paths]
        if not self.pictures:
            raise DataError(f"Source '{name}' has no pictures. Correct its paths in the recipe, or data.root.")
        for task in self.tasks:
            if len({maps[task].space for maps in (reader.class_maps for reader in readers) if task in maps}) > 1:
                raise DataError(
                    f"Source '{name}': the label maps of task '{task}' mean different classes in two of its readers "
                    "(labels_only, coarse). Give both the same, or make two sources."
                )

    @property
    def problems(self) -> Counter[str]:
        return sum((reader.problems for reader in self.readers), Counter())

    @property
    def coverage(self) -> dict[str, float]:
        """Task -> part of the pictures that a reader of this task knows."""
        known = [[at is not None for at in picture.indices] for picture in self.pictures]
        return {
            task: float(
                np.mean([any(k for k, r in zip(row, self.readers, strict=True) if task in r.tasks) for row in known])
            )
            for task in self.tasks
        }

    def fingerprint(self) -> dict[str, str]:
        """What it is made of -> a sum that changes with it: "pictures" (names and sizes of their files), "classes",
        "labels" (see `perception.data.fingerprint`)."""
        pictures = Fingerprint(self.root)
        for index, picture in enumerate(self.pictures):
            size = picture.path.stat().st_size if picture.path.is_file() else -1
            pictures.add((self.id(index), size, picture.indices))
        classes = Fingerprint(self.root)
        for reader in self.readers:
            classes.add((reader.tasks, reader.class_maps))
        labels = Fingerprint(self.root, {picture.path for picture in self.pictures})
        for reader in self.readers:
            labels.add(labels_of(reader))
        return {
            "pictures": pictures.hexdigest(),
            "classes": classes.hexdigest(),
            "labels": labels.hexdigest(),
        }

    def __len__(self) -> int:
        return len(self.pictures)

    def id(self, index: int) -> str:
        """Unique name of a picture: the source's name and the path from the data root (whole where outside)."""
        path = self.pictures[index].path
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path.relative_to(path.anchor)
        return f"{self.name}/{inside.as_posix()}"

    def sample(self, index: int) -> Sample:
        """Picture ``index`` with whatever is labelled, in its own pixels.

        Raises PictureError where the picture is missing or damaged, DataError where its labels are wrong.
        """
        picture, sample = self.open(index)
        return dataclasses.replace(sample, image=picture.decode())

    def open(self, index: int) -> tuple[StoredPicture, Sample]:
        """Picture ``index``, checked but not decoded yet, and its sample, whose image is None. Raises as `sample`."""
        picture = open_image(self.pictures[index].path)
        annotations = self.annotations(index, picture.size)
        return picture, Sample(None, dict(annotations), self.camera(index), None, self.id(index), self.name)

    def annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Task -> annotation of picture ``index``, without reading the picture. ``size`` as in `Reader.annotations`."""
        united: dict[str, Annotation] = {}
        for reader, at in zip(self.readers, self.pictures[index].indices, strict=True):
            for task, annotation in ({} if at is None else reader.annotations(at, size)).items():
                if task in united:
                    raise DataError(
                        f"Source '{self.name}': two of its readers label task '{task}' of {self.pictures[index].path}. "
                        "Keep one of them for this picture, or make two sources."
                    )
                united[task] = annotation
        return united

    def camera(self, index: int) -> Camera | None:
        """The intrinsics that the first reader gives that has any, else the source's."""
        for reader, at in zip(self.readers, self.pictures[index].indices, strict=True):
            camera = None if at is None else reader.camera(at)
            if camera is not None:
                return camera
        return self._camera


def check_size(labels: str, found: tuple[int, int], picture: Path, size: tuple[int, int] | None) -> None:
    """Raise DataError where labels were made for a picture of another size (height, width) than it has."""
    if size is not None and found != size:
        turned = (
            " The picture may carry an EXIF rotation: labels must be in upright pixels." if found == size[::-1] else ""
        )
        raise DataError(
            f"{labels} is for {found[1]} x {found[0]} pixels, but {picture} has {size[1]} x {size[0]}.{turned} "
            "Make the labels for the picture as it is."
        )
