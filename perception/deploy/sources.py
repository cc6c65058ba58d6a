"""Where pictures come from: files, folders, globs, videos, cameras and streams. No torch."""

from __future__ import annotations

import glob
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from perception.data.files.images import PICTURE_SUFFIXES, read_image
from perception.types import PerceptionError

VIDEO_SUFFIXES = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"))


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture of a source: uint8 RGB [H, W, 3].

    time:    seconds from the start of a video; None = a picture
    arrived: when it was decoded, by `time.monotonic`
    id:      unique within a run: "deeper/b.jpg", "drive.mp4#12"
    place:   where what belongs to it is written, relative to the output's folder and without suffix: "deeper/b",
             "drive/000012"
    """

    image: NDArray[np.uint8]
    time: float | None = None
    arrived: float = 0.0
    id: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """One picture file, video file, camera or stream.

    id: unique within a run and usable as a relative path; ``address`` is what is opened
    """

    id: str
    address: str | int
    kind: Literal["picture", "video", "live"]

    @property
    def is_video(self) -> bool:
        return self.kind != "picture"

    @property
    def shown(self) -> str:
        """The address as it may be told: a URL without its password."""
        if isinstance(self.address, int):
            return f"camera {self.address}"
        if self.kind != "live":
            return self.address
        parts = urlsplit(self.address)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def find(source: str | Path | int) -> list[Source]:
    """What ``source`` names: a file, all files of a folder (and its folders), of a glob, a camera index or a URL.

    Raises PerceptionError where it names nothing that can be read.
    """
    text = str(source)
    if text.isdigit() and not Path(text).exists():
        return [Source(f"camera{text}", int(text), "live")]
    if "://" in text:
        return [Source("stream", text, "live")]
    path = Path(text)
    if path.is_char_device() and (number := re.fullmatch(r"/dev/video(\d+)", text)):
        return [Source(f"camera{number[1]}", int(number[1]), "live")]
    if path.is_dir():
        root, paths = path, sorted(p for p in path.rglob("*") if p.is_file())
    elif path.is_file():
        root, paths = path.parent, [path]
    else:
        paths = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())  # noqa: PTH207 - absolute too
        root = _common_folder(paths)
    files = [Source(p.relative_to(root).as_posix(), str(p), kind) for p in paths if (kind := _kind(p))]
    if not files:
        seen = f"{len(paths)} files, none with a suffix of a picture or video" if paths else "nothing there"
        raise PerceptionError(
            f"No picture or video at {text}: {seen}. Give an image, folder, glob, video, camera or URL."
        )
    return files


def _common_folder(paths: list[Path]) -> Path:
    if not paths:
        return Path()
    folder = paths[0].parent
    while not all(path.is_relative_to(folder) for path in paths):
        folder = folder.parent
    return folder


def _kind(path: Path) -> Literal["picture", "video"] | None:
    suffix = path.suffix.lower()
    return "picture" if suffix in PICTURE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def read_picture(source: Source) -> Shot:
    """The picture file. Raises PerceptionError where it is damaged or needs a decoder that is not installed."""
    try:
        return Shot(read_image(Path(str(source.address))), arrived=time.monotonic())
    except ModuleNotFoundError as error:
        raise PerceptionError(
            f"{source.address} needs {error.name} to be decoded. Install it, or convert to PNG."
        ) from error
