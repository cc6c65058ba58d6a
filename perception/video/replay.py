"""`perception predict MODEL BAG`: run a model on the cameras of a bag, and write the results as topics of a new bag."""

from __future__ import annotations

import dataclasses
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perception.files.safe_names import escape_unprintable
from perception.files.safe_write import check_free_space
from perception.robots.bag_writer import BagWriter
from perception.robots.bags import BagFrame, BagReader, RawMessage
from perception.robots.topics import assign_prefixes
from perception.runtime.predictor import ImagePredictor, check_camera
from perception.runtime.result import Result
from perception.runtime.sources import Frame
from perception.video.interrupt import check_stop, defer_stop, handle_stop_signals
from perception.video.run import PredictOptions, make_post_processors
from perception.video.timestamps import FrameClock

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Progress bar: called with text and total, it yields a function that takes the number done."""
MAX_LISTED = 20
"""Maximum number of problem kinds that are reported separately."""


@dataclass
class ReplayReport:
    """Result of `replay`.

    Attributes:
        out: path of the new bag.
        topics: image topics that were read.
        skipped_topics: image topics that were not read -> reason.
        other_topics: topics without images.
        frames: number of predicted images.
        seconds: duration of the run.
        stop_signal: number of the signal that stopped the run; None = it finished.
        problems: sentence -> count: images that could not be used, had no usable camera, or have flagged results.
        damage: sentence -> count: parts of the recording that could not be read.
    """

    out: Path
    topics: list[str]
    skipped_topics: dict[str, str] = field(default_factory=dict)
    other_topics: list[str] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    stop_signal: int | None = None
    problems: dict[str, int] = field(default_factory=dict)
    damage: dict[str, int] = field(default_factory=dict)
    _kinds: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)

    def add_problem(self, topic: str, problem: str) -> None:
        """Count one image of ``topic`` with a problem. Sentences that differ only in numbers are counted together."""
        kind = topic, re.sub(r"\d+", "0", problem)
        if kind not in self._kinds:
            self._kinds[kind] = problem if len(self._kinds) < MAX_LISTED else "other problems"
        shown = self._kinds[kind]
        self.problems[shown] = self.problems.get(shown, 0) + 1

    def __str__(self) -> str:
        rate = f", {self.frames / self.seconds:.1f} frames/s" if self.seconds else ""
        lines = [f"{self.out}: {self.frames} frames of {', '.join(map(escape_unprintable, self.topics))}{rate}"]
        lines += [] if self.frames or self.stop_signal is not None else ["No image could be decoded."]
        lines += [f"{count} x {text}" for text, count in [*self.problems.items(), *self.damage.items()]]
        lines += [f"left out: {escape_unprintable(topic)}: {why}" for topic, why in self.skipped_topics.items()]
        if self.other_topics:
            more = f" and {len(self.other_topics) - MAX_LISTED} more" if len(self.other_topics) > MAX_LISTED else ""
            lines.append(
                f"not copied: {', '.join(map(escape_unprintable, self.other_topics[:MAX_LISTED]))}{more} (no images)"
            )
        return "\n".join([*lines, "Stopped before the end."] if self.stop_signal is not None else lines)


def replay(
    predictor: ImagePredictor,
    bag: str | Path,
    out: str | Path,
    *,
    topics: Sequence[str] | None = None,
    options: PredictOptions | None = None,
    copy_inputs: bool = True,
    point_stride: int = 4,
    progress_bar: ProgressBar = lambda text, total: nullcontext(lambda done: None),
) -> ReplayReport:
    """Run ``predictor`` on the images of ``bag`` and write a new bag to ``out``.

    Results of ``/front/image_raw`` go to ``/front/perception/...``, or to ``/front/image_raw/perception/...`` if
    ``/front`` has another image topic. They have the stamp, frame_id and log time of their image. Images that cannot
    be read or decoded are counted and skipped. Ctrl-C keeps the part written so far.

    Args:
        predictor: the network.
        bag: file or folder of the recording.
        out: folder of the new bag. It must not exist.
        topics: image topics; None = every image once (see `bags.BagReader`).
        options: size, camera (for images without CameraInfo), max_frames (of each topic), monitor, track,
            smoothing_seconds and ood_model are used. Each topic is treated as a separate video.
        copy_inputs: also copy the images and their CameraInfo into the new bag.
        point_stride: keep every n-th row and column of the point cloud; 0 = no cloud.
        progress_bar: see `ProgressBar`.

    Returns:
        The counts and problems of the run.

    Raises:
        PerceptionError: the bag cannot be read, or ``out`` exists.
    """
    options = options or PredictOptions()
    check_camera(options.camera)
    predictor.letterbox_size(options.size)
    with BagReader(bag, topics) as source, BagWriter(out) as sink:
        report = ReplayReport(Path(out), source.topics, source.skipped_topics, source.other_topics)
        places, begin = assign_prefixes(source.topics), time.perf_counter()
        views = {topic: _TopicPipeline(options, predictor, fps) for topic, fps in source.estimate_rates().items()}

        def carry(raw: RawMessage | None) -> None:
            if copy_inputs and raw is not None:
                sink.write_cdr(raw.topic, raw.type, raw.data, raw.log_time)

        wanted = [
            min(source.count_frames(topic), options.max_frames or source.count_frames(topic)) for topic in source.topics
        ]
        with progress_bar("frames", sum(wanted)) as advance_to:
            try:
                with handle_stop_signals(), defer_stop():
                    for number, frame in enumerate(source.read_frames(options.max_frames, carry)):
                        check_stop()
                        check_free_space(sink.path.parent)
                        carry(frame.raw)
                        _process_frame(views[frame.topic], frame, places[frame.topic], sink, report, point_stride)
                        advance_to(number + 1)
            except KeyboardInterrupt as error:
                report.stop_signal = getattr(error, "signal", signal.SIGINT)
        report.seconds, report.damage = time.perf_counter() - begin, source.damage()
    if not (report.frames or report.problems or report.stop_signal is not None):
        report.add_problem("", "these topics have no messages")
    return report


class _TopicPipeline:
    """Prediction and post-processing of one topic's images, as for a video."""

    def __init__(self, options: PredictOptions, predictor: ImagePredictor, fps: float) -> None:
        self._options, self._predictor = options, predictor
        self._post_processors, self._clock = (
            make_post_processors(options, predictor.specs, fps),
            FrameClock(1 / fps, is_live=False),
        )
        self._start_time: int | None = None

    def __call__(self, image: NDArray[np.uint8], bag_frame: BagFrame) -> Result:
        result = self._predictor(image, bag_frame.camera or self._options.camera, self._options.size)
        self._start_time = bag_frame.header.nanoseconds if self._start_time is None else self._start_time
        frame = Frame(image, self._clock.stamp((bag_frame.header.nanoseconds - self._start_time) / 1e9, 0.0))
        prediction = result.prediction
        for step in self._post_processors:
            prediction = step(frame, prediction)
        return dataclasses.replace(result, prediction=prediction)


def _process_frame(
    pipeline: _TopicPipeline, frame: BagFrame, prefix: str, sink: BagWriter, report: ReplayReport, point_stride: int
) -> None:
    problems = [frame.problem] if frame.problem else []
    if frame.image is not None:
        result = pipeline(frame.image, frame)
        sink.write_result(prefix, result, frame.header, frame.log_time, point_stride)
        report.frames += 1
        problems += [f"{escape_unprintable(frame.topic)}: {flag}" for flag in result.flags]
    for text in problems:
        report.add_problem(frame.topic, text)
