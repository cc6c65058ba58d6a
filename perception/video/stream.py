"""Frames of a video file, camera or stream that may stall, end early, send garbage or come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

from perception.runtime.sources import Shot, Source
from perception.types import PerceptionError
from perception.video import threads
from perception.video.bounded_queue import Channel, Closed
from perception.video.event_log import Journal, Status
from perception.video.interrupt import asked, check
from perception.video.readers import Ended, Reader, open_reader
from perception.video.stage_times import Timings
from perception.video.timestamps import Clock

TIMEOUT = 5.0
"""Seconds in which a source must open, and deliver each frame."""
ATTEMPTS = 5
"""Times that a live source is opened again before it is lost."""
BACKOFF = 0.5
"""Seconds before the first of them; twice as long before each further one."""
SOUND = 30
"""Frames in a row after which a live source that had trouble is sound again, and its attempts begin anew."""
LEAVE = 2.0
"""Seconds that `Video.stop` waits for the thread that reads: it may hang in OpenCV, which cannot be stopped."""
COMPLETE = 0.8
"""Share of the frames a file claims under which it ended early. Claims are often a little wrong."""


class Video:
    """The shots of an opened source, read in a thread of their own. Can be iterated over once.

    A file waits for whoever uses its frames. A live source does not: where they are not used in time, the oldest is
    dropped and counted in ``dropped``. What goes wrong is told to ``journal``. Raises PerceptionError where nothing
    opens within ``timeout`` seconds.

    timeout:  seconds in which the source must open, and deliver each frame
    attempts: times that a live source is opened again, after ``backoff`` seconds, then twice as many, ...
    fps, length: frames per second and frames that the source claims; 30 and 0 where it claims nothing sensible
    codec: its four letters, "" where unknown
    frames, bad, dropped: that were delivered, that could not be decoded, that nobody used in time
    """

    def __init__(
        self,
        source: Source,
        timeout: float = TIMEOUT,
        journal: Journal | None = None,
        timings: Timings | None = None,
        attempts: int = ATTEMPTS,
        backoff: float = BACKOFF,
    ) -> None:
        self.source, self.timeout, self.attempts, self.backoff = source, timeout, attempts, backoff
        self.journal, self.timings = journal or Journal(), timings or Timings()
        self.live = source.kind == "live"  # until it is open
        self.frames = self.bad = self.dropped = 0
        self._sound = self._attempt = 0
        self._stopped = threading.Event()
        reader = open_within(source, timeout, self._stopped)
        if reader is None:
            check()
            wanted = (
                "a camera or a stream that delivers. Check the address, the permissions and the codec."
                if self.live
                else "a whole video of a codec that FFmpeg decodes. Copy it again, or convert it: ffmpeg -i IN OUT.mp4"
            )
            raise PerceptionError(f"{source.shown} did not open within {timeout:g} s. Expected {wanted}")
        self._reader: Reader = reader
        self.fps, self.length, self.live, self.codec = reader.fps, reader.length, reader.live, reader.codec
        self._clock = Clock(1 / self.fps, self.live)
        self._channel = self._begin()

    def __iter__(self) -> Generator[Shot]:
        while True:
            try:
                while True:
                    shot = self._channel.get(self.timeout)
                    self._count()
                    yield shot
            except Closed:
                trouble = "the stream ended"
            except TimeoutError:
                trouble = f"no frame for {self.timeout:g} s"
            finally:
                self._channel.abandon()
                self.dropped += self._channel.dropped
            if self._stopped.is_set() or not self._goes_on(trouble):
                return
            self._channel = self._begin()

    def stop(self) -> None:
        """End the iteration, from any thread, even where it waits for a frame or to open the source again.

        Waits until nobody reads any more, for at most `LEAVE` seconds.
        """
        self._stopped.set()
        self._channel.abandon()
        threads.join([self._decoder], LEAVE)

    def _begin(self) -> Channel[Shot]:
        channel: Channel[Shot] = Channel(2 if self.live else 8, newest=self.live)
        reader = self._reader
        self._decoder = threads.begin(lambda: self._pump(reader, channel), "decode")
        return channel

    def _pump(self, reader: Reader, channel: Channel[Shot]) -> None:
        """Read until the end, or until nobody listens. A reader is closed by the thread that may hang in it."""
        try:
            while True:
                begin = time.perf_counter()
                picture = reader.read()
                self.timings.add("decode", time.perf_counter() - begin)
                if picture is None:
                    self._note_bad()
                    continue
                arrived = time.monotonic()
                channel.put(Shot(picture.image, self._clock.stamp(picture.time, arrived), arrived))
        except (Ended, Closed):
            channel.finish()
        except TimeoutError as error:  # the connection waited as long as the iteration does: whichever notices first
            channel.finish(error)
        except Exception as error:
            channel.finish(PerceptionError(f"{self.source.shown} cannot be read: {error}"))
        finally:
            reader.close()

    def _count(self) -> None:
        self.frames, self._sound = self.frames + 1, self._sound + 1
        if self.live and self._sound == SOUND:
            self._attempt = 0
            if self.journal.status(self.source.id):
                self.journal.note(self.source.id, Status.OK, f"{SOUND} frames in a row")

    def _note_bad(self) -> None:
        if self._sound or not self.bad:
            self.journal.note(self.source.id, Status.DEGRADED, "what arrives cannot be decoded")
        self.bad, self._sound = self.bad + 1, 0

    def _goes_on(self, trouble: str) -> bool:
        """Whether there are more frames after ``trouble``: a live source is opened again."""
        name, self._sound = self.source.id, 0
        if not self.live:
            if trouble.startswith("no frame"):
                self.journal.note(name, Status.LOST, trouble)
            elif self.frames < COMPLETE * self._reader.length:
                self.journal.note(name, Status.DEGRADED, f"ended after {self.frames} of {self._reader.length} frames")
            return False
        self.journal.note(name, Status.DEGRADED, trouble)
        while self._attempt < self.attempts:
            self._attempt += 1
            if self._stopped.wait(self.backoff * 2 ** (self._attempt - 1)):
                return False
            reader = open_within(self.source, self.timeout, self._stopped)
            if reader is not None:
                self._reader = reader
                self.journal.note(name, Status.DEGRADED, f"opened again at attempt {self._attempt}")
                return True
        self.journal.note(name, Status.LOST, f"{trouble}; opening it again failed {self.attempts} times")
        return False


def open_within(source: Source, seconds: float, stopped: threading.Event) -> Reader | None:
    """The opened source, or None where that fails, takes longer, or is not wanted any more. Raises PerceptionError.

    Its thread is then left behind, for OpenCV cannot be stopped; what it opens too late is closed.
    """
    found: list[Reader | PerceptionError | None] = []
    lock, done, late = threading.Lock(), threading.Event(), threading.Event()

    def work() -> None:
        try:
            reader = open_reader(source, seconds)
        except PerceptionError as error:
            reader = error
        with lock:
            found.append(reader)
            if late.is_set() and not isinstance(reader, PerceptionError | None):
                reader.close()
        done.set()

    threads.begin(work, "open")
    end = time.monotonic() + seconds
    while not done.wait(0.05) and time.monotonic() < end and not (stopped.is_set() or asked()):
        pass
    with lock:
        late.set()
        opened = found[0] if found else None
    if isinstance(opened, PerceptionError):
        raise opened
    return opened
