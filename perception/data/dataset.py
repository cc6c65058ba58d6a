"""The interface of readers, and sources that join readers of the same images."""

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
    """Reader of one label format for a list of images. Listed in `perception.data.DATASETS`.

    It is built by ``Reader(config, root, classes)``, where ``classes`` is the class list of every task in the recipe
    (empty for a quantity). A reader ignores other tasks. Building it validates the labels; images and maps are read on
    demand.

    Attributes:
        tasks: tasks that it labels.
        class_maps: task -> mapping to the recipe's classes, for tasks with classes.
        images: resolved paths of the images.
        problems: kind of problem -> number of skipped or repaired items.
    """

    tasks: tuple[str, ...]
    class_maps: dict[str, ClassMap]
    images: list[Path]
    problems: Counter[str]

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Return the annotations of ``images[index]`` in its pixels.

        Args:
            index: index in ``images``.
            size: upright (height, width) of the image. Labels of another size raise DataError.

        Returns:
            Task -> annotation, without the tasks that are not labeled there.
        """
        ...

    def camera(self, index: int) -> Camera | None:
        """Return the intrinsics of ``images[index]``; None = unknown."""
        ...


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a source.

    Attributes:
        path: the file.
        reader_indices: index of the image in each reader; None = it is not in the reader.
    """

    path: Path
    reader_indices: tuple[int | None, ...]


class DataSource:
    """Readers joined by the resolved paths of their images. It has the union of the images, sorted by path.

    Attributes:
        name: name of the source.
        weight: how often its images are used in training, relative to the other sources.
        readers: the joined readers.
        root: resolved data root.
        tasks: tasks that any of the readers labels.
        records: the images.
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
                    f"Source '{name}': the segmentation masks of task '{task}' have different classes in two of its "
                    "readers (labels_only, superclasses). Give both the same options, or make two sources."
                )

    @property
    def problems(self) -> Counter[str]:
        """Kind of problem -> number of items that the readers skipped or repaired."""
        return sum((reader.problems for reader in self.readers), Counter())

    @property
    def coverage(self) -> dict[str, float]:
        """Task -> fraction of the images that are in a reader of this task."""
        known = [[at is not None for at in picture.reader_indices] for picture in self.records]
        return {
            task: float(
                np.mean([any(k for k, r in zip(row, self.readers, strict=True) if task in r.tasks) for row in known])
            )
            for task in self.tasks
        }

    def compute_fingerprints(self) -> dict[str, str]:
        """Return hashes that change with the "pictures" (names and sizes of their files), "classes" and "labels".

        See `perception.data.fingerprint`.
        """
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
        """Return the unique name of an image: source name and path relative to the data root (absolute if outside)."""
        path = self.records[index].path
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path.relative_to(path.anchor)
        return f"{self.name}/{inside.as_posix()}"

    def load_sample(self, index: int) -> Sample:
        """Load image ``index`` with its annotations, in its own pixels.

        Raises:
            ImageError: the image is missing or damaged.
            DataError: its labels are wrong.
        """
        picture, sample = self.open_sample(index)
        return dataclasses.replace(sample, image=picture.decode())

    def open_sample(self, index: int) -> tuple[StoredImage, Sample]:
        """Return image ``index``, checked but not decoded, and its sample with image None. Raises as `load_sample`."""
        picture = open_image(self.records[index].path)
        annotations = self.read_annotations(index, picture.size)
        return picture, Sample(None, dict(annotations), self.camera(index), None, self.image_id(index), self.name)

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Return task -> annotation of image ``index`` without reading it; see `DatasetReader.read_annotations`."""
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
        """Return the intrinsics from the first reader that has them, else those of the source."""
        for reader, at in zip(self.readers, self.records[index].reader_indices, strict=True):
            camera = None if at is None else reader.camera(at)
            if camera is not None:
                return camera
        return self._camera


def check_label_size(
    description: str, label_size: tuple[int, int], image_path: Path, image_size: tuple[int, int] | None
) -> None:
    """Raise DataError if labels are for another image size (height, width) than that of the image.

    ``image_size`` None = do not check. ``description`` names the labels in the message.
    """
    if image_size is not None and label_size != image_size:
        turned = (
            " The image may have an EXIF rotation: labels must be in upright pixels."
            if label_size == image_size[::-1]
            else ""
        )
        raise DataError(
            f"{description} is for {label_size[1]} x {label_size[0]} pixels, but {image_path} "
            f"has {image_size[1]} x {image_size[0]}.{turned} "
            "Make the labels for the image as it is."
        )
