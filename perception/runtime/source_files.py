"""The pictures and films that a path, folder, glob, numbered pattern or list names."""

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

from perception.files.file_types import HEAD, kind_of, moves
from perception.files.images import PICTURE_SUFFIXES
from perception.files.safe_names import printable
from perception.files.unsupported_formats import PHOTO_SUFFIXES, unread
from perception.types import PerceptionError

VIDEO_SUFFIXES = frozenset(
    (
        ".3gp", ".asf", ".avi", ".flv", ".insv", ".lrv", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov",
        ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
    )
)  # fmt: skip
_SCRIPTS = frozenset((".ts", ".mts"))
"""Also TypeScript."""
LIST_SUFFIXES = frozenset((".txt", ".csv", ".m3u", ".m3u8"))
MAX_LIST = 64 << 20
_MACHINES = frozenset(("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"))
"""Folders that operating systems and disk stations make, with thumbnails and what was deleted."""
_GIVE = "Give an image, folder, glob, video, camera or URL."

Kind = Literal["picture", "video", "address"]


@dataclass(frozen=True, slots=True)
class Found:
    """path: what is opened. id: unique, usable as a relative path. trouble: why it cannot be read; kind: "picture"."""

    id: str
    path: str
    kind: Kind
    trouble: str = ""


def find_files(text: str) -> list[Found]:
    """Raises PerceptionError where ``text`` names nothing that can be read."""
    if os.path.isdir(text):  # noqa: PTH112
        return _of_folder(text)
    if os.path.isfile(text):  # noqa: PTH113
        suffix = Path(text).suffix.lower()
        if suffix in LIST_SUFFIXES and _head(text)[1] is None:
            return _of_list(text)
        return [_of_file(text)]
    paths = _numbered(text) or _globbed(text)
    root = _common_folder(paths)
    found = [item for path in paths if (item := _classified(path, os.path.relpath(path, root)))]
    if not found:
        raise PerceptionError(f"No picture or video at {printable(text)[:300]}: {_seen(paths)}. {_GIVE}")
    return found


def _seen(paths: Iterable[str]) -> str:
    counts = Counter(Path(path).suffix.lower() or "no suffix" for path in paths)
    if not counts:
        return "nothing there"
    kinds = ", ".join(f"{count} of {suffix}" for suffix, count in counts.most_common(5))
    return f"{counts.total()} files, none with a suffix of a picture or video ({printable(kinds)})"


def _of_file(path: str) -> Found:
    """A file that was named by itself: its content counts more than its suffix."""
    found = _classified(path, os.path.basename(path))  # noqa: PTH119
    if found:
        return found
    head, kind = _head(path)
    if kind:
        return _told(path, os.path.basename(path), "picture" if kind == "picture" else "video")  # noqa: PTH119
    if not os.access(path, os.R_OK):
        raise PerceptionError(f"{printable(path)} cannot be read. Check its permissions.")
    what = unread(head) or (f"begins with {head[:16]!r}" if head else "is empty")
    raise PerceptionError(f"No picture or video at {printable(path)}: it {what}. {_GIVE}")


def _classified(path: str, name: str) -> Found | None:
    """By the suffix; a file without one by its content."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if suffix == ".gif":
        return _told(path, name, "video" if _moves(path) else "picture")
    if suffix in PICTURE_SUFFIXES:
        return _told(path, name, "picture")
    if suffix in VIDEO_SUFFIXES and not (suffix in _SCRIPTS and _head(path)[1] is None):
        return _told(path, name, "video")
    if suffix in PHOTO_SUFFIXES:
        head, kind = _head(path)
        if kind:  # a JPEG that is called HEIC
            return _told(path, name, "picture" if kind == "picture" else "video")
        what = unread(head, path) or f"begins with {head[:16]!r}"
        return _told(path, name, "picture", f"{printable(path)} {what}.")
    if not suffix:
        kind = _head(path)[1]
        return _told(path, name, "picture" if kind == "picture" else "video") if kind else None
    return None


def _told(path: str, name: str, kind: Kind, trouble: str = "") -> Found:
    try:
        f"{path}{name}".encode()
    except UnicodeEncodeError:  # the operating system's bytes, which neither JSON nor OpenCV takes
        if kind == "picture":
            return Found(_escaped(name), path, kind, trouble)
        trouble = f"{printable(path)} has a name that is not UTF-8. Rename it (convmv --notest -f latin1 -t utf8 FILE)."
        return Found(_escaped(name), _escaped(path), "picture", trouble)
    if kind == "video" and os.path.isfile(path) and not os.path.getsize(path):  # noqa: PTH113, PTH202
        kind, trouble = "picture", f"{printable(path)} is empty. Copy it again."
    return Found(name.replace(os.sep, "/"), path, kind, trouble)


def _escaped(name: str) -> str:
    """Bytes that are not UTF-8 as %E9."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in name)


def _head(path: str) -> tuple[bytes, str | None]:
    """The first bytes, and what they are; nothing where the file cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(HEAD)
    except OSError:
        return b"", None
    return head, kind_of(head)


def _moves(path: str) -> bool:
    try:
        return moves(Path(path))
    except OSError:
        return False


def _of_folder(root: str) -> list[Found]:
    found: list[Found] = []
    seen: Counter[str] = Counter()
    stems: set[str] = set()
    for path, name, trouble in _walk(root):
        item = _told(path, name, "picture", trouble) if trouble else _classified(path, name)
        if item is None:
            seen[path] += 1
            continue
        found.append(item)
        if not item.trouble and not _is_photo(path):
            stems.add(os.path.splitext(path)[0])  # noqa: PTH122
    # A camera's raw picture beside its JPEG is the same picture.
    found = [item for item in found if not (_is_photo(item.path) and os.path.splitext(item.path)[0] in stems)]  # noqa: PTH122
    if not found:
        raise PerceptionError(f"No picture or video at {printable(root)}: {_seen(seen)}. {_GIVE}")
    return sorted(found, key=lambda item: item.id.split("/"))


def _is_photo(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in PHOTO_SUFFIXES  # noqa: PTH122


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
            yield folder, prefix.rstrip("/") or ".", f"{printable(folder)} cannot be listed: {error.strerror}."
            continue
        for entry in inside:
            if entry.name.startswith(".") or entry.name in _MACHINES:
                continue
            link = entry.is_symlink()
            if os.path.isdir(entry.path) if link else entry.is_dir():  # noqa: PTH112 - is_dir raises where a link loops
                (links if link else folders).append((entry.path, f"{prefix}{entry.name}/"))
            elif link or entry.is_file():
                yield entry.path, prefix + entry.name, ""


def _globbed(text: str) -> list[str]:
    """Files of a glob. What is there by the very name is no pattern: ``cats [1]/*.jpg``."""
    pattern = done = ""
    for part in re.split(r"(?<=[/\\])" if os.sep == "\\" else r"(?<=/)", text):
        literal = os.path.lexists(done + part.rstrip("/")) if part.rstrip("/") else True
        pattern += glob.escape(part) if literal else part
        done += part
    try:
        found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - absolute too
    except (ValueError, re.error, RecursionError):
        return []
    given = len(_MACHINES.intersection(Path(text).parts))
    return sorted(
        path
        for path in found
        if os.path.isfile(path) and len(_MACHINES.intersection(Path(path).parts)) <= given  # noqa: PTH113
    )


def _numbered(text: str) -> list[str]:
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


def _of_list(path: str) -> list[Found]:
    """What the lines of a list name: paths relative to it (or to the current folder), addresses; # begins a comment."""
    entries = _entries(path)
    folder = os.path.dirname(path)  # noqa: PTH120
    paths = [name if _is_address(name) else _placed(folder, name) for name in entries]
    files = [place for place in paths if not _is_address(place)]
    there = [place for place in files if os.path.isfile(place)]  # noqa: PTH113
    if not there and not any(map(_is_address, paths)):
        first = f", the first is {printable(entries[0][:100])!r}" if entries else ""
        raise PerceptionError(
            f"No picture or video at {printable(path)}: none of its {len(entries)} lines names a file{first}. "
            "Expected one path a line, relative to the list."
        )
    root = _common_folder(there or ["."])
    if paths and path.lower().endswith(".csv") and paths[0] not in there and not _is_address(paths[0]):
        paths = paths[1:]  # its heads
    found: list[Found] = []
    for number, place in enumerate(paths, 1):
        if _is_address(place):
            found.append(Found(f"address{number}", place, "address"))
            continue
        name = os.path.relpath(place, root).replace("..", "_")
        if not os.path.isfile(place):  # noqa: PTH113
            told = f"{printable(place)}, which {printable(path)} names, is no file. Correct the list."
            found.append(_told(place, name, "picture", told))
            continue
        try:
            item = _of_file(place)
            found.append(_told(place, name, item.kind, item.trouble))
        except PerceptionError as error:
            found.append(_told(place, name, "picture", str(error)))
    return found


def _entries(path: str) -> list[str]:
    if os.path.getsize(path) > MAX_LIST:  # noqa: PTH202
        raise PerceptionError(f"{printable(path)} is no list: it has more than {MAX_LIST >> 20} MB.")
    data = Path(path).read_bytes()
    text = data.decode("utf-8-sig", "surrogateescape")
    if "\0" in text:
        raise PerceptionError(f"No picture or video at {printable(path)}: it is no text. {_GIVE}")
    lines = [line.strip() for line in text.splitlines()]
    if path.lower().endswith(".csv"):
        lines = [row[0].strip() for row in csv.reader(io.StringIO("\n".join(lines))) if row]
    return [line for line in lines if line and not line.startswith("#")]


def _is_address(name: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


def _placed(folder: str, name: str) -> str:
    beside = os.path.join(folder, os.path.expanduser(name))  # noqa: PTH111, PTH118
    return beside if os.path.lexists(beside) or not os.path.lexists(name) else name


def _common_folder(paths: list[str]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths]) if paths else "."  # noqa: PTH100, PTH120
