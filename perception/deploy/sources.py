"""Where pictures come from: files, folders, globs, videos, cameras and streams. OpenCV, no torch."""

from __future__ import annotations

import glob
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.data.files.images import PICTURE_SUFFIXES, read_image
from perception.types import PerceptionError

VIDEO_SUFFIXES = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"))
TIMEOUT = 5.0
"""Seconds after which a stream that does not open or deliver is given up."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture of a source: uint8 RGB [H, W, 3]. ``time`` in seconds from the start of a video; None = a picture."""

    image: NDArray[np.uint8]
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One picture file, video file, camera or stream.

    id: unique within a run and usable as a relative path; ``address`` is what is opened
    """

    id: str
    address: str | int
    kind: str

    @property
    def is_video(self) -> bool:
        return self.kind != "picture"


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
    if path.is_dir():
        root, paths = path, sorted(p for p in path.rglob("*") if p.is_file())
    elif path.is_file():
        root, paths = path.parent, [path]
    else:
        paths = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).is_file())  # noqa: PTH207 - absolute too
        root = _common_folder(paths)
    chosen = [(p, _kind(p)) for p in paths]
    files = [Source(p.relative_to(root).as_posix(), str(p), kind) for p, kind in chosen if kind]
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


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return "picture" if suffix in PICTURE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else ""


def read_picture(source: Source) -> Shot:
    """The picture file. Raises PerceptionError where it is damaged or needs a decoder that is not installed."""
    try:
        return Shot(read_image(Path(source.address)))  # type: ignore[arg-type]
    except ModuleNotFoundError as error:
        raise PerceptionError(
            f"{source.address} needs {error.name} to be decoded. Install it, or convert to PNG."
        ) from error


class Video:
    """An opened video, camera or stream: iterate over its shots, then look at what it was.

    fps:    frames per second that the file claims; 30 where it claims nothing sensible
    length: frames that the file claims, 0 = unknown; often wrong, good for progress only

    Times are presentation times where there are any, always growing. Raises PerceptionError where nothing opens within
    `TIMEOUT` seconds.
    """

    def __init__(self, source: Source, timeout: float = TIMEOUT) -> None:
        self.source, self._timeout = source, timeout
        self._live = source.kind == "live"
        capture = _within(timeout, lambda: _open(source.address, timeout))
        if capture is None:
            raise PerceptionError(
                f"{source.address} did not open within {timeout:g} s. Expected a video, a camera or a stream that "
                "delivers. Check the address, the permissions and the codec."
            )
        self._capture: cv2.VideoCapture = capture
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps: float = fps if 1 <= fps <= 1000 else 30.0
        self.length: int = 0 if self._live else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.stalled = False

    def __iter__(self) -> Iterator[Shot]:
        begin, last, index = time.monotonic(), -1.0, 0
        while True:
            answer = _within(self._timeout, self._capture.read)
            self.stalled = answer is None
            if answer is None or not answer[0]:
                return
            image = answer[1] if answer[1].ndim == 3 else cv2.cvtColor(answer[1], cv2.COLOR_GRAY2BGR)
            stamp = self._stamp(begin, index)
            last = stamp if stamp > last else last + 0.5 / self.fps
            yield Shot(np.ascontiguousarray(image[:, :, 2::-1]), last)
            index += 1

    def close(self) -> None:
        """Release the device or file; not where a read hangs in it, which would wait for ever."""
        if not self.stalled:
            self._capture.release()

    def _stamp(self, begin: float, index: int) -> float:
        if self._live:
            return time.monotonic() - begin
        stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return stamp if stamp > 0 or index == 0 else index / self.fps


def _open(address: str | int, timeout: float) -> cv2.VideoCapture | None:
    if isinstance(address, int):
        capture = cv2.VideoCapture(address)
    else:
        limit = round(timeout * 1000)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    return capture if capture.isOpened() else None


def _within(seconds: float, call: Callable):
    """What ``call`` returns, or None where it takes longer; its thread is left behind, for OpenCV cannot be stopped."""
    result: list = []
    worker = threading.Thread(target=lambda: result.append(call()), daemon=True)
    worker.start()
    worker.join(seconds)
    return result[0] if result else None
