"""Finding the files of a data set, and refusing names that lead out of it."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from perception.data.images import PICTURE_SUFFIXES
from perception.types import DataError

logger = logging.getLogger(__name__)


def existing_folder(root: Path, name: str, what: str) -> Path:
    """``root / name`` with links resolved. Raises DataError where it is no folder."""
    folder = root / name
    if not folder.is_dir():
        raise DataError(f"No folder of {what} at {folder}. Correct the path in the recipe, or data.root.")
    return folder.resolve()


def existing_file(root: Path, name: str, what: str) -> Path:
    """``root / name``. Raises DataError where it is no file."""
    path = root / name
    if not path.is_file():
        raise DataError(f"No file of {what} at {path}. Correct the path in the recipe, or data.root.")
    return path


def list_pictures(folder: Path, pattern: str = "**/*") -> list[Path]:
    """The picture files under a folder (resolved), sorted. Raises DataError where there is none."""
    names = sorted(p for p in folder.glob(pattern) if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
    if not names:
        raise DataError(
            f"No picture under {folder} ({pattern}). Expected files ending in {', '.join(sorted(PICTURE_SUFFIXES))}."
        )
    return [inside(folder, p.relative_to(folder).as_posix(), str(folder)) for p in names]


def inside(folder: Path, name: str, where: str) -> Path:
    """The resolved path of ``name`` under ``folder`` (resolved).

    Raises DataError where the name is absolute, holds ``..``, a NUL or a backslash, or leads out through a link.
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: {name!r} is no file name. Expected a path relative to {folder}.")
    parts = name.split("/")
    if "\0" in name or "\\" in name or ".." in parts or name.startswith("/") or Path(name).is_absolute():
        raise DataError(
            f"{where}: file name {name!r} is refused. Expected a plain path under {folder}: relative, with '/', "
            "without '..'."
        )
    path = os.path.realpath(folder / name)
    if not path.startswith(f"{str(folder).rstrip(os.sep)}{os.sep}"):
        raise DataError(
            f"{where}: {name!r} leads out of {folder} through a link, to {path}. Put the file itself there."
        )
    return Path(path)


def present(paths: Sequence[Path], folder: Path, where: str, allowed: float, problems: Counter[str]) -> list[bool]:
    """Which of the listed pictures exist.

    The missing ones are counted in ``problems``. Raises DataError where none exists, or more than one picture and
    more than the fraction ``allowed`` is missing.
    """
    folders = {path.parent for path in paths}
    files = {os.path.join(at, entry) for at in folders if at.is_dir() for entry in os.listdir(at)}  # noqa: PTH118, PTH208
    found = [str(path) in files for path in paths]
    missing = [path for path, there in zip(paths, found, strict=True) if not there]
    if not paths or len(missing) == len(paths):
        raise DataError(
            f"{where}: none of its {len(paths)} pictures is under {folder}. Correct the folder of pictures."
        )
    if len(missing) > max(1, allowed * len(paths)):
        raise DataError(
            f"{where}: {len(missing)} of its {len(paths)} pictures are not under {folder}, the first is "
            f"{missing[0].name}. At most {allowed:.1%} may be missing: fetch them, or raise allow_missing."
        )
    if missing:
        problems["missing pictures"] += len(missing)
        logger.warning(
            "%s: %d of %d pictures are missing and skipped, the first is %s",
            where,
            len(missing),
            len(paths),
            missing[0],
        )
    return found


def by_stem(paths: Iterable[Path], folder: Path, suffix: str = "") -> dict[str, Path]:
    """Path under ``folder`` without its extension (and without ``suffix`` at its end) -> file."""
    stems: dict[str, Path] = {}
    for path in paths:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if not stem.endswith(suffix):
            continue
        stem = stem.removesuffix(suffix) if suffix else stem
        if stem in stems:
            raise DataError(f"{path} and {stems[stem]} differ only in their extension. Keep one of them.")
        stems[stem] = path
    return stems


def pair(
    pictures: Sequence[Path], images: Path, labels: Path, suffix: str, what: str, problems: Counter[str]
) -> dict[Path, Path]:
    """Picture -> the file under ``labels`` of the same stem plus ``suffix``.

    Pictures without a partner are not labelled; they and partners without a picture are counted in ``problems``.
    Raises DataError where nothing fits together.
    """
    files = sorted(Path(os.path.realpath(p)) for p in labels.glob("**/*") if p.suffix.lower() in (".png", ".npy"))
    for path in files:
        inside(labels, os.path.relpath(path, labels).replace(os.sep, "/"), str(labels))
    partners = by_stem(files, labels, suffix)
    stems = by_stem(pictures, images)
    pairs = {picture: partners[stem] for stem, picture in stems.items() if stem in partners}
    if not pairs:
        raise DataError(
            f"None of the {len(stems)} pictures under {images} has a {what} of the same name under {labels} "
            f"({len(files)} files, suffix {suffix!r}). Correct the folders or the suffix."
        )
    for kind, number in (
        (f"pictures without a {what}", len(stems) - len(pairs)),
        (f"{what}s without a picture", len(partners) - len(pairs)),
    ):
        if number:
            problems[kind] += number
    return pairs
