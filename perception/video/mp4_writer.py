"""Writes an mp4 file that keeps the presentation times of its frames. Encoding runs in a separate thread."""

from __future__ import annotations

import time
from array import array
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.files.safe_write import DiskFullError
from perception.types import PerceptionError
from perception.video import threads
from perception.video.bounded_queue import BoundedQueue, QueueClosed
from perception.video.mp4_fragments import FRAGMENTED_SUFFIX, write_index
from perception.video.stage_times import Timings

QUEUE_SIZE = 3
"""Maximum number of images that wait to be encoded."""
MAX_SIDE = 8190
"""Maximum side of an MPEG-4 video in pixels."""


class Mp4Writer:
    """Writes MPEG-4 (Part 2) with OpenCV's FFmpeg. After a crash, the part on disk is still playable.

    An image of another size than the first is scaled to fit, with gray padding: encoders would silently drop it.
    """

    def __init__(self, path: Path, fps: float, shape: tuple[int, ...], timings: Timings | None = None) -> None:
        self.path, self.fps, self.size = path, fps, even_size(shape)
        self.times = array("d")
        self._timings = timings or Timings()
        fragments = path.with_suffix(FRAGMENTED_SUFFIX)
        if any("\udc80" <= letter <= "\udcff" for letter in str(fragments)):
            raise PerceptionError(
                f"{path}: OpenCV cannot write a video to a path that is not UTF-8. Choose another --out."
            )
        self._file = cv2.VideoWriter(str(fragments), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), fps, self.size)
        if not self._file.isOpened():
            raise PerceptionError(
                f"{path} cannot be written as mp4. Check the folder, and that OpenCV has FFmpeg support."
            )
        fragments.replace(path)
        self._queue: BoundedQueue[NDArray[np.uint8]] = BoundedQueue(QUEUE_SIZE)
        self._failure: Exception | None = None
        self._worker = threads.start_thread(self._encode, "encode")

    def write(self, image: NDArray[np.uint8], seconds: float) -> None:
        """Queue an image, uint8 RGB [H, W, 3]; do not modify it afterwards. Its time must be after the last one."""
        try:
            self._queue.put(image)
        except QueueClosed:
            raise PerceptionError(f"{self.path}: writing failed: {self._failure}.") from self._failure
        self.times.append(seconds)

    def close(self) -> None:
        """Encode the queued images and finish the file. Raises DiskFullError if it is incomplete."""
        self._queue.finish()
        self._worker.join()
        self._file.release()
        if self._failure is not None or not self.times:
            return
        try:
            count = write_index(self.path, self.times, 1 / self.fps)
        except (ValueError, OSError) as error:
            raise DiskFullError(f"{self.path} is incomplete: {error}. Check the free disk space.") from error
        if count < len(self.times):
            text = f"{self.path} is incomplete: {count} of {len(self.times)} frames. Check the free disk space."
            raise DiskFullError(text)

    def _encode(self) -> None:
        try:
            while True:
                picture = self._queue.get()
                begin = time.perf_counter()
                self._file.write(cv2.cvtColor(fit_image(picture, self.size), cv2.COLOR_RGB2BGR))
                self._timings.add("encode", time.perf_counter() - begin)
        except QueueClosed:
            return
        except Exception as error:
            self._failure = error
            self._queue.abandon()


def even_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the (width, height) of a video of images [H, W, ...]: even, as encoders require, at most `MAX_SIDE`."""
    factor = min(1.0, MAX_SIDE / max(shape[:2]))
    height, width = (max(2, int(side * factor)) for side in shape[:2])
    return width + width % 2, height + height % 2


def fit_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Fit the image into ``size`` (width, height), with its aspect ratio, at the top left of a gray canvas."""
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    scale = min(size[0] / width, size[1] / height)
    if (width + width % 2, height + height % 2) == size:
        scale = 1.0
    placed = max(1, min(size[0], round(width * scale))), max(1, min(size[1], round(height * scale)))
    canvas: NDArray[np.uint8] = np.full((size[1], size[0], 3), 48, np.uint8)
    canvas[: placed[1], : placed[0]] = cv2.resize(image, placed, interpolation=cv2.INTER_AREA)
    return canvas
