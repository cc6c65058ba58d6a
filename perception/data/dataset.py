"""What a reader is, and how readers that label the same images make one source."""

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
from perception.data.fingerprint import Fingerprint, collect_labels
from perception.files.images import StoredImage, open_image
from perception.types import Annotation, Camera, DataError, Sample


class DatasetReader(Protocol):
    """One format of labels over a list of images. Listed in ``perception.data.DATASETS``.

    ``Reader(config, root, classes)``: ``classes`` is the class list of every task that the recipe trains (empty for a
    quantity); a reader provides nothing for other tasks. Opening validates; images and maps are read when asked for.
    class_maps: task -> the classes of the recipe that it labels, for tasks with classes.
    """

    tasks: tuple[str, ...]
    class_maps: dict[str, ClassMap]
    images: list[Path]
    problems: Counter[str]

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Task -> annotation of ``images[index]`` in its pixels; a task that is not labeled there is absent.

        size: (height, width) of the image as read, upright; labels that do not fit it raise DataError.
        """
        ...

    def camera(self, index: int) -> Camera | None:
        """Intrinsics of ``images[index]``, None where unknown."""
        ...


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a source: its file, and its index in every reader that knows it (None = does not)."""

    path: Path
    reader_indices: tuple[int | None, ...]


class DataSource:
    """Readers joined on the same images (by resolved path): the union of their images, sorted by path.

    camera:   intrinsics of the images for which no reader has any
    tasks:    names of the tasks that any of the readers labels
    problems: what opening it skipped or repaired: kind -> count
    """

    def __init__(
        self,
        name: str,
        weight: float,
        readers: Sequence[DatasetReader],
        root: Path = Path(),
        camera: Camera | None = None,
    ) -> None:
        self.name, self.weight, self.readers = name, weight, tuple(readers)
        self._camera = camera
        self.root = Path(os.path.realpath(root))
        self.tasks = tuple(dict.fromkeys(task for reader in readers for task in reader.tasks))
        positions = [{path: index for index, path in enumerate(reader.images)} for reader in readers]
        paths = sorted(set().union(*positions))
        self.records = [ImageRecord(path, tuple(p.get(path) for p in positions)) for path in paths]
        if not self.records:
            raise DataError(f"Source '{name}' has no images. Correct its paths in the recipe, or data.root.")
        for task in self.tasks:
            if len({maps[task].label_space for maps in (reader.class_maps for reader in readers) if task in maps}) > 1:
                raise DataError(
                    f"Source '{name}': the segmentation masks of task '{task}' mean "
                    "different classes in two of its readers "
                    "(labels_only, coarse). Give both the same, or make two sources."
                )

    @property
    def problems(self) -> Counter[str]:
        return sum((reader.problems for reader in self.readers), Counter())

    @property
    def coverage(self) -> dict[str, float]:
        """Task -> part of the images that a reader of this task knows."""
        known = [[at is not None for at in picture.reader_indices] for picture in self.records]
        return {
            task: float(
                np.mean([any(k for k, r in zip(row, self.readers, strict=True) if task in r.tasks) for row in known])
            )
            for task in self.tasks
        }

    def compute_fingerprints(self) -> dict[str, str]:
        """What it is made of -> a sum that changes with it: "images" (names and sizes of their files), "classes",
        "labels" (see `perception.data.fingerprint`)."""
        pictures = Fingerprint(self.root)
        for index, picture in enumerate(self.records):
            size = picture.path.stat().st_size if picture.path.is_file() else -1
            pictures.add((self.image_id(index), size, picture.reader_indices))
        classes = Fingerprint(self.root)
        for reader in self.readers:
            classes.add((reader.tasks, reader.class_maps))
        labels = Fingerprint(self.root, {picture.path for picture in self.records})
        for reader in self.readers:
            labels.add(collect_labels(reader))
        return {
            "images": pictures.hexdigest(),
            "classes": classes.hexdigest(),
            "labels": labels.hexdigest(),
        }

    def __len__(self) -> int:
        return len(self.records)

    def image_id(self, index: int) -> str:
        """Unique name of an image: the source's name and the path from the data root (whole where outside)."""
        path = self.records[index].path
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path.relative_to(path.anchor)
        return f"{self.name}/{inside.as_posix()}"

    def load_sample(self, index: int) -> Sample:
        """Image ``index`` with whatever is labeled, in its own pixels.

        Raises PictureError where the image is missing or damaged, DataError where its labels are wrong.
        """
        picture, sample = self.open_sample(index)
        return dataclasses.replace(sample, image=picture.decode())

    def open_sample(self, index: int) -> tuple[StoredImage, Sample]:
        """Image ``index``, checked but not decoded yet, and its sample, whose image is None. Raises as `sample`."""
        picture = open_image(self.records[index].path)
        annotations = self.read_annotations(index, picture.size)
        return picture, Sample(None, dict(annotations), self.camera(index), None, self.image_id(index), self.name)

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Task -> annotation of image ``index``, without reading the image. ``size`` as in
        `Reader.read_annotations`."""
        united: dict[str, Annotation] = {}
        for reader, at in zip(self.readers, self.records[index].reader_indices, strict=True):
            for task, annotation in ({} if at is None else reader.read_annotations(at, size)).items():
                if task in united:
                    raise DataError(
                        f"Source '{self.name}': two of its readers label task '{task}' of {self.records[index].path}. "
                        "Keep one of them for this image, or make two sources."
                    )
                united[task] = annotation
        return united

    def camera(self, index: int) -> Camera | None:
        """The intrinsics that the first reader gives that has any, else the source's."""
        for reader, at in zip(self.readers, self.records[index].reader_indices, strict=True):
            camera = None if at is None else reader.camera(at)
            if camera is not None:
                return camera
        return self._camera


def check_label_size(
    description: str, label_size: tuple[int, int], image_path: Path, image_size: tuple[int, int] | None
) -> None:
    """Raise DataError where labels were made for an image of another size (height, width) than it has."""
    if image_size is not None and label_size != image_size:
        turned = (
            " The image may carry an EXIF rotation: labels must be in upright pixels."
            if label_size == image_size[::-1]
            else ""
        )
        raise DataError(
            f"{description} is for {label_size[1]} x {label_size[0]} pixels, but {image_path} "
            f"has {image_size[1]} x {image_size[0]}.{turned} "
            "Make the labels for the image as it is."
        )
