"""Opens recordings of any format: folders and single files, complete, split or truncated."""

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
"""Added to the name of a file that rosbag2 compressed as a whole, or whose recorder was killed."""
METADATA = "metadata.yaml"
MAX_METADATA_BYTES = 8 << 20
READERS: dict[bytes, Callable[[Path, Path], RecordingFile]] = {
    mcap_file.MAGIC: mcap_file.McapFile,
    ros1_file.MAGIC: ros1_file.Ros1File,
    sqlite_file.MAGIC: sqlite_file.SqliteFile,
}
"""First bytes of a file -> its reader. The file name is not used."""


def is_bag(path: str | Path) -> bool:
    """Return whether ``path`` is a file with one of `BAG_SUFFIXES`, or a folder with such files or bag metadata."""
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
    """The recording files in a folder, in natural order (drive_2 before drive_10)."""
    found = [p for p in folder.iterdir() if p.is_file() and _has_suffix(p.name) and not p.name.startswith(".")]
    return sorted(found, key=lambda p: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", p.name)])


def _read_file_names(folder: Path) -> list[str] | None:
    """The files listed in metadata.yaml, [] if it is not readable; None if it is missing or not of a bag."""
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

    Attributes:
        path: file or folder.
        files: opened files, in the order of a split bag.
        notes: sentence -> count for the parts that could not be read.

    Raises:
        PerceptionError: no part of it can be read.
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
                f"{self.path} contains the {METADATA} of a bag but not its files "
                f"({', '.join(map(escape_unprintable, missing)) or 'it lists none'}). Copy them there."
            )
        if missing:
            self.add_note(
                f"{self.path / METADATA} lists {', '.join(map(escape_unprintable, missing))}: not found. Copy it there."
            )
        return named + [p for p in inside if p not in named] if missing or not named else named

    def add_note(self, text: str) -> None:
        """Count one part that could not be read."""
        self.notes[text] = self.notes.get(text, 0) + 1

    def read_messages(self, topics_and_types: set[tuple[str, str]]) -> Iterator[tuple[Channel, int, bytes]]:
        """Yield (channel, log time, data) for these (topic, type) pairs, file by file, in recording order.

        Damaged messages are skipped and reported by `damage`.
        """
        for file, known in zip(self.files, self._damage_at_opening, strict=True):
            del file.damage[known:]  # of an earlier pass
            channels = {n: c for n, c in file.channels.items() if (c.topic, c.type) in topics_and_types}
            missing = sum(c.count for c in channels.values())
            for logged, number, data in file.read_messages(set(channels)):
                missing -= 1
                yield channels[number], logged, data
            if missing > 0 and len(file.damage) == known:
                file.damage.append(f"{self.path}: {missing} of the messages counted in its index are missing")

    def damage(self) -> dict[str, int]:
        """Return sentence -> count for the parts that could not be read so far."""
        found = dict(self.notes)
        for file in self.files:
            for text in file.damage:
                found[text] = found.get(text, 0) + 1
        return found

    def close(self) -> None:
        """Close all files and delete temporary ones."""
        self._stack.close()


def _open_file(path: Path, stack: ExitStack) -> RecordingFile:
    """Open a file with the reader for its first bytes, for any file name."""
    head, plain = _read_head(path), path
    if not head:
        raise PerceptionError(f"{path} is empty: nothing was recorded, or the copy is incomplete. Copy it again.")
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
        f"{path} cannot be read as a bag: it begins with {head[:8]!r}. Expected an MCAP file, a ROS 2 SQLite bag or "
        "a ROS 1 bag of version 2.0 (older versions: `rosbag migrate`). Copy it again."
    )


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _decompress_file(path: Path, folder: Path) -> Path:
    """Decompress a file that rosbag2 compressed as a whole into ``folder``."""
    from zstandard import ZstdDecompressor, ZstdError

    out = folder / path.stem
    try:
        with path.open("rb") as packed, out.open("wb") as plain:
            shutil.copyfileobj(ZstdDecompressor().stream_reader(packed), plain, 1 << 20)
    except ZstdError as error:
        raise PerceptionError(f"{path} cannot be decompressed: {error}. Copy it again.") from error
    return out
