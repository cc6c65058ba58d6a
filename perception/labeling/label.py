"""`perception label`: labels for images that lack them, by a network that was trained on others.

Where a source has no labels of a task, nothing keeps a joint network from saying anything there. Labels by a network
that was trained for that task do (self-training, Noisy Student: Xie et al. 2020; across tasks, MuST: Ghiasi et al.
2021). They are files like any others: to be looked at, mended, or thrown away. numpy and OpenCV, no torch.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable, Sequence
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
"""Of the settings and records, in ``.records``."""

SCALES = (1.0, 0.75, 1.25)
"""Sizes at which a network sees each image, as factors of its own."""

SIZE_DIVISOR = 32

PATH_KEYS = ("masks", "class_file", "depths", "annotations", "csv")
"""Keys of the entries that name files."""


@dataclass
class LabelingReport:
    """What was written.

    failures: the images that could not be read, and why
    entries: task -> what the recipe's source says of its labels; without the tasks of which nothing was sure
    coverage: task -> how much all views agreed on
    stop_signal: number of the signal that stopped it; None = it went to its end
    shard: that of which it is; then all that is above is told when they are put together
    """

    out: Path
    num_images: int = 0
    failures: list[str] = field(default_factory=list)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    coverage: dict[str, str] = field(default_factory=dict)
    stop_signal: int | None = None
    shard: tuple[int, int] | None = None

    def summary_lines(self) -> list[str]:
        """For the user: what there is, and what to write into the recipe."""
        stopped = " (stopped; what is written is whole, --resume goes on)" if self.stop_signal is not None else ""
        if self.shard:
            name = "/".join(map(str, self.shard))
            return [f"{self.out}: shard {name}{stopped}. When all have ended, --resume without --shard completes it."]
        said = [f"{self.out}: labels of {self.num_images} images{stopped}"]
        said += [f"  not labeled: {failure}" for failure in self.failures]
        said += [f"  {task}: {kept}" for task, kept in self.coverage.items()]
        said.append(f"{self.out / 'labels.yaml'} holds what the recipe's source needs under labels:")
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
    """Label the images of a folder (and its folders) with what the network is sure of; see `agreed`.

    out:    a new or empty folder. For each task: segmentation masks (PNG, 255 = unsure) and their names, depth maps
    (16-bit
            PNG, 0 = unsure), boxes (COCO JSON, iscrowd = 1 where unsure) or labels of whole images (CSV)
    camera: intrinsics in pixels of every image; None = the default focal length of the depth task
    mirror: whether the mirror image must lead to the same: not where left and right are not alike to the network
    root:   the recipe's data.root, to which the paths in the entries are relative
    quiet:  no progress on standard error
    resume: go on in ``out``, which was begun with the same settings
    shard:  (i, n), from 1 on: every n-th image only, beside other processes; `resume` without it, when all have
            ended, does what is left and writes the files of all. None = all images
    identity: of the network: labels of another are refused
    on_image_done:  called after each image

    Each image is seen as it is and mirrored, at its own and, where the network takes them, at two other sizes.
    Images that cannot be read, or that end the process, are told and passed over. What is written does not hang
    on how often it was stopped, or on how many processes did it. Stopped, what was labeled until then is whole.
    Raises DataError where there is no image, or two whose names differ only in their extension; PerceptionError where
    ``out`` holds something else; FullError where the disk is full.
    """
    folder = require_folder(Path(), str(images), "images")
    names, _ = list_image_names(folder)
    out = make_label_folder(out, resume or shard is not None)
    sizes, specs = _supported_sizes(predictor), dict(predictor.specs)
    for name in specs:
        check_file_name(name, "a task")
    settings = {
        "format": FORMAT,
        "network": identity,
        "mirror": mirror,
        "sizes": sizes,
        "camera": camera and [camera.fx, camera.fy, camera.cx, camera.cy],
        "tasks": [dataclasses.asdict(spec) for spec in specs.values()],
    }
    ensure_settings(out, settings)
    if shard is None:
        remove_partial_files(out)
    interrupted, full = None, None
    past = load_history(out, folder)
    mine = past.remaining(names[shard[0] - 1 :: shard[1]] if shard else names)
    progress = Progress(None if quiet else sys.stderr, "images", len(mine))
    try:
        with handle_stop_signals(), LabelingLog(out, folder) as log:
            for name in mine:
                check_free_space(out)
                log.begin(name)
                _label_image(log, predictor, folder, name, out, sizes, camera, mirror)
                check_stop()
                progress.step()
                on_image_done()
    except KeyboardInterrupt as error:
        interrupted = getattr(error, "signal", signal.SIGINT)
    except DiskFullError as error:
        full = error
    progress.finish()
    labels = LabelingReport(out)
    try:
        with handle_stop_signals(), defer_stop():
            labels = LabelingReport(out, shard=shard) if shard else merge_labels(out, folder, images, root)
    except DiskFullError as error:
        full = full or error
    if full is not None:
        raise DiskFullError(f"{full} What was labeled is not lost: go on with --resume.") from full
    labels.stop_signal = interrupted
    return labels


def _label_image(
    log: LabelingLog,
    predictor: PredictorLike,
    folder: Path,
    name: str,
    out: Path,
    sizes: Sequence[tuple[int, int] | None],
    camera: Camera | None,
    mirror: bool,
) -> None:
    """Label an image, or record why that fails."""
    try:
        picture = read_image(folder / name)
        views = _predict_views(predictor, picture, sizes, camera, mirror)
        found = {task: find_consensus([view[task] for view in views], spec) for task, spec in predictor.specs.items()}
    except (DataError, ModuleNotFoundError) as error:
        log.fail(name, str(error))
        return
    except Exception as error:  # one image in a million is not to end the work on the others
        log.fail(name, f"{type(error).__name__}: {error}")
        return
    with defer_stop():
        kept = {task: write_label(spec, found[task], name, out) for task, spec in predictor.specs.items()}
        log.finish(name, picture.shape[:2], kept)


def list_image_names(folder: Path) -> tuple[list[str], list[str]]:
    """Of the images under a folder, in the order of their labels, and those that are not UTF-8: no file of labels
    could name them. Raises DataError where two would share a map."""
    unnamed: list[str] = []
    found = index_by_stem(list_images(folder, undecodable_names=unnamed), folder)
    return [path.relative_to(folder).as_posix() for path in found.values()], unnamed


def make_label_folder(out: str | Path, resume: bool) -> Path:
    """The folder of the labels, made. Raises PerceptionError where it holds what is not to be changed."""
    out = Path(out)
    if resume and (out / RECORDS_FOLDER / SETTINGS).is_file():
        make_folder(out)
        return out
    if out.is_dir() and (out / RECORDS_FOLDER).is_dir() and not resume:
        raise PerceptionError(f"{out} holds labels. Go on with them by --resume, or give a new folder.")
    if resume and out.is_dir() and {path.name for path in out.iterdir()} <= {RECORDS_FOLDER}:
        return out
    return make_output_folder(out)


def merge_labels(out: Path, folder: Path, images: str | Path, root: str | Path) -> LabelingReport:
    """Write the files of all that is labeled in ``out``: the same bytes whoever labeled it, in whatever order.

    folder: of the images; images: as the recipe is to name it
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
    """The path as the recipe would say it: relative to its data.root, or absolute where it is elsewhere."""
    root, path = Path(root).absolute(), path.absolute()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _supported_sizes(predictor: PredictorLike) -> list[tuple[int, int] | None]:
    """What the network is to be asked at; that which it cannot do is left out."""
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
    """Task -> annotation in pixels of the image, of every view of it."""
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
