"""The images and videos that a path, folder, glob, numbered pattern or list names."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perception.files.file_types import HEAD_BYTES, detect_file_type, is_animated
from perception.files.images import IMAGE_SUFFIXES
from perception.files.safe_names import escape_unprintable
from perception.files.unsupported_formats import UNSUPPORTED_SUFFIXES, describe_unsupported
from perception.types import PerceptionError

VIDEO_SUFFIXES = frozenset(
    (
        ".3gp", ".asf", ".avi", ".flv", ".insv", ".lrv", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov",
        ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
    )
)  # fmt: skip
_SCRIPT_SUFFIXES = frozenset((".ts", ".mts"))
"""Also TypeScript."""
LIST_SUFFIXES = frozenset((".txt", ".csv", ".m3u", ".m3u8"))
MAX_LIST_BYTES = 64 << 20
_SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
"""Folders that operating systems and disk stations make, with thumbnails and what was deleted."""
_HINT = "Give an image, folder, glob, video, camera or URL."

MediaKind = Literal["image", "video", "url"]


@dataclass(frozen=True, slots=True)
class FoundFile:
    """path: what is opened. id: unique, usable as a relative path. problem: why it cannot be read; kind: "image"."""

    id: str
    path: str
    kind: MediaKind
    problem: str = ""


def find_files(pattern: str) -> list[FoundFile]:
    """Raises PerceptionError where ``pattern`` names nothing that can be read."""
    if os.path.isdir(pattern):  # noqa: PTH112
        return _list_folder(pattern)
    if os.path.isfile(pattern):  # noqa: PTH113
        suffix = Path(pattern).suffix.lower()
        if suffix in LIST_SUFFIXES and _read_head(pattern)[1] is None:
            return _read_list_file(pattern)
        return [_inspect_file(pattern)]
    paths = _expand_numbered(pattern) or _expand_glob(pattern)
    root = _common_folder(paths)
    found = [item for path in paths if (item := _classify(path, os.path.relpath(path, root)))]
    if not found:
        raise PerceptionError(
            f"No image or video at {escape_unprintable(pattern)[:300]}: {_summarize_suffixes(paths)}. {_HINT}"
        )
    return found


def _summarize_suffixes(paths: Iterable[str]) -> str:
    counts = Counter(Path(path).suffix.lower() or "no suffix" for path in paths)
    if not counts:
        return "nothing there"
    kinds = ", ".join(f"{count} of {suffix}" for suffix, count in counts.most_common(5))
    return f"{counts.total()} files, none with a suffix of an image or video ({escape_unprintable(kinds)})"


def _inspect_file(path: str) -> FoundFile:
    """A file that was named by itself: its content counts more than its suffix."""
    found = _classify(path, os.path.basename(path))  # noqa: PTH119
    if found:
        return found
    head, kind = _read_head(path)
    if kind:
        return _make_entry(path, os.path.basename(path), "image" if kind == "image" else "video")  # noqa: PTH119
    if not os.access(path, os.R_OK):
        raise PerceptionError(f"{escape_unprintable(path)} cannot be read. Check its permissions.")
    what = describe_unsupported(head) or (f"begins with {head[:16]!r}" if head else "is empty")
    raise PerceptionError(f"No image or video at {escape_unprintable(path)}: it {what}. {_HINT}")


def _classify(path: str, name: str) -> FoundFile | None:
    """By the suffix; a file without one by its content."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if suffix == ".gif":
        return _make_entry(path, name, "video" if _is_animated(path) else "image")
    if suffix in IMAGE_SUFFIXES:
        return _make_entry(path, name, "image")
    if suffix in VIDEO_SUFFIXES and not (suffix in _SCRIPT_SUFFIXES and _read_head(path)[1] is None):
        return _make_entry(path, name, "video")
    if suffix in UNSUPPORTED_SUFFIXES:
        head, kind = _read_head(path)
        if kind:  # a JPEG that is called HEIC
            return _make_entry(path, name, "image" if kind == "image" else "video")
        what = describe_unsupported(head, path) or f"begins with {head[:16]!r}"
        return _make_entry(path, name, "image", f"{escape_unprintable(path)} {what}.")
    if not suffix:
        kind = _read_head(path)[1]
        return _make_entry(path, name, "image" if kind == "image" else "video") if kind else None
    return None


def _make_entry(path: str, name: str, kind: MediaKind, problem: str = "") -> FoundFile:
    try:
        f"{path}{name}".encode()
    except UnicodeEncodeError:  # the operating system's bytes, which neither JSON nor OpenCV takes
        if kind == "image":
            return FoundFile(_escape_name(name), path, kind, problem)
        problem = (
            f"{escape_unprintable(path)} has a name that is not UTF-8. Rename "
            "it (convmv --notest -f latin1 -t utf8 FILE)."
        )
        return FoundFile(_escape_name(name), _escape_name(path), "image", problem)
    if kind == "video" and os.path.isfile(path) and not os.path.getsize(path):  # noqa: PTH113, PTH202
        kind, problem = "image", f"{escape_unprintable(path)} is empty. Copy it again."
    return FoundFile(name.replace(os.sep, "/"), path, kind, problem)


def _escape_name(name: str) -> str:
    """Bytes that are not UTF-8 as %E9."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in name)


def _read_head(path: str) -> tuple[bytes, str | None]:
    """The first bytes, and what they are; nothing where the file cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(HEAD_BYTES)
    except OSError:
        return b"", None
    return head, detect_file_type(head)


def _is_animated(path: str) -> bool:
    try:
        return is_animated(Path(path))
    except OSError:
        return False


def _list_folder(root: str) -> list[FoundFile]:
    found: list[FoundFile] = []
    seen: Counter[str] = Counter()
    stems: set[str] = set()
    for path, name, trouble in _walk(root):
        item = _make_entry(path, name, "image", trouble) if trouble else _classify(path, name)
        if item is None:
            seen[path] += 1
            continue
        found.append(item)
        if not item.problem and not _is_camera_photo(path):
            stems.add(os.path.splitext(path)[0])  # noqa: PTH122
    # A camera's raw image beside its JPEG is the same image.
    found = [item for item in found if not (_is_camera_photo(item.path) and os.path.splitext(item.path)[0] in stems)]  # noqa: PTH122
    if not found:
        raise PerceptionError(f"No image or video at {escape_unprintable(root)}: {_summarize_suffixes(seen)}. {_HINT}")
    return sorted(found, key=lambda item: item.id.split("/"))


def _is_camera_photo(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in UNSUPPORTED_SUFFIXES  # noqa: PTH122


def _walk(root: str) -> Iterator[tuple[str, str, str]]:
    """(path, name below ``root``, trouble) of every file. Links to folders are followed, each folder is seen once.

    Hidden files and folders are none, as in training.
    """
    visited: set[tuple[int, int]] = set()
    folders, links = [(root, "")], [("", "")][:0]
    while folders or links:
        folder, prefix = folders.pop() if folders else links.pop()
        try:
            state = os.stat(folder)  # noqa: PTH116
            if (state.st_dev, state.st_ino) in visited:
                continue
            visited.add((state.st_dev, state.st_ino))
            with os.scandir(folder) as entries:
                inside = list(entries)
        except OSError as error:
            yield folder, prefix.rstrip("/") or ".", f"{escape_unprintable(folder)} cannot be listed: {error.strerror}."
            continue
        for entry in inside:
            if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
                continue
            link = entry.is_symlink()
            if os.path.isdir(entry.path) if link else entry.is_dir():  # noqa: PTH112 - is_dir raises where a link loops
                (links if link else folders).append((entry.path, f"{prefix}{entry.name}/"))
            elif link or entry.is_file():
                yield entry.path, prefix + entry.name, ""


def _expand_glob(glob_pattern: str) -> list[str]:
    """Files of a glob. What is there by the very name is no pattern: ``cats [1]/*.jpg``."""
    pattern = done = ""
    for part in re.split(r"(?<=[/\\])" if os.sep == "\\" else r"(?<=/)", glob_pattern):
        literal = os.path.lexists(done + part.rstrip("/")) if part.rstrip("/") else True
        pattern += glob.escape(part) if literal else part
        done += part
    try:
        found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - absolute too
    except (ValueError, re.error, RecursionError):
        return []
    given = len(_SYSTEM_FOLDERS.intersection(Path(glob_pattern).parts))
    return sorted(
        path
        for path in found
        if os.path.isfile(path) and len(_SYSTEM_FOLDERS.intersection(Path(path).parts)) <= given  # noqa: PTH113
    )


def _expand_numbered(text: str) -> list[str]:
    """Files of a pattern like FFmpeg's, ``frame_%04d.png``, by their numbers."""
    folder, name = os.path.split(text)
    parts = re.split(r"%0?(\d*)d", name)
    if len(parts) != 3:
        return []
    wanted = re.compile(rf"{re.escape(parts[0])}(\d{{{parts[1] or 1},}}){re.escape(parts[2])}")
    try:
        names = os.listdir(folder or ".")  # noqa: PTH208
    except OSError:
        return []
    numbers = {name: int(match[1]) for name in names if (match := wanted.fullmatch(name))}
    return [os.path.join(folder, name) for name in sorted(numbers, key=numbers.__getitem__)]  # noqa: PTH118


def _read_list_file(path: str) -> list[FoundFile]:
    """What the lines of a list name: paths relative to it (or to the current folder), addresses; # begins a comment."""
    entries = _read_list_lines(path)
    folder = os.path.dirname(path)  # noqa: PTH120
    paths = [name if _is_address(name) else _resolve_path(folder, name) for name in entries]
    files = [place for place in paths if not _is_address(place)]
    there = [place for place in files if os.path.isfile(place)]  # noqa: PTH113
    if not there and not any(map(_is_address, paths)):
        first = f", the first is {escape_unprintable(entries[0][:100])!r}" if entries else ""
        raise PerceptionError(
            f"No image or video at {escape_unprintable(path)}: none of its {len(entries)} lines names a file{first}. "
            "Expected one path a line, relative to the list."
        )
    root = _common_folder(there or ["."])
    if paths and path.lower().endswith(".csv") and paths[0] not in there and not _is_address(paths[0]):
        paths = paths[1:]  # its heads
    found: list[FoundFile] = []
    for number, place in enumerate(paths, 1):
        if _is_address(place):
            found.append(FoundFile(f"address{number}", place, "url"))
            continue
        name = os.path.relpath(place, root).replace("..", "_")
        if not os.path.isfile(place):  # noqa: PTH113
            told = f"{escape_unprintable(place)}, which {escape_unprintable(path)} names, is no file. Correct the list."
            found.append(_make_entry(place, name, "image", told))
            continue
        try:
            item = _inspect_file(place)
            found.append(_make_entry(place, name, item.kind, item.problem))
        except PerceptionError as error:
            found.append(_make_entry(place, name, "image", str(error)))
    return found


def _read_list_lines(path: str) -> list[str]:
    if os.path.getsize(path) > MAX_LIST_BYTES:  # noqa: PTH202
        raise PerceptionError(f"{escape_unprintable(path)} is no list: it has more than {MAX_LIST_BYTES >> 20} MB.")
    data = Path(path).read_bytes()
    text = data.decode("utf-8-sig", "surrogateescape")
    if "\0" in text:
        raise PerceptionError(f"No image or video at {escape_unprintable(path)}: it is no text. {_HINT}")
    lines = [line.strip() for line in text.splitlines()]
    if path.lower().endswith(".csv"):
        lines = [row[0].strip() for row in csv.reader(io.StringIO("\n".join(lines))) if row]
    return [line for line in lines if line and not line.startswith("#")]


def _is_address(name: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


def _resolve_path(folder: str, name: str) -> str:
    beside = os.path.join(folder, os.path.expanduser(name))  # noqa: PTH111, PTH118
    return beside if os.path.lexists(beside) or not os.path.lexists(name) else name


def _common_folder(paths: list[str]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]) if paths else "."  # noqa: PTH100, PTH120
