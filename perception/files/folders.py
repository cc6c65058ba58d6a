"""Finding the files of a data set, and refusing names that lead out of it."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from perception.files.images import IMAGE_SUFFIXES
from perception.files.strict_json import quote_value
from perception.types import DataError

logger = logging.getLogger(__name__)


def require_folder(root: Path, name: str, what: str) -> Path:
    """``root / name`` with links resolved. Raises DataError where it is no folder."""
    folder = root / name
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where the name is too long
        raise DataError(f"No folder of {what} at {folder}. Correct the path in the recipe, or data.root.")
    return folder.resolve()


def require_file(root: Path, name: str, what: str) -> Path:
    """``root / name``. Raises DataError where it is no file."""
    path = root / name
    if not os.path.isfile(path):  # noqa: PTH113
        raise DataError(f"No file of {what} at {path}. Correct the path in the recipe, or data.root.")
    return path


def find_boundary(folder: Path, root: Path) -> Path:
    """What links in a folder (resolved) may not lead out of: the data root, or the folder where it lies elsewhere."""
    root = Path(os.path.realpath(root))
    return root if folder.is_relative_to(root) else folder


def list_images(
    folder: Path, pattern: str = "**/*", root: Path | None = None, undecodable_names: list[str] | None = None
) -> dict[Path, str]:
    """The image files under a folder (resolved), resolved -> path under it, sorted by the latter.

    Hidden files and folders (``._a.jpg``, ``.ipynb_checkpoints``) are none. A link to nothing is listed: it is a
    missing image. Raises DataError where there is none, and where one is no file, leads out, or has a name that is
    not UTF-8.

    pattern: names of folders and of the file, ``*`` stands for any; ``**`` as the only folder: at any depth
    root:    folder that links may not lead out of; default: ``folder``
    undecodable_names: gets the names that are not UTF-8, which are then left out; None = they are an error
    """
    files = list_files_under(folder, IMAGE_SUFFIXES, root, pattern, undecodable_names)
    if not files and not undecodable_names:
        raise DataError(
            f"No image under {folder} ({pattern}). Expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return files


def list_files_under(
    folder: Path,
    suffixes: Collection[str],
    root: Path | None = None,
    pattern: str = "**/*",
    undecodable_names: list[str] | None = None,
) -> dict[Path, str]:
    """`list_images` of files with other ``suffixes`` (in lower case); may be empty."""
    *levels, last = pattern.split("/")
    anywhere, boundary = levels == ["**"], folder if root is None else find_boundary(folder, root)
    found: dict[Path, list[str]] = {}
    folders: list[tuple[list[str], bool]] = [([], False)]
    entered: set[Path] = set()
    while folders:
        parents, linked = folders.pop()
        depth = len(parents)
        for entry in sorted(
            _scan_folder("/".join((str(folder), *parents))), key=lambda entry: entry.name, reverse=True
        ):
            name, names = entry.name, [*parents, entry.name]
            link = entry.is_symlink()
            wanted = name[name.rfind(".") :].lower() in suffixes and (anywhere or depth == len(levels))
            wanted = wanted and fnmatchcase(name, last)
            if name.startswith("."):
                continue
            if os.path.isdir(entry.path) if link else entry.is_dir():  # noqa: PTH112 - raises where a link leads to itself
                if wanted:
                    raise DataError(
                        f"{folder}: {quote_value('/'.join(names))} is a folder. Expected a file of that name."
                    )
                if anywhere or (depth < len(levels) and fnmatchcase(name, levels[depth])):
                    real = resolve_inside(folder, "/".join(names), str(folder), boundary) if link else folder
                    if link and anywhere:
                        if real.is_relative_to(folder) or real in entered:
                            continue  # what it leads to is found where it is
                        entered.add(real)
                    folders.append((names, linked or link))
            elif wanted and undecodable_names is not None and not _is_utf8("/".join(names)):
                undecodable_names.append("/".join(names))
            elif wanted:
                path = _resolve_entry(folder, names, entry, linked or link, boundary)
                found[path] = min(names, found.get(path, names))
    return {path: "/".join(found[path]) for path in sorted(found, key=found.__getitem__)}


def _scan_folder(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}. Check the disk and the permissions.") from error


def _resolve_entry(folder: Path, names: list[str], entry: os.DirEntry[str], linked: bool, boundary: Path) -> Path:
    name = "/".join(names)
    _check_name(folder, name, str(folder))
    path = resolve_inside(folder, name, str(folder), boundary) if linked else Path(entry.path)
    plain = os.path.isfile(path) if linked else entry.is_file()  # noqa: PTH113
    if not plain and os.path.exists(path):  # noqa: PTH110
        raise DataError(f"{path} is a pipe, a device or a socket. Expected a file: remove it.")
    return path


def resolve_inside(folder: Path, name: str, where: str, boundary: Path | None = None) -> Path:
    """The resolved path of ``name`` under ``folder`` (resolved).

    Raises DataError where the name is absolute, holds ``..``, a NUL or a backslash, is not UTF-8, or leads out of
    ``boundary`` (resolved; default: ``folder``) through a link.
    """
    _check_name(folder, name, where)
    path, limit = os.path.realpath(folder / name), folder if boundary is None else boundary
    if not path.startswith(f"{str(limit).rstrip(os.sep)}{os.sep}"):
        raise DataError(
            f"{where}: {quote_value(name)} leads out of {limit} through a link, to "
            f"{quote_value(path, 200)}. Put the file itself "
            "there."
        )
    return Path(path)


def _check_name(folder: Path, name: str, where: str) -> None:
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: {quote_value(name)} is no file name. Expected a path relative to {folder}.")
    if "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/") or os.path.isabs(name):  # noqa: PTH117
        raise DataError(
            f"{where}: file name {quote_value(name)} is refused. Expected a plain "
            f"path under {folder}: relative, with '/', "
            "without '..'."
        )
    if not _is_utf8(name):
        raise DataError(f"{where}: the file name {quote_value(name)} under {folder} is not UTF-8. Rename the file.")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_present_files(
    paths: Sequence[Path], folder: Path, where: str, max_missing: float, problems: Counter[str], hint: str = ""
) -> list[bool]:
    """Which of the listed images (resolved) are files. hint: what else to say to someone who misses most of them.

    The missing ones are counted in ``problems``. Raises DataError where none exists, or more than one image and
    more than the fraction ``max_missing`` is missing.
    """
    files: set[str] = set()
    for parent in {path.parent for path in paths}:
        if os.path.isdir(parent):  # noqa: PTH112
            files.update(entry.path for entry in _scan_folder(str(parent)) if entry.is_file(follow_symlinks=False))
    found = [str(path) in files for path in paths]
    missing = [path for path, there in zip(paths, found, strict=True) if not there]
    if not paths or len(missing) == len(paths):
        raise DataError(
            f"{where}: none of its {len(paths)} images is under {folder}{_describe_missing(missing)}. "
            f"Correct the folder of images.{hint}"
        )
    if len(missing) > max(1, max_missing * len(paths)):
        raise DataError(
            f"{where}: {len(missing)} of its {len(paths)} images are not under {folder}{_describe_missing(missing)}. "
            f"At most {max_missing:.1%} may be missing: fetch them, or raise max_missing.{hint}"
        )
    if missing:
        problems["missing images"] += len(missing)
        logger.warning(
            "%s: %d of %d images are missing and skipped%s",
            where,
            len(missing),
            len(paths),
            _describe_missing(missing),
        )
    return found


def _describe_missing(missing: Sequence[Path]) -> str:
    """ ", the first is ...", with the reason where it can be seen of one of the first hundred."""
    if not missing:
        return ""
    folder = missing[0].parent
    there = _scan_folder(str(folder)) if os.path.isdir(folder) else []  # noqa: PTH112
    alike = {_fold_name(entry.name): entry.name for entry in there}
    for path in (path for path in missing[:100] if path.parent == folder):
        if os.path.lexists(path):
            return f", one is {quote_value(str(path), 200)} (there, but no plain file)"
        if _fold_name(path.name) in alike:
            other = quote_value(alike[_fold_name(path.name)])
            return (
                f", one is {quote_value(str(path), 200)} (there is {other}: other "
                "capitals, or letters composed otherwise)"
            )
    return f", the first is {quote_value(str(missing[0]), 200)}"


def _fold_name(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def index_by_stem(paths: Mapping[Path, str] | Iterable[Path], folder: Path, suffix: str = "") -> dict[str, Path]:
    """Path under ``folder`` without its extension (and without ``suffix`` at its end) -> file.

    paths: files under the folder; or files -> their paths under it, as `list_images` gives them, links and all
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
