"""`perception predict MODEL BAG`: the cameras of a recording through a network, results as topics of a new one."""

from __future__ import annotations

import dataclasses
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.files.safe_names import escape_unprintable
from perception.files.safe_write import check_free_space
from perception.robots.bag_writer import BagWriter
from perception.robots.bags import BagFrame, BagReader, RawMessage
from perception.robots.topics import assign_prefixes
from perception.runtime.predictor import check_camera
from perception.runtime.result import Result
from perception.runtime.sources import Frame
from perception.video.interrupt import check_stop, defer_stop, handle_stop_signals
from perception.video.run import PredictOptions, make_post_processors
from perception.video.timestamps import FrameClock

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A progress bar: text and total to a function of how much is done."""
MAX_LISTED = 20
"""Kinds of problems that are told apart."""


@dataclass
class ReplayReport:
    """What `replay` did.

    problems: sentence -> count, of images that could not be used, had no usable camera, or whose results are flagged
    skipped_topics: topics of images that were not read -> why. other_topics: topics that have no images
    damage:   what of the recording could not be read: sentence -> count
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
        """One more image of ``topic`` with a problem; sentences that differ in numbers only are of one kind."""
        kind = topic, re.sub(r"\d+", "0", problem)
        if kind not in self._kinds:
            self._kinds[kind] = problem if len(self._kinds) < MAX_LISTED else "other problems"
        shown = self._kinds[kind]
        self.problems[shown] = self.problems.get(shown, 0) + 1

    def __str__(self) -> str:
        rate = f", {self.frames / self.seconds:.1f} frames/s" if self.seconds else ""
        lines = [f"{self.out}: {self.frames} frames of {', '.join(map(escape_unprintable, self.topics))}{rate}"]
        lines += [] if self.frames or self.stop_signal is not None else ["No image of it could be decoded."]
        lines += [f"{count} x {text}" for text, count in [*self.problems.items(), *self.damage.items()]]
        lines += [f"left out: {escape_unprintable(topic)}: {why}" for topic, why in self.skipped_topics.items()]
        if self.other_topics:
            more = f" and {len(self.other_topics) - MAX_LISTED} more" if len(self.other_topics) > MAX_LISTED else ""
            lines.append(
                f"not copied: {', '.join(map(escape_unprintable, self.other_topics[:MAX_LISTED]))}{more} (no images)"
            )
        return "\n".join([*lines, "Stopped before the end."] if self.stop_signal is not None else lines)


def replay(
    predictor: Any,
    bag: str | Path,
    out: str | Path,
    *,
    topics: Sequence[str] | None = None,
    options: PredictOptions | None = None,
    copy_inputs: bool = True,
    point_stride: int = 4,
    progress_bar: ProgressBar = lambda text, total: nullcontext(lambda done: None),
) -> ReplayReport:
    """Run ``predictor`` over the images of ``bag`` and write a new bag at ``out``.

    predictor: `runtime.Perceiver` or anything that is called like it
    topics:  image topics; None = all of images, each once (see `bags.Bag`)
    options: size, camera (of images without CameraInfo), frames (of each topic), monitor, track, smooth and
        calibration; each topic is a video of its own
    copy_inputs:    also carry over the images and their CameraInfo, so that the new bag shows everything by itself
    point_stride: rows and columns between the cloud's points; 0 = no cloud

    Results of ``/front/image_raw`` are in ``/front/perception/...`` (in ``/front/image_raw/perception/...`` where
    another image topic is in ``/front``), with the stamp and frame_id of their image, at the time when it was
    recorded. What cannot be read or decoded is counted and left out. Ctrl-C keeps what was written. Raises
    PerceptionError where the bag cannot be read or ``out`` exists.
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
        report.add_problem("", "nothing was recorded on these topics")
    return report


class _TopicPipeline:
    """One topic's images through the network, and what is made of its predictions as of a video's."""

    def __init__(self, options: PredictOptions, predictor: Any, fps: float) -> None:
        self._options, self._predictor = options, predictor
        self._post_processors, self._clock = (
            make_post_processors(options, predictor.specs, fps),
            FrameClock(1 / fps, is_live=False),
        )
        self._start_time: int | None = None

    def __call__(self, image: NDArray[np.uint8], bag_frame: BagFrame) -> Result:
        result: Result = self._predictor(image, bag_frame.camera or self._options.camera, self._options.size)
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
