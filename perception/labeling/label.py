"""`perception label`: pseudo-labels for unlabeled images, from a network trained on other images.

A source without labels of a task does not train this task. Pseudo-labels from a network trained for the task close
this gap (self-training, Noisy Student: Xie et al. 2020; across tasks, MuST: Ghiasi et al. 2021). They are ordinary
files that can be inspected, corrected or deleted. numpy and OpenCV, no torch.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from perception.files.folders import index_by_stem, list_images, require_folder
from perception.files.images import read_image
from perception.files.safe_names import check_file_name, escape_unprintable
from perception.files.safe_write import DiskFullError, check_free_space, make_folder, remove_partial_files, write_atomic
from perception.labeling.consensus import find_consensus, mirror_annotation
from perception.labeling.records import (
    RECORDS_FOLDER,
    SETTINGS,
    LabelingLog,
    ensure_settings,
    load_history,
    read_settings,
)
from perception.labeling.writers import LabeledImage, write_label, write_task_files
from perception.runtime.predictor import predict_images
from perception.types import Annotation, Camera, DataError, PerceptionError, TaskSpec
from perception.video.interrupt import check_stop, defer_stop, handle_stop_signals
from perception.video.pipeline import PredictorLike
from perception.video.predict import make_output_folder
from perception.video.progress import Progress

FORMAT = 1
"""Format version of the settings and records in ``.records``."""

SCALES = (1.0, 0.75, 1.25)
"""Input sizes for each image, as factors of the network's input size."""

SIZE_DIVISOR = 32

PATH_KEYS = ("masks", "class_file", "depths", "annotations", "csv")
"""Keys of the entries that hold paths."""


@dataclass
class LabelingReport:
    """What was written.

    Attributes:
        out: folder of the labels.
        num_images: number of labeled images.
        failures: images that failed, with the reason.
        entries: task -> its entry under ``labels`` in the recipe; without tasks that have no reliable label.
        coverage: task -> how much all views agreed on.
        stop_signal: number of the signal that stopped the run; None = the run is complete.
        shard: (i, n) of this run. The fields above are then empty until the shards are merged.
    """

    out: Path
    num_images: int = 0
    failures: list[str] = field(default_factory=list)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    coverage: dict[str, str] = field(default_factory=dict)
    stop_signal: int | None = None
    shard: tuple[int, int] | None = None

    def summary_lines(self) -> list[str]:
        """Return lines for the user: what was written, and what to add to the recipe."""
        stopped = (
            " (stopped; the written files are complete, --resume continues)" if self.stop_signal is not None else ""
        )
        if self.shard:
            name = "/".join(map(str, self.shard))
            return [f"{self.out}: shard {name}{stopped}. When all have ended, --resume without --shard completes them."]
        said = [f"{self.out}: labels of {self.num_images} images{stopped}"]
        said += [f"  not labeled: {failure}" for failure in self.failures]
        said += [f"  {task}: {kept}" for task, kept in self.coverage.items()]
        said.append(f"{self.out / 'labels.yaml'} contains the entries for labels in the recipe's source:")
        flow = (
            yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=1000)
            for entry in self.entries.values()
        )
        return [*said, *(f"  - {line.strip()}" for line in flow)]


def label_images(
    predictor: PredictorLike,
    images: str | Path,
    out: str | Path,
    camera: Camera | None = None,
    *,
    mirror: bool = True,
    root: str | Path = ".",
    quiet: bool = False,
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    identity: str = "",
    on_image_done: Callable[[], None] = lambda: None,
) -> LabelingReport:
    """Label the images of a folder and its subfolders with the network's reliable predictions; see `find_consensus`.

    The network predicts each image and its mirror image, at its input size and, if supported, at two other sizes.
    Images that cannot be read, or that crash the process, are reported and skipped. The written files do not depend on
    interruptions or on the number of processes. After a stop, the files written so far are complete.

    Args:
        predictor: the network.
        images: folder of the images.
        out: a new or empty folder. It receives segmentation masks (PNG, 255 = unsure) with class names, depth maps
            (16-bit PNG, 0 = unsure), boxes (COCO JSON, iscrowd = 1 if unsure) and image-level labels (CSV).
        camera: intrinsics in pixels of every image; None = the default focal length of the depth task.
        mirror: also predict the mirror image; wrong if left and right have different meanings for the network.
        root: the recipe's data.root. Paths in the entries are relative to it.
        quiet: show no progress on standard error.
        resume: continue in ``out``, which must have the same settings.
        shard: (i, n), i from 1: label only every n-th image. `resume` without a shard then merges. None = all images.
        identity: identity of the network. A folder with labels of another network is rejected.
        on_image_done: called after each image.

    Raises:
        DataError: there is no image, or two image names differ only in their extension.
        PerceptionError: ``out`` holds something else, or the disk is full (DiskFullError).
    """
    folder = require_folder(Path(), str(images), "images")
    names, _ = list_image_names(folder)
    out = make_label_folder(out, resume or shard is not None)
    for name in predictor.specs:
        check_file_name(name, "a task")
    labeler = _Labeler(predictor, folder, out, _supported_sizes(predictor), camera, mirror)
    ensure_settings(out, labeler.describe_settings(identity))
    if shard is None:
        remove_partial_files(out)
    remaining = load_history(out, folder).remaining(names[shard[0] - 1 :: shard[1]] if shard else names)
    progress = Progress(None if quiet else sys.stderr, "images", len(remaining))
    stop_signal, full = labeler.label(remaining, progress, on_image_done)
    labels = LabelingReport(out)
    try:
        with handle_stop_signals(), defer_stop():
            labels = LabelingReport(out, shard=shard) if shard else merge_labels(out, folder, images, root)
    except DiskFullError as error:
        full = full or error
    if full is not None:
        raise DiskFullError(f"{full} The labels so far are saved: continue with --resume.") from full
    labels.stop_signal = stop_signal
    return labels


@dataclass(frozen=True)
class _Labeler:
    """Labels images one by one; see `label_images` for the attributes."""

    predictor: PredictorLike
    folder: Path
    out: Path
    sizes: Sequence[tuple[int, int] | None]
    camera: Camera | None
    mirror: bool

    def describe_settings(self, identity: str) -> dict[str, object]:
        """Everything on which the labels depend, beside the images."""
        camera = self.camera
        return {
            "format": FORMAT,
            "network": identity,
            "mirror": self.mirror,
            "sizes": self.sizes,
            "camera": camera and [camera.fx, camera.fy, camera.cx, camera.cy],
            "tasks": [dataclasses.asdict(spec) for spec in self.predictor.specs.values()],
        }

    def label(
        self, names: Iterable[str], progress: Progress, on_image_done: Callable[[], None]
    ) -> tuple[int | None, DiskFullError | None]:
        """Label images until a stop signal or a full disk, which are returned."""
        try:
            with handle_stop_signals(), LabelingLog(self.out, self.folder) as log:
                for name in names:
                    check_free_space(self.out)
                    log.begin(name)
                    self._label_image(log, name)
                    check_stop()
                    progress.step()
                    on_image_done()
        except KeyboardInterrupt as error:
            return getattr(error, "signal", signal.SIGINT), None
        except DiskFullError as error:
            return None, error
        finally:
            progress.finish()
        return None, None

    def _label_image(self, log: LabelingLog, name: str) -> None:
        """Label an image, or record why this fails."""
        specs = self.predictor.specs
        try:
            image = read_image(self.folder / name)
            views = _predict_views(self.predictor, image, self.sizes, self.camera, self.mirror)
            found = {task: find_consensus([view[task] for view in views], spec) for task, spec in specs.items()}
        except (DataError, ModuleNotFoundError) as error:
            log.fail(name, str(error))
            return
        except Exception as error:  # a single image must not end the run
            log.fail(name, f"{type(error).__name__}: {error}")
            return
        with defer_stop():
            kept = {task: write_label(spec, found[task], name, self.out) for task, spec in specs.items()}
            log.finish(name, image.shape[:2], kept)


def list_image_names(folder: Path) -> tuple[list[str], list[str]]:
    """List the images under a folder.

    Returns:
        (names in the order of the labels, names that are not UTF-8). A label file cannot contain the latter.

    Raises:
        DataError: two images would share a label file.
    """
    unnamed: list[str] = []
    found = index_by_stem(list_images(folder, undecodable_names=unnamed), folder)
    return [path.relative_to(folder).as_posix() for path in found.values()], unnamed


def make_label_folder(out: str | Path, resume: bool) -> Path:
    """Create the folder of the labels.

    Args:
        out: path of the folder.
        resume: accept a folder that already holds labels.

    Returns:
        The path of the folder.

    Raises:
        PerceptionError: the folder holds files that must not be changed.
    """
    out = Path(out)
    if resume and (out / RECORDS_FOLDER / SETTINGS).is_file():
        make_folder(out)
        return out
    if out.is_dir() and (out / RECORDS_FOLDER).is_dir() and not resume:
        raise PerceptionError(f"{out} already holds labels. Continue with --resume, or give a new folder.")
    if resume and out.is_dir() and {path.name for path in out.iterdir()} <= {RECORDS_FOLDER}:
        return out
    return make_output_folder(out)


def merge_labels(out: Path, folder: Path, images: str | Path, root: str | Path) -> LabelingReport:
    """Write the merged label files of all labeled images in ``out``. The bytes do not depend on the labeling order.

    Args:
        out: folder of the labels.
        folder: folder of the images.
        images: the same folder, as the recipe will refer to it.
        root: the recipe's data.root.

    Returns:
        What was written.
    """
    past, settings = load_history(out, folder), read_settings(out)
    names, unnamed = list_image_names(folder)
    done = [past.done[name] for name in names if name in past.done]
    labels = LabelingReport(out, len(done), [f"{name}: {past.failed[name]}" for name in names if name in past.failed])
    labels.failures += [f"{escape_unprintable(name)}: its name is not UTF-8. Rename it" for name in unnamed]
    camera = Camera(*settings["camera"]) if settings["camera"] else None
    for task in settings["tasks"]:
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in task.items()}
        spec = TaskSpec(**fields)
        some = [LabeledImage(line["done"], tuple(line["size"]), line["labels"][spec.name]) for line in done]
        entry, labels.coverage[spec.name] = write_task_files(spec, out, some, camera)
        if entry:
            kind, files = (
                entry.pop("format"),
                {key: _path_from_root(root, entry.pop(key)) for key in PATH_KEYS if key in entry},
            )
            labels.entries[spec.name] = {
                "format": kind,
                "task": spec.name,
                "images": _path_from_root(root, Path(images)),
                **files,
                **entry,
            }
    text = yaml.safe_dump(list(labels.entries.values()), sort_keys=False)
    write_atomic(out / "labels.yaml", text.encode())
    return labels


def _path_from_root(root: str | Path, path: Path) -> str:
    """The path relative to the recipe's data.root; absolute if it is outside."""
    root, path = Path(root).absolute(), path.absolute()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _supported_sizes(predictor: PredictorLike) -> list[tuple[int, int] | None]:
    """The input sizes to predict at, without those that the network does not support."""
    found: list[tuple[int, int] | None] = []
    for factor in SCALES:
        height, width = (
            max(SIZE_DIVISOR, round(side * factor / SIZE_DIVISOR) * SIZE_DIVISOR) for side in predictor.size
        )
        try:
            placed = predictor.letterbox_size((height, width))
        except PerceptionError:
            continue
        if placed not in found:
            found.append(placed)
    return found


def _predict_views(
    predictor: PredictorLike,
    image: NDArray[np.uint8],
    sizes: Sequence[tuple[int, int] | None],
    camera: Camera | None,
    mirror: bool,
) -> list[dict[str, Annotation]]:
    """One dict per view: task -> annotation in pixels of the image."""
    width = image.shape[1]
    shown, lenses = [image], [camera]
    if mirror:
        shown.append(np.ascontiguousarray(image[:, ::-1]))
        lenses.append(camera and Camera(camera.fx, camera.fy, width - camera.cx, camera.cy))
    views = []
    for size in sizes:
        found: Any = predict_images(predictor.run, predictor.specs, shown, lenses, size, SIZE_DIVISOR)
        views.append(found[0].annotations)
        views += [
            {name: mirror_annotation(said, width) for name, said in view.annotations.items()} for view in found[1:]
        ]
    return views
