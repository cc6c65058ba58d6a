"""The checkpoint folder of a run: list checkpoints, update links, clean up after a crash."""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from perception.checkpoint import manifest as manifests
from perception.checkpoint.manifest import CheckpointManifest
from perception.types import CheckpointError

WEIGHTS, RECIPE, STATE, MANIFEST = "model.safetensors", "recipe.yaml", "train_state.pt", manifests.MANIFEST_NAME
FILES = (WEIGHTS, RECIPE, STATE)
TEMPORARY_PREFIX = ".writing-"
REPLACED_PREFIX = f"{TEMPORARY_PREFIX}replaced-"
DAMAGED_PREFIX = "damaged-"
_SYMLINKS_UNSUPPORTED = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP}
"""Error codes of file systems without symbolic links."""


def clean_up(run_folder: Path, step: int | None = None) -> None:
    """Clean up after a crash: remove temporary folders and update the links.

    Args:
        run_folder: the run.
        step: training resumes from this step. Newer checkpoints are damaged. They are renamed so that they do not count
            as the newest and do not cause valid ones to be deleted.
    """
    folder = run_folder / "checkpoints"
    if not folder.is_dir():
        return
    for replaced in folder.glob(f"{REPLACED_PREFIX}step_*"):
        final = folder / replaced.name.removeprefix(REPLACED_PREFIX).rpartition("-")[0]
        if not final.exists():  # the crash happened while it was being replaced
            replaced.replace(final)
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if leftover.is_symlink() or leftover.is_file():
            leftover.unlink()
        else:
            shutil.rmtree(leftover)
    for newer in list_step_folders(folder):
        if step is not None and _step_number(newer) > step:
            aside = folder / f"{DAMAGED_PREFIX}{newer.name}"
            shutil.rmtree(aside, ignore_errors=True)
            newer.replace(aside)
    update_links(folder)


def has_checkpoints(run_folder: Path) -> bool:
    """Whether a run folder contains a checkpoint to resume from."""
    return bool(list_step_folders(run_folder / "checkpoints"))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: after a crash or an OSError, it has either the old or the new content."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    try:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        sync_to_disk(temporary)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_to_disk(path.parent)


def read_manifest(folder: Path) -> CheckpointManifest:
    """Read the manifest of a checkpoint. Raises CheckpointError."""
    return manifests.read(folder, FILES)


def list_step_folders(folder: Path) -> list[Path]:
    """List the checkpoint folders, oldest first."""
    found = [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdecimal() and path.is_dir()]
    return sorted(found, key=_step_number)


def _step_number(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def update_links(folder: Path) -> None:
    """Point the links ``last`` and ``best`` to the checkpoints given by the manifests."""
    steps = list_step_folders(folder)
    best = [path for path in steps if is_best(path)]
    for name, targets in (("last", steps), ("best", best)):
        if not targets:
            continue
        temporary, link = folder / f"{TEMPORARY_PREFIX}{name}-{os.getpid()}", folder / name
        temporary.unlink(missing_ok=True)
        if link.is_dir() and not link.is_symlink():  # the run was copied without its links
            link.replace(folder / f"copied-{name}-{time.time_ns()}")
        try:
            temporary.symlink_to(targets[-1].name)
        except OSError as error:
            if error.errno not in _SYMLINKS_UNSUPPORTED:
                raise
            continue  # `load` works without links
        temporary.replace(link)
    sync_to_disk(folder)


def is_best(folder: Path) -> bool:
    """Whether a checkpoint was the best when it was written; False if it is damaged."""
    try:
        return read_manifest(folder).best
    except CheckpointError:
        return False


def prune(folder: Path, keep: int) -> None:
    """Delete all checkpoints except the newest ``keep`` (at least two, as a fallback) and the best one."""
    steps = list_step_folders(folder)
    best = [path for path in steps if is_best(path)][-1:]
    kept = {path.name for path in steps[-max(2, keep) :] + best}
    for path in steps:
        if path.name not in kept:
            doomed = folder / f"{TEMPORARY_PREFIX}deleted-{path.name}-{os.getpid()}"
            path.replace(doomed)
    for doomed in folder.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(doomed, ignore_errors=True)


def sync_to_disk(path: Path) -> None:
    """Flush a file or a folder listing to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
