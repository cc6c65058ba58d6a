"""`perception predict MODEL BAG`: the cameras of a recording through a network, results as topics of a new one."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.deploy.result import Result
from perception.deploy.robots.bags import Bag, BagFrame, BagWriter, namespace
from perception.deploy.runtime import check_camera
from perception.deploy.sources import Shot
from perception.deploy.video.clock import Clock
from perception.deploy.video.interrupt import check, held, terminable
from perception.deploy.video.run import Options, steps
from perception.ops.files import check_room

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A progress bar: text and total to a function of how much is done."""


@dataclass
class ReplayReport:
    """What `replay` did. problems: sentence -> count, of pictures that could not be used, had no usable camera, or
    whose results are flagged."""

    out: Path
    topics: list[str]
    frames: int = 0
    seconds: float = 0.0
    interrupted: int | None = None
    problems: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        rate = f", {self.frames / self.seconds:.1f} frames/s" if self.seconds else ""
        lines = [f"{self.out}: {self.frames} frames of {', '.join(self.topics)}{rate}"]
        lines += [] if self.frames or self.interrupted is not None else ["No picture of it could be decoded."]
        lines += [f"{count} x {text}" for text, count in self.problems.items()]
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
    topics:  image topics; None = all
    options: size, camera (of pictures without CameraInfo), frames, monitor, track, smooth and calibration; each topic
        is a video of its own
    copy:    also carry over the pictures and their CameraInfo, so that the new bag shows everything by itself
    point_step: rows and columns between the cloud's points; 0 = no cloud

    Results of ``/front/image_raw`` are in ``/front/perception/...``, with the stamp and frame_id of their picture, at
    the time when it was recorded. A picture that cannot be decoded is counted and left out. Ctrl-C keeps what was
    written. Raises PerceptionError where the bag cannot be read or ``out`` exists.
    """
    options = options or Options()
    check_camera(options.camera)
    network.placed(options.size)
    with Bag(bag, topics) as source, BagWriter(out) as sink:
        views = {topic: _View(options, network, source.rate(topic)) for topic in source.topics}
        report, begin = ReplayReport(Path(out), source.topics), time.perf_counter()
        with bar("frames", len(source)) as advance_to:
            try:
                with terminable(), held():
                    if copy:
                        for raw in source.infos():
                            sink.copy(raw)
                    for number, frame in enumerate(islice(source.frames(), options.frames)):
                        check()
                        check_room(sink.path.parent)
                        _one(views[frame.topic], frame, sink, report, copy, point_step)
                        advance_to(number + 1)
            except KeyboardInterrupt as error:
                report.interrupted = getattr(error, "signal", signal.SIGINT)
        report.seconds = time.perf_counter() - begin
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


def _one(view: _View, frame: BagFrame, sink: BagWriter, report: ReplayReport, copy: bool, point_step: int) -> None:
    problems = [frame.problem.partition(": ")[2] or frame.problem] if frame.problem else []
    if copy:
        sink.copy(frame.raw)
    if frame.image is not None:
        result = view(frame.image, frame)
        sink.write_result(prefix(frame.topic), result, frame.stamp, frame.logged, point_step)
        report.frames += 1
        problems += result.flags
    for text in problems:
        report.problems[text] = report.problems.get(text, 0) + 1


def prefix(topic: str) -> str:
    """Where the results of an image topic are published."""
    return f"{namespace(topic)}/perception"
