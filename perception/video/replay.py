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

from perception.files.safe_names import printable
from perception.files.safe_write import check_room
from perception.robots.bag_writer import BagWriter
from perception.robots.bags import Bag, BagFrame, Raw
from perception.robots.topics import prefixes
from perception.runtime.predictor import check_camera
from perception.runtime.result import Result
from perception.runtime.sources import Shot
from perception.video.interrupt import check, held, terminable
from perception.video.run import Options, steps
from perception.video.timestamps import Clock

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A progress bar: text and total to a function of how much is done."""
MOST = 20
"""Kinds of problems that are told apart."""


@dataclass
class ReplayReport:
    """What `replay` did.

    problems: sentence -> count, of pictures that could not be used, had no usable camera, or whose results are flagged
    left_out: topics of images that were not read -> why. others: topics that have no images
    damage:   what of the recording could not be read: sentence -> count
    """

    out: Path
    topics: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    interrupted: int | None = None
    problems: dict[str, int] = field(default_factory=dict)
    damage: dict[str, int] = field(default_factory=dict)
    _kinds: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)

    def count(self, topic: str, problem: str) -> None:
        """One more picture of ``topic`` with a problem; sentences that differ in numbers only are of one kind."""
        kind = topic, re.sub(r"\d+", "0", problem)
        if kind not in self._kinds:
            self._kinds[kind] = problem if len(self._kinds) < MOST else "other problems"
        shown = self._kinds[kind]
        self.problems[shown] = self.problems.get(shown, 0) + 1

    def __str__(self) -> str:
        rate = f", {self.frames / self.seconds:.1f} frames/s" if self.seconds else ""
        lines = [f"{self.out}: {self.frames} frames of {', '.join(map(printable, self.topics))}{rate}"]
        lines += [] if self.frames or self.interrupted is not None else ["No picture of it could be decoded."]
        lines += [f"{count} x {text}" for text, count in [*self.problems.items(), *self.damage.items()]]
        lines += [f"left out: {printable(topic)}: {why}" for topic, why in self.left_out.items()]
        if self.others:
            more = f" and {len(self.others) - MOST} more" if len(self.others) > MOST else ""
            lines.append(f"not copied: {', '.join(map(printable, self.others[:MOST]))}{more} (no images)")
        return "\n".join([*lines, "Stopped before the end."] if self.interrupted is not None else lines)


def replay(
    network: Any,
    bag: str | Path,
    out: str | Path,
    *,
    topics: Sequence[str] | None = None,
    options: Options | None = None,
    copy: bool = True,
    point_step: int = 4,
    bar: Bar = lambda text, total: nullcontext(lambda done: None),
) -> ReplayReport:
    """Run ``network`` over the pictures of ``bag`` and write a new bag at ``out``.

    network: `runtime.Perceiver` or anything that is called like it
    topics:  image topics; None = all of pictures, each once (see `bags.Bag`)
    options: size, camera (of pictures without CameraInfo), frames (of each topic), monitor, track, smooth and
        calibration; each topic is a video of its own
    copy:    also carry over the pictures and their CameraInfo, so that the new bag shows everything by itself
    point_step: rows and columns between the cloud's points; 0 = no cloud

    Results of ``/front/image_raw`` are in ``/front/perception/...`` (in ``/front/image_raw/perception/...`` where
    another image topic is in ``/front``), with the stamp and frame_id of their picture, at the time when it was
    recorded. What cannot be read or decoded is counted and left out. Ctrl-C keeps what was written. Raises
    PerceptionError where the bag cannot be read or ``out`` exists.
    """
    options = options or Options()
    check_camera(options.camera)
    network.placed(options.size)
    with Bag(bag, topics) as source, BagWriter(out) as sink:
        report = ReplayReport(Path(out), source.topics, source.left_out, source.others)
        places, begin = prefixes(source.topics), time.perf_counter()
        views = {topic: _View(options, network, fps) for topic, fps in source.rates().items()}

        def carry(raw: Raw | None) -> None:
            if copy and raw is not None:
                sink.write_cdr(raw.topic, raw.type, raw.data, raw.logged)

        wanted = [min(source.count(topic), options.frames or source.count(topic)) for topic in source.topics]
        with bar("frames", sum(wanted)) as advance_to:
            try:
                with terminable(), held():
                    for number, frame in enumerate(source.frames(options.frames, carry)):
                        check()
                        check_room(sink.path.parent)
                        carry(frame.raw)
                        _one(views[frame.topic], frame, places[frame.topic], sink, report, point_step)
                        advance_to(number + 1)
            except KeyboardInterrupt as error:
                report.interrupted = getattr(error, "signal", signal.SIGINT)
        report.seconds, report.damage = time.perf_counter() - begin, source.damage()
    if not (report.frames or report.problems or report.interrupted is not None):
        report.count("", "nothing was recorded on these topics")
    return report


class _View:
    """One topic's pictures through the network, and what is made of its predictions as of a video's."""

    def __init__(self, options: Options, network: Any, fps: float) -> None:
        self._options, self._network = options, network
        self._steps, self._clock = steps(options, network.specs, fps), Clock(1 / fps, live=False)
        self._begin: int | None = None

    def __call__(self, image: NDArray[np.uint8], frame: BagFrame) -> Result:
        result: Result = self._network(image, frame.camera or self._options.camera, self._options.size)
        self._begin = frame.stamp.nanoseconds if self._begin is None else self._begin
        shot = Shot(image, self._clock.stamp((frame.stamp.nanoseconds - self._begin) / 1e9, 0.0))
        prediction = result.prediction
        for step in self._steps:
            prediction = step(shot, prediction)
        return dataclasses.replace(result, prediction=prediction)


def _one(view: _View, frame: BagFrame, place: str, sink: BagWriter, report: ReplayReport, point_step: int) -> None:
    problems = [frame.problem] if frame.problem else []
    if frame.image is not None:
        result = view(frame.image, frame)
        sink.write_result(place, result, frame.stamp, frame.logged, point_step)
        report.frames += 1
        problems += [f"{printable(frame.topic)}: {flag}" for flag in result.flags]
    for text in problems:
        report.count(frame.topic, text)
