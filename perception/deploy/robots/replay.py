"""`perception predict MODEL BAG`: the cameras of a recording through a network, results as topics of a new one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perception.deploy.result import Result
from perception.deploy.robots.bags import Bag, BagFrame, BagWriter, namespace
from perception.deploy.robots.messages import all_messages

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A progress bar: text and total to a function of how much is done."""


@dataclass
class ReplayReport:
    """What `replay` did. problems: sentence -> count, of pictures that could not be used or had no usable camera."""

    out: Path
    topics: list[str]
    frames: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    problems: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        rate = f", {self.frames / self.seconds:.1f} frames/s" if self.seconds else ""
        lines = [f"{self.out}: {self.frames} frames of {', '.join(self.topics)}{rate}"]
        lines += [f"{count} x {text}" for text, count in self.problems.items()]
        return "\n".join([*lines, "Stopped before the end."] if self.interrupted else lines)


def replay(
    network: Any,
    bag: str | Path,
    out: str | Path,
    *,
    topics: Sequence[str] | None = None,
    copy: bool = True,
    point_step: int = 4,
    bar: Bar = lambda text, total: nullcontext(lambda done: None),
) -> ReplayReport:
    """Run ``network`` over the pictures of ``bag`` and write a new bag at ``out``.

    network: `runtime.Perceiver` or anything that is called like it
    topics:  image topics; None = all
    copy:    also carry over the pictures and their CameraInfo, so that the new bag shows everything by itself
    point_step: rows and columns between the cloud's points; 0 = no cloud

    Results of ``/front/image_raw`` are in ``/front/perception/...``, with the stamp and frame_id of their picture, at
    the time when it was recorded. A picture that cannot be decoded is counted and left out. Ctrl-C keeps what was
    written. Raises PerceptionError where the bag cannot be read or ``out`` exists.
    """
    with Bag(bag, topics) as source, BagWriter(out) as sink:
        report, begin = ReplayReport(Path(out), source.topics), time.perf_counter()
        with bar("frames", len(source)) as advance_to:
            try:
                if copy:
                    for raw in source.infos():
                        sink.copy(raw)
                for number, frame in enumerate(source.frames()):
                    _one(network, frame, sink, report, copy, point_step)
                    advance_to(number + 1)
            except KeyboardInterrupt:
                report.interrupted = True
        report.seconds = time.perf_counter() - begin
    return report


def _one(network: Any, frame: BagFrame, sink: BagWriter, report: ReplayReport, copy: bool, point_step: int) -> None:
    if frame.problem:
        kind = frame.problem.partition(": ")[2] or frame.problem
        report.problems[kind] = report.problems.get(kind, 0) + 1
    if copy:
        sink.copy(frame.raw)
    if frame.image is None:
        return
    result: Result = network(frame.image, frame.camera)
    sink.write_all(prefix(frame.topic), all_messages(result, frame.stamp, point_step), frame.logged)
    report.frames += 1


def prefix(topic: str) -> str:
    """Where the results of an image topic are published."""
    return f"{namespace(topic)}/perception"
