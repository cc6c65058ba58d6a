"""What delivers frames: video files, cameras and streams by OpenCV; JPEGs, alone or in videos, by our own decoder."""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.files.file_types import split_jpegs
from perception.files.image_headers import JPEG_SIGNATURE, check_image_size
from perception.files.images import decode_image
from perception.runtime.sources import MediaSource
from perception.runtime.urls import PeekedResponse
from perception.types import DataError, PerceptionError
from perception.video import mjpeg
from perception.video.declared_length import DeclaredLength, is_complete, read_declared_length

MAX_MISSES = 300
"""Packets in a row that may be undecodable before a file is taken to have ended."""
MAX_LIVE_MISSES = 10
"""The same of a stream, where each may have taken a while."""
PROBE_FRAMES = 3
"""First frames of a video of JPEGs of which our decoder must read one."""


class EndOfStream(Exception):
    """There are no more frames."""


class DecodedFrame(NamedTuple):
    """A frame as it was decoded: uint8 RGB [H, W, 3], and its presentation time in seconds (None = unknown)."""

    image: NDArray[np.uint8]
    time: float | None


class FrameReader(Protocol):
    """An opened source.

    fps:    frames per second it claims, 30 where it claims nothing sensible
    length: frames, 0 = ?
    is_live:   it does not wait, and may come back after its end
    codec:  four letters, "" = unknown
    """

    fps: float
    length: int
    is_live: bool
    codec: str

    def read(self) -> DecodedFrame | None:
        """The next frame; None for one that cannot be decoded. Raises Ended at the end, TimeoutError at a stall."""
        ...

    def close(self) -> None: ...


def open_frame_reader(source: MediaSource, timeout: float) -> FrameReader | None:
    """None where nothing opens. timeout: seconds for opening and for each read, as far as OpenCV keeps to it.

    Raises PerceptionError where frames are larger than any image may be.
    """
    address, live = source.address, source.kind == "live"
    if isinstance(address, int):
        capture = cv2.VideoCapture(address)
        return CaptureReader(capture, source.display_name, True) if capture.isOpened() else None
    if live and urlsplit(address).scheme in ("http", "https"):
        stream = mjpeg.open_mjpeg(
            address, timeout, source.resource if isinstance(source.resource, PeekedResponse) else None
        )
        if stream is not None:
            return MjpegStreamReader(stream)
    if not live:
        address = os.path.abspath(address)  # noqa: PTH100 - FFmpeg takes 12:30.mp4 for an address
        if _starts_with(address, JPEG_SIGNATURE):
            return MjpegFileReader(Path(address))
    limit = round(timeout * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
    capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    if not capture.isOpened():
        return None
    if not live and _has_upright_jpegs(capture, address, limits):
        capture.release()
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, [*limits, cv2.CAP_PROP_FORMAT, -1])
        return CaptureReader(capture, source.display_name, live, address, reads_packets=True)
    return CaptureReader(capture, source.display_name, live, address)


def _starts_with(path: str, magic: bytes) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _has_upright_jpegs(capture: cv2.VideoCapture, address: str, limits: list[int]) -> bool:
    """Whether a video holds a JPEG for each frame, upright, so that we see damage which FFmpeg conceals."""
    if _read_codec(capture) not in ("MJPG", "JPEG") or capture.get(cv2.CAP_PROP_ORIENTATION_META) % 360:
        return False
    size = capture.get(cv2.CAP_PROP_FRAME_HEIGHT), capture.get(cv2.CAP_PROP_FRAME_WIDTH)
    packets = cv2.VideoCapture(address, cv2.CAP_FFMPEG, [*limits, cv2.CAP_PROP_FORMAT, -1])
    try:
        for _ in range(PROBE_FRAMES):
            done, data = packets.read()
            try:
                if done and decode_image(data.tobytes(), "a frame").shape[:2] == size:
                    return True
            except DataError:
                continue
    finally:
        packets.release()
    return False


def _read_codec(capture: cv2.VideoCapture) -> str:
    number = int(capture.get(cv2.CAP_PROP_FOURCC))
    letters = number.to_bytes(4, "little").decode("latin-1").upper() if 0 < number < 1 << 32 else ""
    return letters if letters.isprintable() else ""


class CaptureReader:
    """OpenCV's capture, which ends at the first packet that it cannot decode unless it is asked again.

    is_live:    the source may be endless; it is not where a length is known (a playlist that ends, a video over RTSP)
    path:    of a file, "" = none
    reads_packets: it delivers encoded JPEGs
    """

    def __init__(
        self, capture: cv2.VideoCapture, display_name: str, live: bool, path: str = "", *, reads_packets: bool = False
    ) -> None:
        self._capture, self._reads_packets = capture, reads_packets
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps: float = fps if 1 <= fps <= 1000 else 30.0
        self.codec = _read_codec(capture)
        claimed = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.length: int = int(claimed) if 0 < claimed < 1 << 40 else 0
        self.is_live = live and not (self.length and path)
        self._path = "" if live else path
        self._declared = read_declared_length(self._path) if self._path else DeclaredLength()
        self._last_time = 0.0
        self._num_read = self._misses = 0
        self._pending: deque[DecodedFrame | None] = deque()
        self._has_ended = False
        width, height = (capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height:
            try:
                check_image_size(int(width), int(height), display_name)
            except DataError as error:
                capture.release()
                raise PerceptionError(str(error)) from error

    def read(self) -> DecodedFrame | None:
        if self._pending:
            return self._pending.popleft()
        if self._has_ended:
            raise EndOfStream
        found = self._read_next()
        if found is not None:
            self._misses = 0
            return found
        if self.is_live:
            self._misses += 1
            if self._misses >= MAX_LIVE_MISSES:
                raise EndOfStream
            return None
        return self._probe_end()

    def _probe_end(self) -> DecodedFrame | None:
        """Look on, to tell what cannot be decoded from the end, which a container may claim to come later."""
        for missed in range(1, MAX_MISSES):
            found = self._read_next()
            if found is not None:
                self._pending.extend([*[None] * (missed - 1), found])
                return None
        self._has_ended = True
        seen = self._num_read - MAX_MISSES
        if self._declared.seconds and self._last_time + 2 / self.fps >= self._declared.seconds:
            self.length = seen  # all that is shown of it
        elif self._declared.is_exact:
            self._pending.extend([None] * min(MAX_MISSES, self.length - seen))
        elif is_complete(self._path):
            self.length = seen
        if not self._pending:
            raise EndOfStream
        return self._pending.popleft()

    def _read_next(self) -> DecodedFrame | None:
        self._num_read += 1
        done, image = self._capture.read()
        if not done:
            return None
        found = _decode_frame(image.tobytes()) if self._reads_packets else DecodedFrame(to_rgb(image), None)
        if found is None:
            return None
        milliseconds = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        seconds = milliseconds / 1000 if np.isfinite(milliseconds) and milliseconds >= 0 else None
        self._last_time = seconds or self._last_time
        return found._replace(time=seconds)

    def close(self) -> None:
        self._capture.release()


def _decode_frame(data: bytes | None) -> DecodedFrame | None:
    """A frame that is a JPEG, without a time; None where it is damaged. Raises Ended where there is none."""
    if data is None:
        raise EndOfStream
    try:
        return DecodedFrame(decode_image(data, "a frame"), None)
    except DataError:
        return None


class MjpegStreamReader:
    """An HTTP stream of JPEGs: OpenCV would scale every image to the size of the first without a word."""

    fps, length, is_live, codec = 30.0, 0, True, "MJPG"

    def __init__(self, stream: mjpeg.MjpegStream) -> None:
        self._stream = stream

    def read(self) -> DecodedFrame | None:
        return _decode_frame(self._stream.read())

    def close(self) -> None:
        self._stream.close()


class MjpegFileReader:
    """A file of JPEGs, one after the other, as cameras and FFmpeg write them into pipes."""

    fps, length, is_live, codec = 30.0, 0, False, "MJPG"

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._frames: Iterator[bytes] = split_jpegs(self._data)

    def read(self) -> DecodedFrame | None:
        return _decode_frame(next(self._frames, None))

    def close(self) -> None:
        self._frames = iter(())
        self._data.close()


def to_rgb(image: NDArray) -> NDArray[np.uint8]:
    """BGR, BGRA or gray, 8 or 16 bit, to uint8 RGB [H, W, 3]."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    channels = 1 if image.ndim == 2 else image.shape[2]
    codes = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
    return np.asarray(cv2.cvtColor(image, codes[channels]), np.uint8)
