"""Runs sources one after the other: open, predict through the pipeline, write."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TextIO

from perception.files.safe_write import DiskFullError, check_free_space, convert_write_errors
from perception.ops.postprocess import to_json
from perception.runtime.result import Result
from perception.runtime.sources import Frame, MediaSource, read_image_frame
from perception.types import Camera, PerceptionError, Prediction, TaskSpec
from perception.video.declared_length import explain_undecodable
from perception.video.event_log import Status
from perception.video.image_monitor import ImageMonitor
from perception.video.interrupt import check_stop
from perception.video.latency_monitor import LatencyMonitor
from perception.video.ood import OodModel, OodMonitor
from perception.video.pipeline import PostProcessor, PredictorLike, run_pipeline
from perception.video.progress import Progress, print_line
from perception.video.smoothing import Smoother
from perception.video.stream import DEFAULT_TIMEOUT, MAX_ATTEMPTS, VideoStream
from perception.video.summary import PredictReport
from perception.video.tracking import Tracker
from perception.video.writer import Writer, WriterContext


@dataclass(frozen=True)
class PredictOptions:
    """Options of `predict`.

    Attributes:
        camera: intrinsics in pixels of every image; None = the default focal length of the depth task.
        size: (height, width) of the network input; None = the training size.
        batch_size: batch size for files; live sources use 1.
        save: outputs to write, names of `perception.video.writers.WRITERS`.
        max_frames: maximum number of frames of each video or stream.
        deadline: seconds from a frame's arrival to its result; later results are flagged and counted.
        timeout: maximum seconds for opening a source, and for each frame.
        max_attempts: attempts to reopen a live source before it is LOST.
        monitor: mark predictions as not valid on images that are black, covered, frozen, ...
        track: track objects through videos.
        smoothing_seconds: time constant for smoothing masks and depth of videos, in seconds; None = no smoothing.
        ood_model: statistics of good images, for the ood score of each frame.
    """

    camera: Camera | None = None
    size: tuple[int, int] | None = None
    batch_size: int = 1
    save: tuple[str, ...] = ("mp4", "jsonl")
    max_frames: int | None = None
    deadline: float | None = None
    timeout: float = DEFAULT_TIMEOUT
    max_attempts: int = MAX_ATTEMPTS
    monitor: bool = True
    track: bool = False
    smoothing_seconds: float | None = None
    ood_model: OodModel | None = None


class PredictRunner:
    """Runs one call of `predict`: each source through the pipeline to the writers."""

    def __init__(
        self,
        predictor: PredictorLike,
        options: PredictOptions,
        report: PredictReport,
        writers: list[Writer],
        stream: TextIO | None,
    ) -> None:
        self.predictor, self.options, self.report, self.writers = predictor, options, report, writers
        self._stream = stream
        self._latency_monitor = LatencyMonitor(report.timings, options.deadline)

    def run(self, sources: Sequence[MediaSource]) -> None:
        """Process all sources. Raises only StopRequested; other failures are in the report."""
        with suppress(DiskFullError):  # already reported, and all open files are closed
            self._run_each(sources, assign_output_names(sources))

    def _run_each(self, sources: Sequence[MediaSource], names: dict[str, str]) -> None:
        done = 0
        for is_video, group in groupby(sources, lambda source: source.is_video):
            some = list(group)
            if not is_video:
                line = Progress(self._stream, "images", len(some))
                self._run_guarded(some[0], line, lambda p=some, n=line: self._run_images(p, names, n))
            for item in some if is_video else ():
                line = Progress(
                    self._stream, item.id, None, f"[{done + 1}/{len(sources)}] " if len(sources) > 1 else ""
                )
                self._run_guarded(item, line, lambda i=item, n=line: self._run_video(i, names[i.id], n))
                done += 1
            done += 0 if is_video else len(some)

    def _run_guarded(self, source: MediaSource, progress: Progress, work: Callable[[], None]) -> None:
        """Call ``work`` and add a failure to the report. Raises only DiskFullError, which ends the run."""
        check_stop()
        try:
            work()
        except PerceptionError as error:
            self._add_failure(source, error)
            if isinstance(error, DiskFullError):
                raise
        finally:
            progress.finish()

    def _add_failure(self, source: MediaSource, error: PerceptionError) -> None:
        if isinstance(error, DiskFullError):
            if self.report.is_disk_full:
                return
            self.report.is_disk_full = True
        self.report.failures.append((source.display_name, str(error)))
        self.report.event_log.record(source.id, Status.LOST if source.is_video else Status.DEGRADED, str(error))

    def _run_images(self, sources: Sequence[MediaSource], names: dict[str, str], progress: Progress) -> None:
        recording = WriterContext(self.report.out, "", 0.0, self.predictor.specs, self.report.timings, self._print_line)
        self._run_and_write(
            self._read_images(sources, names), recording, progress, {source.id: source for source in sources}.get
        )

    def _print_line(self, text: str) -> None:
        print_line(self._stream, text)

    def _read_images(self, sources: Sequence[MediaSource], names: dict[str, str]) -> Generator[Frame]:
        for source in sources:
            try:
                with self.report.timings.measure("decode"):
                    frame = read_image_frame(source)
            except PerceptionError as error:
                self._add_failure(source, error)
                continue
            yield dataclasses.replace(frame, id=source.id, output_stem=names[source.id])

    def _run_video(self, source: MediaSource, name: str, progress: Progress) -> None:
        report, options = self.report, self.options
        video = VideoStream(source, options.timeout, report.event_log, report.timings, options.max_attempts)
        progress.total = min((count for count in (video.length, options.max_frames) if count), default=None)
        recording = WriterContext(report.out, name, video.fps, self.predictor.specs, report.timings, self._print_line)
        frames = _number_frames(video, options.max_frames, name)
        try:
            self._run_and_write(frames, recording, progress, lambda _: source, stop=video.stop, is_live=video.is_live)
        finally:
            video.stop()
            report.dropped += video.num_dropped
        if not video.num_frames:
            raise PerceptionError(f"{source.display_name} {explain_undecodable(video.codec)}")
        if report.event_log.status(source.id) == Status.LOST:
            raise PerceptionError(f"{source.display_name} was lost after {video.num_frames} frames.")

    def _run_and_write(
        self,
        frames: Generator[Frame],
        context: WriterContext,
        progress: Progress,
        source_of: Callable[[str], MediaSource | None],
        stop: Callable[[], None] = lambda: None,
        is_live: bool = False,
    ) -> None:
        """Run the pipeline and pass each result to every writer. All writers are closed in any case.

        ``source_of`` maps a frame id to its source; ``stop`` ends a wait for frames.
        """
        options, network = self.options, self.predictor
        found = run_pipeline(
            network,
            frames,
            [*make_post_processors(options, network.specs, context.fps), self._latency_monitor],
            self.report.timings,
            camera=options.camera,
            size=options.size,
            batch_size=1 if is_live else options.batch_size,
            is_live=is_live,
            check_stop=check_stop,
        )
        with ExitStack() as stack:
            for writer in self.writers:
                stack.callback(self._close_writer, writer, context)
                with convert_write_errors(context.folder):
                    writer.open(context)
            stack.enter_context(closing(found))
            stack.callback(stop)
            for shot, result in found:
                record = self._make_record(shot, result.prediction)
                check_free_space(self.report.out)
                with self.report.timings.measure("write"):
                    for writer in self.writers:
                        self._write_frame(writer, shot, result, record, source_of(shot.id))
                self._update_report(record, result.valid)
                progress.step()
                check_stop()

    def _write_frame(
        self, writer: Writer, frame: Frame, result: Result, record: dict[str, Any], source: MediaSource | None
    ) -> None:
        """Write a frame. A failure is reported for an image, and ends a video."""
        try:
            with convert_write_errors(self.report.out / frame.output_stem):
                writer.write(frame, result, record)
        except PerceptionError as error:
            if isinstance(error, DiskFullError) or source is None or source.is_video:
                raise
            self._add_failure(source, error)

    def _close_writer(self, writer: Writer, context: WriterContext) -> None:
        """Close a writer. A failure is reported, so that the other writers are closed too."""
        path = context.folder / context.name
        try:
            with convert_write_errors(path):
                writer.close()
        except PerceptionError as error:
            self._add_failure(MediaSource(context.name or str(context.folder), str(path), "video"), error)

    def _make_record(self, frame: Frame, prediction: Prediction) -> dict[str, Any]:
        record = to_json(prediction, self.predictor.specs)
        if frame.time is not None:
            record["sequence"] = self.report.frames + 1  # heartbeat: always increases
            status = self.report.event_log.status(frame.id.rpartition("#")[0])
            if status:
                record["status"] = status.name
        return record

    def _update_report(self, record: dict[str, Any], valid: bool) -> None:
        report = self.report
        report.frames += 1
        report.deadline_misses = (
            self._latency_monitor.deadline_misses if self._latency_monitor.deadline is not None else None
        )
        report.flagged += "flags" in record
        report.invalid += not valid
        report.boxes += sum(len(v) for k, v in record.items() if isinstance(v, list) and k not in ("size", "flags"))


def make_post_processors(options: PredictOptions, specs: Mapping[str, TaskSpec], fps: float) -> list[PostProcessor]:
    """Create the post-processors of one source, in order. They keep state, so each source needs its own.

    ``fps`` is the frame rate of a video, 0 for images.
    """
    found: list[PostProcessor] = []
    if options.monitor:
        found.append(ImageMonitor())
    if options.smoothing_seconds and fps:
        found.append(Smoother(specs, options.smoothing_seconds))
    if options.track and fps:
        found.append(Tracker(specs, fps))
    if options.ood_model:
        found.append(OodMonitor(options.ood_model, specs))
    return found


def _number_frames(video: VideoStream, max_frames: int | None, name: str) -> Generator[Frame]:
    with closing(iter(video)) as shots:
        for number, shot in enumerate(islice(shots, max_frames)):
            yield dataclasses.replace(shot, id=f"{video.source.id}#{number}", output_stem=f"{name}/{number:06d}")


def assign_output_names(sources: Sequence[MediaSource]) -> dict[str, str]:
    """Return source id -> relative output path without suffix. The suffix is kept if names would collide."""
    bare = [Path(source.id).with_suffix("").as_posix() for source in sources]
    count = Counter(bare)
    return {s.id: s.id if count[name] > 1 or s.kind == "live" else name for s, name in zip(sources, bare, strict=True)}
