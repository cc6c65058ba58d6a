"""Frame readers: OpenCV for video files, cameras and streams; our own decoder for JPEG files and motion JPEG."""

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
"""A file has ended after this many consecutive undecodable packets."""
MAX_LIVE_MISSES = 10
"""The same for a stream, where each packet may take a while."""
PROBE_FRAMES = 3
"""Our decoder must decode one of this many first frames of a motion JPEG video."""


class EndOfStream(Exception):
    """The source has no more frames."""


class DecodedFrame(NamedTuple):
    """A decoded frame: uint8 RGB [H, W, 3], and its presentation time in seconds (None = unknown)."""

    image: NDArray[np.uint8]
    time: float | None


class FrameReader(Protocol):
    """An opened source.

    Attributes:
        fps: declared frames per second; 30 if missing or implausible.
        length: number of frames, 0 = unknown.
        is_live: it does not wait for its consumer, and may be reopened after its end.
        codec: four letters, "" = unknown.
    """

    fps: float
    length: int
    is_live: bool
    codec: str

    def read(self) -> DecodedFrame | None:
        """Return the next frame, None if undecodable. Raises EndOfStream at the end, TimeoutError on a stall."""
        ...

    def close(self) -> None:
        """Release the source."""
        ...


def open_frame_reader(source: MediaSource, timeout: float) -> FrameReader | None:
    """Open a source. Return None if it cannot be opened.

    ``timeout`` applies to opening and to each read, in seconds, as far as OpenCV respects it. Raises PerceptionError
    if the frames exceed the maximum image size.
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
        address = os.path.abspath(address)  # noqa: PTH100 - FFmpeg treats 12:30.mp4 as a URL
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
    """Whether each frame is an upright JPEG: our decoder then detects damage that FFmpeg hides."""
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
    """Reader based on `cv2.VideoCapture`, which stops at the first undecodable packet unless it is read again.

    Args:
        capture: the opened capture.
        display_name: name in error messages.
        live: the source may be endless. A known length overrides it (a playlist that ends, a video over RTSP).
        path: path or URL, "" = none.
        reads_packets: the capture returns encoded JPEGs.
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
        """Return the next frame, None if it cannot be decoded. Raises EndOfStream."""
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
        """Read on, to distinguish undecodable frames from the end, which may come before the declared length."""
        for missed in range(1, MAX_MISSES):
            found = self._read_next()
            if found is not None:
                self._pending.extend([*[None] * (missed - 1), found])
                return None
        self._has_ended = True
        seen = self._num_read - MAX_MISSES
        if self._declared.seconds and self._last_time + 2 / self.fps >= self._declared.seconds:
            self.length = seen  # all frames of the shown duration were read
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
        """Release the capture."""
        self._capture.release()


def _decode_frame(data: bytes | None) -> DecodedFrame | None:
    """Decode a JPEG; None if it is damaged. Raises EndOfStream if ``data`` is None."""
    if data is None:
        raise EndOfStream
    try:
        return DecodedFrame(decode_image(data, "a frame"), None)
    except DataError:
        return None


class MjpegStreamReader:
    """Reader for an HTTP stream of JPEGs. OpenCV would silently scale every image to the size of the first."""

    fps, length, is_live, codec = 30.0, 0, True, "MJPG"

    def __init__(self, stream: mjpeg.MjpegStream) -> None:
        self._stream = stream

    def read(self) -> DecodedFrame | None:
        """Return the next frame, None if it is damaged. Raises EndOfStream or TimeoutError."""
        return _decode_frame(self._stream.read())

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()


class MjpegFileReader:
    """Reader for a file of concatenated JPEGs, as cameras and FFmpeg write them into pipes."""

    fps, length, is_live, codec = 30.0, 0, False, "MJPG"

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._frames: Iterator[bytes] = split_jpegs(self._data)

    def read(self) -> DecodedFrame | None:
        """Return the next frame, None if it is damaged. Raises EndOfStream."""
        return _decode_frame(next(self._frames, None))

    def close(self) -> None:
        """Unmap the file."""
        self._frames = iter(())
        self._data.close()


def to_rgb(image: NDArray) -> NDArray[np.uint8]:
    """Convert BGR, BGRA or gray, 8 or 16 bits, to uint8 RGB [H, W, 3]."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    channels = 1 if image.ndim == 2 else image.shape[2]
    codes = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
    return np.asarray(cv2.cvtColor(image, codes[channels]), np.uint8)
