"""Search for the files of a data set. Names that point outside of it are refused."""

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
    """Return ``root / name`` with links resolved. Raises DataError if it is not a folder."""
    folder = root / name
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where the name is too long
        raise DataError(f"No folder of {what} at {folder}. Correct the path in the recipe, or data.root.")
    return folder.resolve()


def require_file(root: Path, name: str, what: str) -> Path:
    """Return ``root / name``. Raises DataError if it is not a file."""
    path = root / name
    if not os.path.isfile(path):  # noqa: PTH113
        raise DataError(f"No file of {what} at {path}. Correct the path in the recipe, or data.root.")
    return path


def find_boundary(folder: Path, root: Path) -> Path:
    """Return the folder that links in ``folder`` must stay in: the data root, or ``folder`` if it is outside of it."""
    root = Path(os.path.realpath(root))
    return root if folder.is_relative_to(root) else folder


def list_images(
    folder: Path, pattern: str = "**/*", root: Path | None = None, undecodable_names: list[str] | None = None
) -> dict[Path, str]:
    """List the image files under a folder.

    Hidden files and folders (``._a.jpg``, ``.ipynb_checkpoints``) are skipped. A broken link is listed, as a missing
    image.

    Args:
        folder: resolved path.
        pattern: names of folders and of the file; ``*`` matches any text, ``**`` as the only folder any depth.
        root: folder that links must stay in; default: ``folder``.
        undecodable_names: receives the names that are not UTF-8, which are then skipped; None = they are an error.

    Returns:
        Resolved path -> path relative to ``folder``, sorted by the latter.

    Raises:
        DataError: there is no image, or one is not a file, is outside of ``root``, or has a name that is not UTF-8.
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
    """List files like `list_images`, but with other ``suffixes`` (in lower case). The result may be empty."""
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
                            continue  # the target is listed at its own place
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
    """Return the resolved path of ``name`` under ``folder``.

    Args:
        folder: resolved path.
        name: relative path with ``/``.
        where: file or source, for messages.
        boundary: resolved folder that links must stay in; default: ``folder``.

    Raises:
        DataError: the name is absolute, contains ``..``, a NUL or a backslash, is not UTF-8, or is a link to a file
            outside of ``boundary``.
    """
    _check_name(folder, name, where)
    path, limit = os.path.realpath(folder / name), folder if boundary is None else boundary
    if not path.startswith(f"{str(limit).rstrip(os.sep)}{os.sep}"):
        raise DataError(
            f"{where}: {quote_value(name)} leads out of {limit}: it is a link to {quote_value(path, 200)}. "
            "Replace the link by the file itself."
        )
    return Path(path)


def _check_name(folder: Path, name: str, where: str) -> None:
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: {quote_value(name)} is not a file name. Expected a path relative to {folder}.")
    if "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/") or os.path.isabs(name):  # noqa: PTH117
        raise DataError(
            f"{where}: file name {quote_value(name)} is refused. Expected a plain path under {folder}: "
            "relative, with '/', without '..'."
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
    """Check which of the listed images exist.

    Args:
        paths: resolved paths.
        folder: folder of the images, for messages.
        where: file or source, for messages.
        max_missing: largest fraction of missing images; one missing image is always accepted.
        problems: receives the number of missing images.
        hint: text that is added to the errors.

    Returns:
        Whether each path is a file.

    Raises:
        DataError: no image exists, or too many are missing.
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
    """Text ", the first is ...", with the reason if it is visible for one of the first hundred."""
    if not missing:
        return ""
    folder = missing[0].parent
    there = _scan_folder(str(folder)) if os.path.isdir(folder) else []  # noqa: PTH112
    alike = {_fold_name(entry.name): entry.name for entry in there}
    for path in (path for path in missing[:100] if path.parent == folder):
        if os.path.lexists(path):
            return f", one is {quote_value(str(path), 200)} (it exists, but is not a regular file)"
        if _fold_name(path.name) in alike:
            other = quote_value(alike[_fold_name(path.name)])
            return (
                f", one is {quote_value(str(path), 200)} (there is {other}: different capitals or Unicode composition)"
            )
    return f", the first is {quote_value(str(missing[0]), 200)}"


def _fold_name(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def index_by_stem(paths: Mapping[Path, str] | Iterable[Path], folder: Path, suffix: str = "") -> dict[str, Path]:
    """Map each path under ``folder``, without extension and ``suffix``, to its file.

    Args:
        paths: files under the folder, or files -> their paths relative to it, as `list_images` returns them.
        folder: folder of the files.
        suffix: end of the stems. Files with another end are skipped.

    Raises:
        DataError: two files differ only in their extension.
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
