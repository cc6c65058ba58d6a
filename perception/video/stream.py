"""Frames of a video file, camera or stream that may stall, end early, send garbage or come back."""

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
"""Seconds in which a source must open, and deliver each frame."""
MAX_ATTEMPTS = 5
"""Times that a live source is opened again before it is lost."""
BACKOFF_SECONDS = 0.5
"""Seconds before the first of them; twice as long before each further one."""
RECOVERY_FRAMES = 30
"""Frames in a row after which a live source that had trouble is sound again, and its attempts begin anew."""
STOP_TIMEOUT = 2.0
"""Seconds that `VideoStream.stop` waits for the thread that reads: it may hang in OpenCV, which cannot be stopped."""
MIN_COMPLETE_SHARE = 0.8
"""Share of the frames a file claims under which it ended early. Claims are often a little wrong."""


class VideoStream:
    """The shots of an opened source, read in a thread of their own. Can be iterated over once.

    A file waits for whoever uses its frames. A live source does not: where they are not used in time, the oldest is
    dropped and counted in ``num_dropped``. What goes wrong is told to ``event_log``. Raises PerceptionError where
    nothing
    opens within ``timeout`` seconds.

    timeout:  seconds in which the source must open, and deliver each frame
    max_attempts: times that a live source is opened again, after ``backoff`` seconds, then twice as many, ...
    fps, length: frames per second and frames that the source claims; 30 and 0 where it claims nothing sensible
    codec: its four letters, "" where unknown
    num_frames, num_bad, num_dropped: that were delivered, that could not be decoded, that nobody used in time
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
                "a camera or a stream that delivers. Check the address, the permissions and the codec."
                if self.is_live
                else "a whole video of a codec that FFmpeg decodes. Copy it again, or convert it: ffmpeg -i IN OUT.mp4"
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
        """End the iteration, from any thread, even where it waits for a frame or to open the source again.

        Waits until nobody reads any more, for at most `STOP_TIMEOUT` seconds.
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
        """Read until the end, or until nobody listens. A reader is closed by the thread that may hang in it."""
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
        except TimeoutError as error:  # the connection waited as long as the iteration does: whichever notices first
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
            self.event_log.record(self.source.id, Status.DEGRADED, "what arrives cannot be decoded")
        self.num_bad, self._good_in_a_row = self.num_bad + 1, 0

    def _try_reopen(self, problem: str) -> bool:
        """Whether there are more frames after ``problem``: a live source is opened again."""
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
                self.event_log.record(name, Status.DEGRADED, f"opened again at attempt {self._attempt}")
                return True
        self.event_log.record(name, Status.LOST, f"{problem}; opening it again failed {self.max_attempts} times")
        return False


def open_with_timeout(source: MediaSource, timeout: float, stopped: threading.Event) -> FrameReader | None:
    """The opened source, or None where that fails, takes longer, or is not wanted any more. Raises PerceptionError.

    Its thread is then left behind, for OpenCV cannot be stopped; what it opens too late is closed.
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
