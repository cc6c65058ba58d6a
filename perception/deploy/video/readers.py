"""What delivers frames: video files, cameras and streams by OpenCV, and HTTP streams of JPEGs by ourselves."""

from __future__ import annotations

from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.deploy.sources import Source
from perception.deploy.video import mjpeg

MISSES = 300
"""Packets in a row that may be undecodable before a file is taken to have ended."""
LIVE_MISSES = 10
"""The same of a stream, where each may have taken a while."""


class Ended(Exception):
    """There are no more frames."""


class Picture(NamedTuple):
    """A frame as it was decoded: uint8 RGB [H, W, 3], and its presentation time in seconds (None = unknown)."""

    image: NDArray[np.uint8]
    time: float | None


class Reader(Protocol):
    """An opened source. fps: frames per second it claims, 30 where it claims nothing sensible; length: frames, 0 = ?"""

    fps: float
    length: int

    def read(self) -> Picture | None:
        """The next frame; None for one that cannot be decoded. Raises Ended at the end, TimeoutError at a stall."""
        ...

    def close(self) -> None: ...


def open_reader(source: Source, timeout: float) -> Reader | None:
    """None where nothing opens. timeout: seconds for opening and for each read, as far as OpenCV keeps to it."""
    address = source.address
    if isinstance(address, str) and urlsplit(address).scheme in ("http", "https"):
        stream = mjpeg.connect(address, timeout)
        if stream is not None:
            return JpegReader(stream)
    if isinstance(address, int):
        capture = cv2.VideoCapture(address)
    else:
        limit = round(timeout * 1000)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    return CaptureReader(capture, source.kind == "live") if capture.isOpened() else None


class CaptureReader:
    """OpenCV's capture, which ends at the first packet that it cannot decode unless it is asked again."""

    def __init__(self, capture: cv2.VideoCapture, live: bool) -> None:
        self._capture, self._live = capture, live
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps: float = fps if 1 <= fps <= 1000 else 30.0
        self.length: int = 0 if live else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self._seen = self._misses = 0

    def read(self) -> Picture | None:
        done, image = self._capture.read()
        self._seen += 1
        if not done:
            self._misses += 1
            over = self._misses >= LIVE_MISSES if self._live else self._seen > self.length or self._misses >= MISSES
            if over:
                raise Ended
            return None
        self._misses = 0
        milliseconds = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        return Picture(to_rgb(image), milliseconds / 1000 if np.isfinite(milliseconds) and milliseconds >= 0 else None)

    def close(self) -> None:
        self._capture.release()


class JpegReader:
    """An HTTP stream of JPEGs: OpenCV would scale every picture to the size of the first without a word."""

    fps, length = 30.0, 0

    def __init__(self, stream: mjpeg.Stream) -> None:
        self._stream = stream

    def read(self) -> Picture | None:
        data = self._stream.read()
        if data is None:
            raise Ended
        if not mjpeg.is_whole(data):
            return None
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return None if image is None else Picture(to_rgb(image), None)

    def close(self) -> None:
        self._stream.close()


def to_rgb(image: NDArray) -> NDArray[np.uint8]:
    """BGR, BGRA or gray, 8 or 16 bit, to uint8 RGB [H, W, 3]."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    channels = 1 if image.ndim == 2 else image.shape[2]
    codes = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
    return np.asarray(cv2.cvtColor(image, codes[channels]), np.uint8)
