"""`perception label`: labels for pictures that lack them, by a network that was trained on others.

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

from perception.files.folders import by_stem, existing_folder, list_pictures
from perception.files.images import read_image
from perception.files.safe_names import check_file_name, printable
from perception.files.safe_write import FullError, check_room, make_folder, remove_partial, write_whole
from perception.labeling.consensus import agreed, mirrored
from perception.labeling.records import FOLDER, SETTINGS, Log, read_settings, recall, settle
from perception.labeling.writers import Labelled, keep, merge
from perception.runtime.predictor import perceive
from perception.types import Annotation, Camera, DataError, PerceptionError, TaskSpec
from perception.video.interrupt import check, held, terminable
from perception.video.pipeline import Network
from perception.video.predict import out_folder
from perception.video.progress import Progress

FORMAT = 1
"""Of the settings and records, in ``.records``."""

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
    shard: that of which it is; then all that is above is told when they are put together
    """

    out: Path
    pictures: int = 0
    failures: list[str] = field(default_factory=list)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    interrupted: int | None = None
    shard: tuple[int, int] | None = None

    def lines(self) -> list[str]:
        """For the user: what there is, and what to write into the recipe."""
        stopped = " (stopped; what is written is whole, --resume goes on)" if self.interrupted is not None else ""
        if self.shard:
            name = "/".join(map(str, self.shard))
            return [f"{self.out}: shard {name}{stopped}. When all have ended, --resume without --shard completes it."]
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
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    identity: str = "",
    watch: Callable[[], None] = lambda: None,
) -> Labels:
    """Label the pictures of a folder (and its folders) with what the network is sure of; see `agreed`.

    out:    a new or empty folder. For each task: label maps (PNG, 255 = unsure) and their names, depth maps (16-bit
            PNG, 0 = unsure), boxes (COCO JSON, iscrowd = 1 where unsure) or labels of whole pictures (CSV)
    camera: intrinsics in pixels of every picture; None = the default focal length of the depth task
    mirror: whether the mirror image must lead to the same: not where left and right are not alike to the network
    root:   the recipe's data.root, to which the paths in the entries are relative
    quiet:  no progress on standard error
    resume: go on in ``out``, which was begun with the same settings
    shard:  (i, n), from 1 on: every n-th picture only, beside other processes; `resume` without it, when all have
            ended, does what is left and writes the files of all. None = all pictures
    identity: of the network: labels of another are refused
    watch:  called after each picture

    Each picture is seen as it is and mirrored, at its own and, where the network takes them, at two other sizes.
    Pictures that cannot be read, or that end the process, are told and passed over. What is written does not hang
    on how often it was stopped, or on how many processes did it. Stopped, what was labelled until then is whole.
    Raises DataError where there is no picture, or two whose names differ only in their extension; PerceptionError where
    ``out`` holds something else; FullError where the disk is full.
    """
    folder = existing_folder(Path(), str(pictures), "pictures")
    names, _ = picture_names(folder)
    out = label_folder(out, resume or shard is not None)
    sizes, specs = _sizes(network), dict(network.specs)
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
    settle(out, settings)
    if shard is None:
        remove_partial(out)
    interrupted, full = None, None
    past = recall(out, folder)
    mine = past.left(names[shard[0] - 1 :: shard[1]] if shard else names)
    progress = Progress(None if quiet else sys.stderr, "pictures", len(mine))
    try:
        with terminable(), Log(out, folder) as log:
            for name in mine:
                check_room(out)
                log.begin(name)
                _one(log, network, folder, name, out, sizes, camera, mirror)
                check()
                progress.step()
                watch()
    except KeyboardInterrupt as error:
        interrupted = getattr(error, "signal", signal.SIGINT)
    except FullError as error:
        full = error
    progress.done()
    labels = Labels(out)
    try:
        with terminable(), held():
            labels = Labels(out, shard=shard) if shard else merge_labels(out, folder, pictures, root)
    except FullError as error:
        full = full or error
    if full is not None:
        raise FullError(f"{full} What was labelled is not lost: go on with --resume.") from full
    labels.interrupted = interrupted
    return labels


def _one(
    log: Log,
    network: Network,
    folder: Path,
    name: str,
    out: Path,
    sizes: Sequence[tuple[int, int] | None],
    camera: Camera | None,
    mirror: bool,
) -> None:
    """Label a picture, or record why that fails."""
    try:
        picture = read_image(folder / name)
        views = _views(network, picture, sizes, camera, mirror)
        found = {task: agreed([view[task] for view in views], spec) for task, spec in network.specs.items()}
    except (DataError, ModuleNotFoundError) as error:
        log.fail(name, str(error))
        return
    except Exception as error:  # one picture in a million is not to end the work on the others
        log.fail(name, f"{type(error).__name__}: {error}")
        return
    with held():
        kept = {task: keep(spec, found[task], name, out) for task, spec in network.specs.items()}
        log.finish(name, picture.shape[:2], kept)


def picture_names(folder: Path) -> tuple[list[str], list[str]]:
    """Of the pictures under a folder, in the order of their labels, and those that are not UTF-8: no file of labels
    could name them. Raises DataError where two would share a map."""
    unnamed: list[str] = []
    found = by_stem(list_pictures(folder, unnamed=unnamed), folder)
    return [path.relative_to(folder).as_posix() for path in found.values()], unnamed


def label_folder(out: str | Path, resume: bool) -> Path:
    """The folder of the labels, made. Raises PerceptionError where it holds what is not to be changed."""
    out = Path(out)
    if resume and (out / FOLDER / SETTINGS).is_file():
        make_folder(out)
        return out
    if out.is_dir() and (out / FOLDER).is_dir() and not resume:
        raise PerceptionError(f"{out} holds labels. Go on with them by --resume, or give a new folder.")
    if resume and out.is_dir() and {path.name for path in out.iterdir()} <= {FOLDER}:
        return out
    return out_folder(out)


def merge_labels(out: Path, folder: Path, pictures: str | Path, root: str | Path) -> Labels:
    """Write the files of all that is labelled in ``out``: the same bytes whoever labelled it, in whatever order.

    folder: of the pictures; pictures: as the recipe is to name it
    """
    past, settings = recall(out, folder), read_settings(out)
    names, unnamed = picture_names(folder)
    done = [past.done[name] for name in names if name in past.done]
    labels = Labels(out, len(done), [f"{name}: {past.failed[name]}" for name in names if name in past.failed])
    labels.failures += [f"{printable(name)}: its name is not UTF-8. Rename it" for name in unnamed]
    camera = Camera(*settings["camera"]) if settings["camera"] else None
    for task in settings["tasks"]:
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in task.items()}
        spec = TaskSpec(**fields)
        some = [Labelled(line["done"], tuple(line["size"]), line["labels"][spec.name]) for line in done]
        entry, labels.kept[spec.name] = merge(spec, out, some, camera)
        if entry:
            kind, files = entry.pop("format"), {key: _under(root, entry.pop(key)) for key in PATHS if key in entry}
            labels.entries[spec.name] = {
                "format": kind,
                "task": spec.name,
                "images": _under(root, Path(pictures)),
                **files,
                **entry,
            }
    text = yaml.safe_dump(list(labels.entries.values()), sort_keys=False)
    write_whole(out / "labels.yaml", text.encode())
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
