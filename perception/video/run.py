"""Sources one after the other: opened, through the pipeline, to the writers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TextIO

from perception.files.safe_write import FullError, check_room, writing
from perception.ops.restore import to_json
from perception.runtime.result import Result
from perception.runtime.sources import Shot, Source, read_picture
from perception.types import Camera, PerceptionError, TaskSpec
from perception.video.declared_length import undecodable
from perception.video.event_log import Status
from perception.video.image_monitor import Monitor
from perception.video.interrupt import check
from perception.video.latency_monitor import Watch
from perception.video.ood import Calibration, Doubt
from perception.video.pipeline import Network, Step, results
from perception.video.progress import Progress, say
from perception.video.smoothing import Smoother
from perception.video.stream import ATTEMPTS, TIMEOUT, Video
from perception.video.summary import Report
from perception.video.tracking import Tracker
from perception.video.writer import Recording, Writer


@dataclass(frozen=True)
class Options:
    """How `predict` looks at its sources.

    camera:   intrinsics in pixels of every picture; None = the default focal length of the depth task
    size:     (height, width) that the network sees; None = that of its training
    batch:    pictures of a file that are run together; 1 for live sources
    save:     what is written, names of `perception.video.writers.WRITERS`
    frames:   stop each video or stream after so many
    deadline: seconds from a frame's arrival to its result; results that are later are flagged and counted
    timeout:  seconds in which a source must open and deliver each frame
    attempts: times that a live source is opened again before it is lost
    monitor:  mark predictions on pictures that are black, covered, frozen, ... not valid
    track:    follow objects through videos
    smooth:   time constant in seconds that label maps and depth of videos are smoothed with; None = they are not
    calibration: what good pictures look like to this network: tells the doubt about each frame
    """

    camera: Camera | None = None
    size: tuple[int, int] | None = None
    batch: int = 1
    save: tuple[str, ...] = ("mp4", "jsonl")
    frames: int | None = None
    deadline: float | None = None
    timeout: float = TIMEOUT
    attempts: int = ATTEMPTS
    monitor: bool = True
    track: bool = False
    smooth: float | None = None
    calibration: Calibration | None = None


class Run:
    """One call of `predict`: sources one after the other, through the pipeline, to the writers."""

    def __init__(
        self, network: Network, options: Options, report: Report, writers: list[Writer], stream: TextIO | None
    ) -> None:
        self.network, self.options, self.report, self.writers = network, options, report, writers
        self._stream = stream
        self._watch = Watch(report.timings, options.deadline)

    def all(self, sources: Sequence[Source]) -> None:
        """Raises nothing but Stopped: the rest is in the report."""
        with suppress(FullError):  # it is told, and what is open has been closed
            self._each(sources, output_names(sources))

    def _each(self, sources: Sequence[Source], names: dict[str, str]) -> None:
        done = 0
        for is_video, group in groupby(sources, lambda source: source.is_video):
            some = list(group)
            if not is_video:
                line = Progress(self._stream, "pictures", len(some))
                self._guarded(some[0], line, lambda p=some, n=line: self._some_pictures(p, names, n))
            for item in some if is_video else ():
                line = Progress(
                    self._stream, item.id, None, f"[{done + 1}/{len(sources)}] " if len(sources) > 1 else ""
                )
                self._guarded(item, line, lambda i=item, n=line: self._video(i, names[i.id], n))
                done += 1
            done += 0 if is_video else len(some)

    def _guarded(self, source: Source, line: Progress, work: Callable[[], None]) -> None:
        """Do it; a failure is the report's. Raises FullError: there is no use in going on."""
        check()
        try:
            work()
        except PerceptionError as error:
            self._fail(source, error)
            if isinstance(error, FullError):
                raise
        finally:
            line.done()

    def _fail(self, source: Source, error: PerceptionError) -> None:
        if isinstance(error, FullError):
            if self.report.full:
                return
            self.report.full = True
        self.report.failures.append((source.shown, str(error)))
        self.report.journal.note(source.id, Status.LOST if source.is_video else Status.DEGRADED, str(error))

    def _some_pictures(self, sources: Sequence[Source], names: dict[str, str], line: Progress) -> None:
        recording = Recording(self.report.out, "", 0.0, self.network.specs, self.report.timings, self._say)
        self._write(self._pictures(sources, names), recording, line, {source.id: source for source in sources}.get)

    def _say(self, text: str) -> None:
        say(self._stream, text)

    def _pictures(self, sources: Sequence[Source], names: dict[str, str]) -> Generator[Shot]:
        for source in sources:
            try:
                with self.report.timings.measure("decode"):
                    shot = read_picture(source)
            except PerceptionError as error:
                self._fail(source, error)
                continue
            yield dataclasses.replace(shot, id=source.id, place=names[source.id])

    def _video(self, source: Source, name: str, line: Progress) -> None:
        report, options = self.report, self.options
        video = Video(source, options.timeout, report.journal, report.timings, options.attempts)
        line.length = min((count for count in (video.length, options.frames) if count), default=None)
        recording = Recording(report.out, name, video.fps, self.network.specs, report.timings, self._say)
        shots = _named(video, options.frames, name)
        try:
            self._write(shots, recording, line, lambda _: source, stop=video.stop, live=video.live)
        finally:
            video.stop()
            report.dropped += video.dropped
        if not video.frames:
            raise PerceptionError(f"{source.shown} {undecodable(video.codec)}")
        if report.journal.status(source.id) == Status.LOST:
            raise PerceptionError(f"{source.shown} was lost after {video.frames} frames.")

    def _write(
        self,
        shots: Generator[Shot],
        recording: Recording,
        line: Progress,
        source_of: Callable[[str], Source | None],
        stop: Callable[[], None] = lambda: None,
        live: bool = False,
    ) -> None:
        """Through the pipeline to every writer; each is closed whatever happens.

        source_of: of the shot of an id; stop: ends a wait for shots
        """
        options, network = self.options, self.network
        found = results(
            network,
            shots,
            [*steps(options, network.specs, recording.fps), self._watch],
            self.report.timings,
            camera=options.camera,
            size=options.size,
            batch_size=1 if live else options.batch,
            live=live,
            check=check,
        )
        with ExitStack() as stack:
            for writer in self.writers:
                stack.callback(self._close, writer, recording)
                with writing(recording.folder):
                    writer.open(recording)
            stack.enter_context(closing(found))
            stack.callback(stop)
            for shot, result in found:
                record = self._record(shot, result.prediction)
                check_room(self.report.out)
                with self.report.timings.measure("write"):
                    for writer in self.writers:
                        self._write_one(writer, shot, result, record, source_of(shot.id))
                self._count(record, result.valid)
                line.step()
                check()

    def _write_one(
        self, writer: Writer, shot: Shot, result: Result, record: dict[str, Any], source: Source | None
    ) -> None:
        """What fails of one picture is told of it, and the others are done; it ends a video."""
        try:
            with writing(self.report.out / shot.place):
                writer.write(shot, result, record)
        except PerceptionError as error:
            if isinstance(error, FullError) or source is None or source.is_video:
                raise
            self._fail(source, error)

    def _close(self, writer: Writer, recording: Recording) -> None:
        """A writer that cannot close its file does not keep the others from closing theirs."""
        path = recording.folder / recording.name
        try:
            with writing(path):
                writer.close()
        except PerceptionError as error:
            self._fail(Source(recording.name or str(recording.folder), str(path), "video"), error)

    def _record(self, shot: Shot, prediction: Any) -> dict[str, Any]:
        record = to_json(prediction, self.network.specs)
        if shot.time is not None:
            record["alive"] = self.report.frames + 1  # a counter that shows life: it never stands still
            status = self.report.journal.status(shot.id.rpartition("#")[0])
            if status:
                record["status"] = status.name
        return record

    def _count(self, record: dict[str, Any], valid: bool) -> None:
        report = self.report
        report.frames += 1
        report.misses = self._watch.misses if self._watch.deadline is not None else None
        report.flagged += "flags" in record
        report.invalid += not valid
        report.boxes += sum(len(v) for k, v in record.items() if isinstance(v, list) and k not in ("size", "flags"))


def steps(options: Options, specs: Mapping[str, TaskSpec], fps: float) -> list[Step]:
    """What is made of each prediction, in order. Steps remember what was before: each source has its own.

    fps: frames per second of a video, 0 = pictures
    """
    found: list[Step] = []
    if options.monitor:
        found.append(Monitor())
    if options.smooth and fps:
        found.append(Smoother(specs, options.smooth))
    if options.track and fps:
        found.append(Tracker(specs, fps))
    if options.calibration:
        found.append(Doubt(options.calibration, specs))
    return found


def _named(video: Video, frames: int | None, name: str) -> Generator[Shot]:
    with closing(iter(video)) as shots:
        for number, shot in enumerate(islice(shots, frames)):
            yield dataclasses.replace(shot, id=f"{video.source.id}#{number}", place=f"{name}/{number:06d}")


def output_names(sources: Sequence[Source]) -> dict[str, str]:
    """Source id -> relative path of its output without suffix; a suffix is kept where names would meet otherwise."""
    bare = [Path(source.id).with_suffix("").as_posix() for source in sources]
    count = Counter(bare)
    return {s.id: s.id if count[name] > 1 or s.kind == "live" else name for s, name in zip(sources, bare, strict=True)}
