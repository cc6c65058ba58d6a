"""Recordings of any kind as files of channels and messages: folders and single files, whole, split or cut off."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from perception.files.safe_names import escape_unprintable
from perception.robots import mcap_file, ros1_file, sqlite_file
from perception.robots.recorded_messages import ZSTD_MAGIC, Channel, DamageError, RecordingFile
from perception.types import PerceptionError

BAG_SUFFIXES = (".mcap", ".bag", ".db3")
EXTRA_SUFFIXES = (".zstd", ".zst", ".active")
"""To the name of a file that rosbag2 has compressed whole, or whose recorder was killed."""
METADATA = "metadata.yaml"
MAX_METADATA_BYTES = 8 << 20
READERS: dict[bytes, Callable[[Path, Path], RecordingFile]] = {
    mcap_file.MAGIC: mcap_file.McapFile,
    ros1_file.MAGIC: ros1_file.Ros1File,
    sqlite_file.MAGIC: sqlite_file.SqliteFile,
}
"""What a file begins with, whatever it is called -> its reader."""


def is_bag(path: str | Path) -> bool:
    """Whether ``path`` is a file with one of `BAG_SUFFIXES`, or a folder that holds such files or a bag's
    metadata.yaml."""
    path = Path(path)
    if path.is_dir():
        return bool(_list_recordings(path)) or _read_file_names(path) is not None
    return path.is_file() and _has_suffix(path.name)


def _has_suffix(name: str) -> bool:
    name = name.lower()
    for added in EXTRA_SUFFIXES:
        name = name.removesuffix(added)
    return name.endswith(BAG_SUFFIXES)


def _list_recordings(folder: Path) -> list[Path]:
    """The files of recordings in a folder, drive_2 before drive_10."""
    found = [p for p in folder.iterdir() if p.is_file() and _has_suffix(p.name) and not p.name.startswith(".")]
    return sorted(found, key=lambda p: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", p.name)])


def _read_file_names(folder: Path) -> list[str] | None:
    """The files that metadata.yaml names, [] where it does not say; None where it is not there or not of a bag."""
    path = folder / METADATA
    try:
        if not path.is_file() or path.stat().st_size > MAX_METADATA_BYTES:
            return None
        text = path.read_text(errors="replace")
        if "rosbag2_bagfile_information" not in text:
            return None
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        names = yaml.load(text, loader)["rosbag2_bagfile_information"]["relative_file_paths"]  # noqa: S506
        return [PurePosixPath(str(name).replace("\\", "/")).name for name in names]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return []


class Recording:
    """An opened recording. Use as a context manager.

    files:  of a split bag in their order. notes: what could not be read, sentence -> count

    Raises PerceptionError where nothing of it can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.files, self.notes = path, list[RecordingFile](), dict[str, int]()
        self._stack = ExitStack()
        try:
            self._open_files()
        except BaseException:
            self.close()
            raise

    def _open_files(self) -> None:
        paths = self._find_paths()
        problems = []
        for path in paths:
            try:
                file = _open_file(path, self._stack)
            except PerceptionError as error:
                problems.append(str(error))
                continue
            except OSError as error:
                problems.append(f"{path} cannot be read: {error.strerror}. Check the disk and the permissions.")
                continue
            self._stack.callback(file.close)
            self.files.append(file)
        if not self.files:
            raise PerceptionError(problems[0])
        for problem in problems:
            self.add_note(problem)
        self._damage_at_opening = [len(file.damage) for file in self.files]

    def _find_paths(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        inside, names = _list_recordings(self.path), _read_file_names(self.path) or []
        named = [self.path / name for name in names if (self.path / name).is_file()]
        missing = [name for name in names if not (self.path / name).is_file()]
        if not inside and not named:
            raise PerceptionError(
                f"{self.path} has the {METADATA} of a bag but not its files "
                f"({', '.join(map(escape_unprintable, missing)) or 'it names none'}). Copy them there."
            )
        if missing:
            self.add_note(
                f"{self.path / METADATA} names {', '.join(map(escape_unprintable, missing))}: not there. Copy it there."
            )
        return named + [p for p in inside if p not in named] if missing or not named else named

    def add_note(self, text: str) -> None:
        self.notes[text] = self.notes.get(text, 0) + 1

    def read_messages(self, topics_and_types: set[tuple[str, str]]) -> Iterator[tuple[Channel, int, bytes]]:
        """The messages of channels whose (topic, type) is wanted, file after file, in the order of recording.

        What is damaged is left out and noted.
        """
        for file, known in zip(self.files, self._damage_at_opening, strict=True):
            del file.damage[known:]  # of a reading before
            channels = {n: c for n, c in file.channels.items() if (c.topic, c.type) in topics_and_types}
            missing = sum(c.count for c in channels.values())
            for logged, number, data in file.read_messages(set(channels)):
                missing -= 1
                yield channels[number], logged, data
            if missing > 0 and len(file.damage) == known:
                file.damage.append(f"{self.path}: {missing} of the messages that its index counts are not there")

    def damage(self) -> dict[str, int]:
        """Sentence -> count of what could not be read until now."""
        found = dict(self.notes)
        for file in self.files:
            for text in file.damage:
                found[text] = found.get(text, 0) + 1
        return found

    def close(self) -> None:
        self._stack.close()


def _open_file(path: Path, stack: ExitStack) -> RecordingFile:
    """By what the file begins with, whatever it is called."""
    head, plain = _read_head(path), path
    if not head:
        raise PerceptionError(f"{path} is empty: nothing was recorded, or it was not copied whole. Copy it again.")
    if head.startswith(ZSTD_MAGIC):
        plain = _decompress_file(path, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        head = _read_head(plain)
    for magic, reader in READERS.items():
        if head.startswith(magic):
            try:
                return reader(plain, path)
            except DamageError as error:
                raise PerceptionError(f"{path} cannot be read as a bag: {error}. Copy it again.") from error
    raise PerceptionError(
        f"{path} cannot be read as a bag: it begins with {head[:8]!r}. Expected an MCAP file, a ROS 2 bag of SQLite or "
        "a ROS 1 bag of version 2.0 (older ones: `rosbag migrate`). Copy it again."
    )


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _decompress_file(path: Path, folder: Path) -> Path:
    """A file that rosbag2 compressed whole, unpacked in a folder of its own."""
    from zstandard import ZstdDecompressor, ZstdError

    out = folder / path.stem
    try:
        with path.open("rb") as packed, out.open("wb") as plain:
            shutil.copyfileobj(ZstdDecompressor().stream_reader(packed), plain, 1 << 20)
    except ZstdError as error:
        raise PerceptionError(f"{path} cannot be unpacked: {error}. Copy it again.") from error
    return out
