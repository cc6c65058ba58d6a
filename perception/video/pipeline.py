"""Decode, network, and what is made of its outputs, side by side: a thread for each, bounded queues between them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import groupby, islice
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perception.runtime.predictor import Outputs, finish, prepare
from perception.runtime.result import Result
from perception.runtime.sources import Shot
from perception.types import Camera, Frame, Prediction, TaskSpec
from perception.video.bounded_queue import ahead
from perception.video.stage_times import Timings

Step: TypeAlias = Callable[[Shot, Prediction], Prediction]
"""What makes more of a prediction, in the order of the shots: a monitor, smoothing, tracks."""
Prepared: TypeAlias = tuple[list[Shot], NDArray[np.uint8], list[Frame], float]
Ran: TypeAlias = tuple[list[Shot], Outputs, list[Frame], float]
"""The last: seconds that were spent on the shots so far, without waiting."""


class Network(Protocol):
    """A network of either kind: `runtime.Perceiver` or `torch_runtime.TorchPerceiver`."""

    specs: dict[str, TaskSpec]
    size: tuple[int, int]

    def placed(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """What pictures are letterboxed to where ``size`` is asked for; None = the network does it itself."""
        ...

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Decoded outputs of a letterboxed batch uint8 RGB [B, 3, H, W], in input pixels."""
        ...


def results(
    network: Network,
    shots: Generator[Shot],
    steps: Sequence[Step],
    timings: Timings,
    *,
    camera: Camera | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    live: bool = False,
    check: Callable[[], None] | None = None,
) -> Generator[tuple[Shot, Result]]:
    """Each shot with what the network says of it, in order.

    live: as little as possible waits between the stages, so that what is old is dropped at the source
    check: called again and again while there is no result yet; what it raises ends the wait
    """
    prepared = _prepare(shots, network.placed(size), batch_size, timings)
    ran = _run(network, prepared if live else ahead(prepared, 2, "prepare"), timings)
    finished = _finish(network, ahead(ran, 1 if live else 2, "network"), camera, steps, timings, live)
    return ahead(finished, 1 if live else 2, "finish", check=check)


def _prepare(
    shots: Generator[Shot], size: tuple[int, int] | None, batch_size: int, timings: Timings
) -> Generator[Prepared]:
    with closing(shots):
        while chunk := list(islice(shots, batch_size)):
            # Pictures that are not letterboxed here go together as long as they are of one size.
            for _, alike in groupby(chunk, lambda shot: shot.image.shape if size is None else ()):
                some = list(alike)
                with timings.measure("prepare") as spent:
                    batch, frames = prepare([shot.image for shot in some], size)
                yield some, batch, frames, spent()


def _run(network: Network, prepared: Generator[Prepared], timings: Timings) -> Generator[Ran]:
    with closing(prepared):
        for shots, batch, frames, before in prepared:
            with timings.measure("network") as spent:
                outputs = network.run(batch)
            yield shots, outputs, frames, before + spent()


def _finish(
    network: Network,
    ran: Generator[Ran],
    camera: Camera | None,
    steps: Sequence[Step],
    timings: Timings,
    live: bool,
) -> Generator[tuple[Shot, Result]]:
    """A file's frames wait for their turn by design: their latency is what was spent on them."""
    with closing(ran):
        for shots, outputs, frames, before in ran:
            begin = time.monotonic()
            with timings.measure("restore"):
                found = finish(outputs, network.specs, [shot.image for shot in shots], frames, [camera] * len(shots))
            for shot, result in zip(shots, found, strict=True):
                shot = shot if live else dataclasses.replace(shot, arrived=begin - before)
                prediction = dataclasses.replace(result.prediction, id=shot.id, time=shot.time)
                with timings.measure("follow"):
                    for step in steps:
                        prediction = step(shot, prediction)
                yield shot, dataclasses.replace(result, prediction=prediction)
                begin = time.monotonic()
