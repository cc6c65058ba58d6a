"""`perception label`: labels for pictures that lack them, by a network that was trained on others.

Where a source has no labels of a task, nothing keeps a joint network from saying anything there. Labels by a network
that was trained for that task do (self-training, Noisy Student: Xie et al. 2020; across tasks, MuST: Ghiasi et al.
2021). They are files like any others: to be looked at, mended, or thrown away. numpy and OpenCV, no torch.
"""

from __future__ import annotations

import csv
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from perception.data.files.folders import by_stem, existing_folder, list_pictures
from perception.data.files.images import read_image
from perception.deploy.agreement import agreed, mirrored
from perception.deploy.predict import out_folder
from perception.deploy.runtime import perceive
from perception.deploy.video.interrupt import Stopped, terminable
from perception.deploy.video.pipeline import Network
from perception.deploy.video.progress import Progress
from perception.deploy.video.writers import save, step, stored
from perception.types import Annotation, Camera, DataError, DenseMap, ImageLabel, Instances, PerceptionError, TaskSpec

SIZES = (1.0, 0.75, 1.25)
"""Sizes at which a network sees each picture, as factors of its own."""

MULTIPLE = 32

PATHS = ("masks", "classes", "depths", "annotations", "csv")
"""Keys of the entries that name files."""


@dataclass
class Labels:
    """What was written.

    failures: the pictures that could not be read, and why
    entries: task -> what the recipe's source says of its labels; without the tasks of which nothing was sure
    kept: task -> how much all views agreed on
    interrupted: number of the signal that stopped it; None = it went to its end
    """

    out: Path
    pictures: int = 0
    failures: list[str] = field(default_factory=list)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    interrupted: int | None = None

    def lines(self) -> list[str]:
        """For the user: what there is, and what to write into the recipe."""
        stopped = " (stopped; what is written is whole)" if self.interrupted is not None else ""
        said = [f"{self.out}: labels of {self.pictures} pictures{stopped}"]
        said += [f"  not labelled: {failure}" for failure in self.failures]
        said += [f"  {task}: {kept}" for task, kept in self.kept.items()]
        said.append(f"{self.out / 'labels.yaml'} holds what the recipe's source needs under labels:")
        flow = (
            yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=1000)
            for entry in self.entries.values()
        )
        return [*said, *(f"  - {line.strip()}" for line in flow)]


def label(
    network: Network,
    pictures: str | Path,
    out: str | Path,
    camera: Camera | None = None,
    *,
    mirror: bool = True,
    root: str | Path = ".",
    quiet: bool = False,
) -> Labels:
    """Label the pictures of a folder (and its folders) with what the network is sure of; see `agreed`.

    out:    a new or empty folder. For each task: label maps (PNG, 255 = unsure) and their names, depth maps (16-bit
            PNG, 0 = unsure), boxes (COCO JSON, iscrowd = 1 where unsure) or labels of whole pictures (CSV)
    camera: intrinsics in pixels of every picture; None = the default focal length of the depth task
    mirror: whether the mirror image must lead to the same: not where left and right are not alike to the network
    root:   the recipe's data.root, to which the paths in the entries are relative
    quiet:  no progress on standard error

    Each picture is seen as it is and mirrored, at its own and, where the network takes them, at two other sizes.
    Pictures that cannot be read are told and passed over. When it is stopped, what was labelled until then is whole.
    Raises DataError where there is no picture, or two whose names differ only in their extension; PerceptionError where
    ``out`` holds something.
    """
    folder = existing_folder(Path(), str(pictures), "pictures")
    paths = list(by_stem(list_pictures(folder), folder).values())
    sizes, out = _sizes(network), out_folder(out)
    writers = {name: _WRITERS[spec.shape](spec, out, camera) for name, spec in network.specs.items()}
    labels, progress = Labels(out), Progress(None if quiet else sys.stderr, "pictures", len(paths))
    try:
        with terminable():
            for path in paths:
                name = path.relative_to(folder).as_posix()
                try:
                    picture = read_image(path)
                except (DataError, ModuleNotFoundError) as error:
                    labels.failures.append(f"{name}: {error}")
                    continue
                views = _views(network, picture, sizes, camera, mirror)
                for task, writer in writers.items():
                    writer.add(name, picture.shape[:2], agreed([view[task] for view in views], network.specs[task]))
                labels.pictures += 1
                progress.step()
    except Stopped as stopped:
        labels.interrupted = stopped.signal
    except KeyboardInterrupt:
        labels.interrupted = signal.SIGINT
    progress.done()
    for task, writer in writers.items():
        labels.kept[task] = writer.kept()
        if entry := writer.close():
            kind, files = entry.pop("format"), {key: _under(root, entry.pop(key)) for key in PATHS if key in entry}
            labels.entries[task] = {
                "format": kind,
                "task": task,
                "images": _under(root, Path(pictures)),
                **files,
                **entry,
            }
    (out / "labels.yaml").write_text(yaml.safe_dump(list(labels.entries.values()), sort_keys=False), "utf-8")
    return labels


def _under(root: str | Path, path: Path) -> str:
    """The path as the recipe would say it: relative to its data.root, or absolute where it is elsewhere."""
    root, path = Path(root).absolute(), path.absolute()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _sizes(network: Network) -> list[tuple[int, int] | None]:
    """What the network is to be asked at; that which it cannot do is left out."""
    found: list[tuple[int, int] | None] = []
    for factor in SIZES:
        height, width = (max(MULTIPLE, round(side * factor / MULTIPLE) * MULTIPLE) for side in network.size)
        try:
            placed = network.placed((height, width))
        except PerceptionError:
            continue
        if placed not in found:
            found.append(placed)
    return found


def _views(
    network: Network,
    picture: NDArray[np.uint8],
    sizes: Sequence[tuple[int, int] | None],
    camera: Camera | None,
    mirror: bool,
) -> list[dict[str, Annotation]]:
    """Task -> annotation in pixels of the picture, of every view of it."""
    width = picture.shape[1]
    shown, lenses = [picture], [camera]
    if mirror:
        shown.append(np.ascontiguousarray(picture[:, ::-1]))
        lenses.append(camera and Camera(camera.fx, camera.fy, width - camera.cx, camera.cy))
    views = []
    for size in sizes:
        found: Any = perceive(network.run, network.specs, shown, lenses, size, MULTIPLE)
        views.append(found[0].annotations)
        views += [{name: mirrored(said, width) for name, said in view.annotations.items()} for view in found[1:]]
    return views


class _MapLabels:
    """A PNG per picture: class ids, or steps of a quantity."""

    def __init__(self, spec: TaskSpec, out: Path, camera: Camera | None) -> None:
        self.spec, self.out, self.camera = spec, out, camera
        self._pixels = self._known = 0

    def add(self, name: str, size: tuple[int, int], found: Annotation | None) -> None:
        self._pixels += size[0] * size[1]
        if not isinstance(found, DenseMap):
            return
        self._known += int(found.valid.sum())
        save((self.out / self.spec.name / name).with_suffix(".png"), stored(found, self.spec))

    def close(self) -> dict[str, Any]:
        maps = self.out / self.spec.name
        if not self._known:
            return {}
        if self.spec.classes:
            names = self.out / f"{self.spec.name}.txt"
            names.write_text("".join(f"{name}\n" for name in self.spec.classes), "utf-8")
            return {"format": "label_maps", "masks": maps, "classes": names}
        entry = {"format": "depth_maps", "depths": maps, "scale": step(self.spec)}
        lens = self.camera
        return entry if lens is None else entry | {"camera": {k: getattr(lens, k) for k in ("fx", "fy", "cx", "cy")}}

    def kept(self) -> str:
        return f"{self._known / max(1, self._pixels):.1%} of the pixels"


class _BoxLabels:
    """One COCO JSON."""

    def __init__(self, spec: TaskSpec, out: Path, camera: Camera | None) -> None:
        self.spec, self.path = spec, out / f"{spec.name}.json"
        self._images: list[dict[str, Any]] = []
        self._boxes: list[dict[str, Any]] = []

    def add(self, name: str, size: tuple[int, int], found: Annotation | None) -> None:
        image = len(self._images) + 1
        self._images.append({"id": image, "file_name": name, "height": size[0], "width": size[1]})
        if not isinstance(found, Instances) or found.ignore is None:
            return
        for (x1, y1, x2, y2), kind, unsure in zip(
            np.asarray(found.boxes, np.float64).round(2).tolist(),
            found.labels.tolist(),
            found.ignore.tolist(),
            strict=True,
        ):
            self._boxes.append(
                {
                    "id": len(self._boxes) + 1, "image_id": image, "category_id": kind + 1, "iscrowd": int(unsure),
                    "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)], "area": round((x2 - x1) * (y2 - y1), 2),
                }
            )  # fmt: skip

    def close(self) -> dict[str, Any]:
        categories = [{"id": number, "name": name} for number, name in enumerate(self.spec.classes, 1)]
        content = {"images": self._images, "annotations": self._boxes, "categories": categories}
        self.path.write_text(json.dumps(content), "utf-8")
        return {"format": "coco", "annotations": self.path} if self._images else {}

    def kept(self) -> str:
        unsure = sum(box["iscrowd"] for box in self._boxes)
        return f"{len(self._boxes) - unsure} boxes, {unsure} ignore regions"


class _PictureLabels:
    """One CSV: the class of each picture, or whether each class holds (empty = unsure)."""

    def __init__(self, spec: TaskSpec, out: Path, camera: Camera | None) -> None:
        self.spec, self.path = spec, out / f"{spec.name}.csv"
        self._rows: list[list[str]] = []
        self._seen = 0

    def add(self, name: str, size: tuple[int, int], found: Annotation | None) -> None:
        self._seen += 1
        if not isinstance(found, ImageLabel):
            return
        if found.classes is None:
            self._rows.append([name, self.spec.classes[int(found.values.argmax())]])
        else:
            told = zip(found.values.tolist(), found.classes.tolist(), strict=True)
            self._rows.append([name, *(str(int(value)) if known else "" for value, known in told)])

    def close(self) -> dict[str, Any]:
        with self.path.open("w", encoding="utf-8", newline="") as file:
            columns = self.spec.classes if self.spec.multi_label else ("label",)
            csv.writer(file).writerows([["file", *columns], *self._rows])
        if not self._rows:
            return {}
        entry = {"format": "image_labels", "csv": self.path}
        return entry | {"multi_label": True} if self.spec.multi_label else entry

    def kept(self) -> str:
        return f"{len(self._rows)} of {self._seen} pictures"


_WRITERS = {"dense": _MapLabels, "instances": _BoxLabels, "label": _PictureLabels}
