"""Frames of a video file, camera or stream, with handling of stalls, early ends, damaged data and reconnection."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

from perception.runtime.sources import Frame, MediaSource
from perception.types import PerceptionError
from perception.video import threads
from perception.video.bounded_queue import BoundedQueue, QueueClosed
from perception.video.event_log import EventLog, Status
from perception.video.interrupt import check_stop, is_stop_pending
from perception.video.readers import EndOfStream, FrameReader, open_frame_reader
from perception.video.stage_times import Timings
from perception.video.timestamps import FrameClock

DEFAULT_TIMEOUT = 5.0
"""Maximum seconds for opening a source, and for each frame."""
MAX_ATTEMPTS = 5
"""Attempts to reopen a live source before its status becomes LOST."""
BACKOFF_SECONDS = 0.5
"""Seconds before the first attempt; doubled before each further attempt."""
RECOVERY_FRAMES = 30
"""Consecutive frames after which a failed live source is OK again, and its attempts are reset."""
STOP_TIMEOUT = 2.0
"""Seconds that `VideoStream.stop` waits for the reader thread, which may hang in OpenCV and cannot be interrupted."""
MIN_COMPLETE_SHARE = 0.8
"""A file with a smaller share of its declared frames ended early. Declared counts are often slightly wrong."""


class VideoStream:
    """The frames of an opened source, read in a separate thread. It can be iterated over once.

    A file waits until its frames are consumed. A live source drops its oldest frame if frames are not consumed in
    time. Problems are recorded in ``event_log``.

    Args:
        source: the source to open.
        timeout: maximum seconds for opening the source, and for each frame.
        event_log: log for status changes.
        timings: gets the decoding times.
        max_attempts: attempts to reopen a live source.
        backoff: seconds before the first attempt; doubled before each further attempt.

    Attributes:
        fps: declared frames per second; 30 if missing or implausible.
        length: declared number of frames; 0 if missing or implausible.
        codec: four letters, "" = unknown.
        num_frames: frames delivered.
        num_bad: frames that could not be decoded.
        num_dropped: frames of a live source that were not consumed in time.

    Raises:
        PerceptionError: the source did not open within ``timeout`` seconds.
    """

    def __init__(
        self,
        source: MediaSource,
        timeout: float = DEFAULT_TIMEOUT,
        event_log: EventLog | None = None,
        timings: Timings | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        backoff: float = BACKOFF_SECONDS,
    ) -> None:
        self.source, self.timeout, self.max_attempts, self.backoff = source, timeout, max_attempts, backoff
        self.event_log, self.timings = event_log or EventLog(), timings or Timings()
        self.is_live = source.kind == "live"  # until it is open
        self.num_frames = self.num_bad = self.num_dropped = 0
        self._good_in_a_row = self._attempt = 0
        self._stopped = threading.Event()
        reader = open_with_timeout(source, timeout, self._stopped)
        if reader is None:
            check_stop()
            wanted = (
                "a camera or stream that delivers frames. Check the address, the permissions and the codec."
                if self.is_live
                else "a complete video that FFmpeg can decode. Copy it again, or convert it: ffmpeg -i IN OUT.mp4"
            )
            raise PerceptionError(f"{source.display_name} did not open within {timeout:g} s. Expected {wanted}")
        self._reader: FrameReader = reader
        self.fps, self.length, self.is_live, self.codec = reader.fps, reader.length, reader.is_live, reader.codec
        self._clock = FrameClock(1 / self.fps, self.is_live)
        self._queue = self._start_decoder()

    def __iter__(self) -> Generator[Frame]:
        while True:
            try:
                while True:
                    shot = self._queue.get(self.timeout)
                    self._count_frame()
                    yield shot
            except QueueClosed:
                trouble = "the stream ended"
            except TimeoutError:
                trouble = f"no frame for {self.timeout:g} s"
            finally:
                self._queue.abandon()
                self.num_dropped += self._queue.dropped
            if self._stopped.is_set() or not self._try_reopen(trouble):
                return
            self._queue = self._start_decoder()

    def stop(self) -> None:
        """End the iteration, from any thread, even while it waits for a frame or reopens the source.

        Waits for the reader thread, for at most `STOP_TIMEOUT` seconds.
        """
        self._stopped.set()
        self._queue.abandon()
        threads.join_threads([self._decoder], STOP_TIMEOUT)

    def _start_decoder(self) -> BoundedQueue[Frame]:
        channel: BoundedQueue[Frame] = BoundedQueue(2 if self.is_live else 8, drop_oldest=self.is_live)
        reader = self._reader
        self._decoder = threads.start_thread(lambda: self._fill_queue(reader, channel), "decode")
        return channel

    def _fill_queue(self, reader: FrameReader, queue: BoundedQueue[Frame]) -> None:
        """Read until the end, or until the queue is abandoned. The reader is closed by the thread that reads."""
        try:
            while True:
                begin = time.perf_counter()
                picture = reader.read()
                self.timings.add("decode", time.perf_counter() - begin)
                if picture is None:
                    self._count_bad()
                    continue
                arrived = time.monotonic()
                queue.put(Frame(picture.image, self._clock.stamp(picture.time, arrived), arrived))
        except (EndOfStream, QueueClosed):
            queue.finish()
        except TimeoutError as error:  # reader and iteration have the same timeout: either may notice first
            queue.finish(error)
        except Exception as error:
            queue.finish(PerceptionError(f"{self.source.display_name} cannot be read: {error}"))
        finally:
            reader.close()

    def _count_frame(self) -> None:
        self.num_frames, self._good_in_a_row = self.num_frames + 1, self._good_in_a_row + 1
        if self.is_live and self._good_in_a_row == RECOVERY_FRAMES:
            self._attempt = 0
            if self.event_log.status(self.source.id):
                self.event_log.record(self.source.id, Status.OK, f"{RECOVERY_FRAMES} frames in a row")

    def _count_bad(self) -> None:
        if self._good_in_a_row or not self.num_bad:
            self.event_log.record(self.source.id, Status.DEGRADED, "received data cannot be decoded")
        self.num_bad, self._good_in_a_row = self.num_bad + 1, 0

    def _try_reopen(self, problem: str) -> bool:
        """Reopen a live source after ``problem``. Return whether more frames follow."""
        name, self._good_in_a_row = self.source.id, 0
        if not self.is_live:
            if problem.startswith("no frame"):
                self.event_log.record(name, Status.LOST, problem)
            elif self.num_frames < MIN_COMPLETE_SHARE * self._reader.length:
                self.event_log.record(
                    name, Status.DEGRADED, f"ended after {self.num_frames} of {self._reader.length} frames"
                )
            return False
        self.event_log.record(name, Status.DEGRADED, problem)
        while self._attempt < self.max_attempts:
            self._attempt += 1
            if self._stopped.wait(self.backoff * 2 ** (self._attempt - 1)):
                return False
            reader = open_with_timeout(self.source, self.timeout, self._stopped)
            if reader is not None:
                self._reader = reader
                self.event_log.record(name, Status.DEGRADED, f"reopened at attempt {self._attempt}")
                return True
        self.event_log.record(name, Status.LOST, f"{problem}; reopening failed {self.max_attempts} times")
        return False


def open_with_timeout(source: MediaSource, timeout: float, stopped: threading.Event) -> FrameReader | None:
    """Open a source. Return None if that fails, exceeds ``timeout`` or is stopped. May raise PerceptionError.

    The opening thread is then abandoned, because OpenCV cannot be interrupted. A source that opens too late is closed.
    """
    found: list[FrameReader | PerceptionError | None] = []
    lock, done, late = threading.Lock(), threading.Event(), threading.Event()

    def work() -> None:
        try:
            reader = open_frame_reader(source, timeout)
        except PerceptionError as error:
            reader = error
        with lock:
            found.append(reader)
            if late.is_set() and not isinstance(reader, PerceptionError | None):
                reader.close()
        done.set()

    threads.start_thread(work, "open")
    end = time.monotonic() + timeout
    while not done.wait(0.05) and time.monotonic() < end and not (stopped.is_set() or is_stop_pending()):
        pass
    with lock:
        late.set()
        opened = found[0] if found else None
    if isinstance(opened, PerceptionError):
        raise opened
    return opened
