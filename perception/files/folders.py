"""Finding the files of a data set, and refusing names that lead out of it."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from perception.files.images import PICTURE_SUFFIXES
from perception.files.strict_json import shown
from perception.types import DataError

logger = logging.getLogger(__name__)


def existing_folder(root: Path, name: str, what: str) -> Path:
    """``root / name`` with links resolved. Raises DataError where it is no folder."""
    folder = root / name
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where the name is too long
        raise DataError(f"No folder of {what} at {folder}. Correct the path in the recipe, or data.root.")
    return folder.resolve()


def existing_file(root: Path, name: str, what: str) -> Path:
    """``root / name``. Raises DataError where it is no file."""
    path = root / name
    if not os.path.isfile(path):  # noqa: PTH113
        raise DataError(f"No file of {what} at {path}. Correct the path in the recipe, or data.root.")
    return path


def boundary_of(folder: Path, root: Path) -> Path:
    """What links in a folder (resolved) may not lead out of: the data root, or the folder where it lies elsewhere."""
    root = Path(os.path.realpath(root))
    return root if folder.is_relative_to(root) else folder


def list_pictures(
    folder: Path, pattern: str = "**/*", root: Path | None = None, unnamed: list[str] | None = None
) -> dict[Path, str]:
    """The picture files under a folder (resolved), resolved -> path under it, sorted by the latter.

    Hidden files and folders (``._a.jpg``, ``.ipynb_checkpoints``) are none. A link to nothing is listed: it is a
    missing picture. Raises DataError where there is none, and where one is no file, leads out, or has a name that is
    not UTF-8.

    pattern: names of folders and of the file, ``*`` stands for any; ``**`` as the only folder: at any depth
    root:    folder that links may not lead out of; default: ``folder``
    unnamed: gets the names that are not UTF-8, which are then left out; None = they are an error
    """
    files = files_under(folder, PICTURE_SUFFIXES, root, pattern, unnamed)
    if not files and not unnamed:
        raise DataError(
            f"No picture under {folder} ({pattern}). Expected files ending in {', '.join(sorted(PICTURE_SUFFIXES))}."
        )
    return files


def files_under(
    folder: Path,
    suffixes: Collection[str],
    root: Path | None = None,
    pattern: str = "**/*",
    unnamed: list[str] | None = None,
) -> dict[Path, str]:
    """`list_pictures` of files with other ``suffixes`` (in lower case); may be empty."""
    *levels, last = pattern.split("/")
    anywhere, boundary = levels == ["**"], folder if root is None else boundary_of(folder, root)
    found: dict[Path, list[str]] = {}
    folders: list[tuple[list[str], bool]] = [([], False)]
    entered: set[Path] = set()
    while folders:
        parents, linked = folders.pop()
        depth = len(parents)
        for entry in sorted(_entries("/".join((str(folder), *parents))), key=lambda entry: entry.name, reverse=True):
            name, names = entry.name, [*parents, entry.name]
            link = entry.is_symlink()
            wanted = name[name.rfind(".") :].lower() in suffixes and (anywhere or depth == len(levels))
            wanted = wanted and fnmatchcase(name, last)
            if name.startswith("."):
                continue
            if os.path.isdir(entry.path) if link else entry.is_dir():  # noqa: PTH112 - raises where a link leads to itself
                if wanted:
                    raise DataError(f"{folder}: {shown('/'.join(names))} is a folder. Expected a file of that name.")
                if anywhere or (depth < len(levels) and fnmatchcase(name, levels[depth])):
                    real = inside(folder, "/".join(names), str(folder), boundary) if link else folder
                    if link and anywhere:
                        if real.is_relative_to(folder) or real in entered:
                            continue  # what it leads to is found where it is
                        entered.add(real)
                    folders.append((names, linked or link))
            elif wanted and unnamed is not None and not _is_utf8("/".join(names)):
                unnamed.append("/".join(names))
            elif wanted:
                path = _file(folder, names, entry, linked or link, boundary)
                found[path] = min(names, found.get(path, names))
    return {path: "/".join(found[path]) for path in sorted(found, key=found.__getitem__)}


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}. Check the disk and the permissions.") from error


def _file(folder: Path, names: list[str], entry: os.DirEntry[str], linked: bool, boundary: Path) -> Path:
    name = "/".join(names)
    _check_name(folder, name, str(folder))
    path = inside(folder, name, str(folder), boundary) if linked else Path(entry.path)
    plain = os.path.isfile(path) if linked else entry.is_file()  # noqa: PTH113
    if not plain and os.path.exists(path):  # noqa: PTH110
        raise DataError(f"{path} is a pipe, a device or a socket. Expected a file: remove it.")
    return path


def inside(folder: Path, name: str, where: str, boundary: Path | None = None) -> Path:
    """The resolved path of ``name`` under ``folder`` (resolved).

    Raises DataError where the name is absolute, holds ``..``, a NUL or a backslash, is not UTF-8, or leads out of
    ``boundary`` (resolved; default: ``folder``) through a link.
    """
    _check_name(folder, name, where)
    path, limit = os.path.realpath(folder / name), folder if boundary is None else boundary
    if not path.startswith(f"{str(limit).rstrip(os.sep)}{os.sep}"):
        raise DataError(
            f"{where}: {shown(name)} leads out of {limit} through a link, to {shown(path, 200)}. Put the file itself "
            "there."
        )
    return Path(path)


def _check_name(folder: Path, name: str, where: str) -> None:
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: {shown(name)} is no file name. Expected a path relative to {folder}.")
    if "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/") or os.path.isabs(name):  # noqa: PTH117
        raise DataError(
            f"{where}: file name {shown(name)} is refused. Expected a plain path under {folder}: relative, with '/', "
            "without '..'."
        )
    if not _is_utf8(name):
        raise DataError(f"{where}: the file name {shown(name)} under {folder} is not UTF-8. Rename the file.")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def present(
    paths: Sequence[Path], folder: Path, where: str, allowed: float, problems: Counter[str], mend: str = ""
) -> list[bool]:
    """Which of the listed pictures (resolved) are files. mend: what else to say to someone who misses most of them.

    The missing ones are counted in ``problems``. Raises DataError where none exists, or more than one picture and
    more than the fraction ``allowed`` is missing.
    """
    files: set[str] = set()
    for parent in {path.parent for path in paths}:
        if os.path.isdir(parent):  # noqa: PTH112
            files.update(entry.path for entry in _entries(str(parent)) if entry.is_file(follow_symlinks=False))
    found = [str(path) in files for path in paths]
    missing = [path for path, there in zip(paths, found, strict=True) if not there]
    if not paths or len(missing) == len(paths):
        raise DataError(
            f"{where}: none of its {len(paths)} pictures is under {folder}{_example(missing)}. "
            f"Correct the folder of pictures.{mend}"
        )
    if len(missing) > max(1, allowed * len(paths)):
        raise DataError(
            f"{where}: {len(missing)} of its {len(paths)} pictures are not under {folder}{_example(missing)}. "
            f"At most {allowed:.1%} may be missing: fetch them, or raise allow_missing.{mend}"
        )
    if missing:
        problems["missing pictures"] += len(missing)
        logger.warning(
            "%s: %d of %d pictures are missing and skipped%s", where, len(missing), len(paths), _example(missing)
        )
    return found


def _example(missing: Sequence[Path]) -> str:
    """ ", the first is ...", with the reason where it can be seen of one of the first hundred."""
    if not missing:
        return ""
    folder = missing[0].parent
    there = _entries(str(folder)) if os.path.isdir(folder) else []  # noqa: PTH112
    alike = {_folded(entry.name): entry.name for entry in there}
    for path in (path for path in missing[:100] if path.parent == folder):
        if os.path.lexists(path):
            return f", one is {shown(str(path), 200)} (there, but no plain file)"
        if _folded(path.name) in alike:
            other = shown(alike[_folded(path.name)])
            return f", one is {shown(str(path), 200)} (there is {other}: other capitals, or letters composed otherwise)"
    return f", the first is {shown(str(missing[0]), 200)}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def by_stem(paths: Mapping[Path, str] | Iterable[Path], folder: Path, suffix: str = "") -> dict[str, Path]:
    """Path under ``folder`` without its extension (and without ``suffix`` at its end) -> file.

    paths: files under the folder; or files -> their paths under it, as `list_pictures` gives them, links and all
    """
    stems: dict[str, Path] = {}
    for path in paths:
        name = Path(paths[path]) if isinstance(paths, Mapping) else path.relative_to(folder)
        stem = name.with_suffix("").as_posix()
        if not stem.endswith(suffix):
            continue
        stem = stem.removesuffix(suffix) if suffix else stem
        if stem in stems:
            raise DataError(f"{path} and {stems[stem]} differ only in their extension. Keep one of them.")
        stems[stem] = path
    return stems
