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

from perception.runtime.predictor import Outputs, postprocess, preprocess
from perception.runtime.result import Result
from perception.runtime.sources import Frame
from perception.types import Camera, ImageTransform, Prediction, TaskSpec
from perception.video.bounded_queue import prefetch
from perception.video.stage_times import Timings

PostProcessor: TypeAlias = Callable[[Frame, Prediction], Prediction]
"""What makes more of a prediction, in the order of the shots: a monitor, smoothing, tracks."""
PreparedBatch: TypeAlias = tuple[list[Frame], NDArray[np.uint8], list[ImageTransform], float]
OutputBatch: TypeAlias = tuple[list[Frame], Outputs, list[ImageTransform], float]
"""The last: seconds that were spent on the shots so far, without waiting."""


class PredictorLike(Protocol):
    """A network of either kind: `runtime.Perceiver` or `torch_runtime.TorchPerceiver`."""

    specs: dict[str, TaskSpec]
    size: tuple[int, int]

    def letterbox_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """What images are letterboxed to where ``size`` is asked for; None = the network does it itself."""
        ...

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Decoded outputs of a letterboxed batch uint8 RGB [B, 3, H, W], in input pixels."""
        ...


def run_pipeline(
    predictor: PredictorLike,
    frames: Generator[Frame],
    post_processors: Sequence[PostProcessor],
    timings: Timings,
    *,
    camera: Camera | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    is_live: bool = False,
    check_stop: Callable[[], None] | None = None,
) -> Generator[tuple[Frame, Result]]:
    """Each shot with what the network says of it, in order.

    is_live: as little as possible waits between the stages, so that what is old is dropped at the source
    check_stop: called again and again while there is no result yet; what it raises ends the wait
    """
    prepared = _preprocess_frames(frames, predictor.letterbox_size(size), batch_size, timings)
    ran = _run_batches(predictor, prepared if is_live else prefetch(prepared, 2, "preprocess"), timings)
    finished = _postprocess_batches(
        predictor, prefetch(ran, 1 if is_live else 2, "inference"), camera, post_processors, timings, is_live
    )
    return prefetch(finished, 1 if is_live else 2, "postprocess", check_stop=check_stop)


def _preprocess_frames(
    frames: Generator[Frame], size: tuple[int, int] | None, batch_size: int, timings: Timings
) -> Generator[PreparedBatch]:
    with closing(frames):
        while chunk := list(islice(frames, batch_size)):
            # Images that are not letterboxed here go together as long as they are of one size.
            for _, alike in groupby(chunk, lambda frame: frame.image.shape if size is None else ()):
                some = list(alike)
                with timings.measure("preprocess") as spent:
                    batch, transforms = preprocess([frame.image for frame in some], size)
                yield some, batch, transforms, spent()


def _run_batches(
    predictor: PredictorLike, prepared: Generator[PreparedBatch], timings: Timings
) -> Generator[OutputBatch]:
    with closing(prepared):
        for frames, batch, transforms, before in prepared:
            with timings.measure("inference") as spent:
                outputs = predictor.run(batch)
            yield frames, outputs, transforms, before + spent()


def _postprocess_batches(
    predictor: PredictorLike,
    batches: Generator[OutputBatch],
    camera: Camera | None,
    post_processors: Sequence[PostProcessor],
    timings: Timings,
    is_live: bool,
) -> Generator[tuple[Frame, Result]]:
    """A file's frames wait for their turn by design: their latency is what was spent on them."""
    with closing(batches):
        for frames, outputs, transforms, before in batches:
            begin = time.monotonic()
            with timings.measure("restore"):
                found = postprocess(
                    outputs, predictor.specs, [frame.image for frame in frames], transforms, [camera] * len(frames)
                )
            for frame, result in zip(frames, found, strict=True):
                frame = frame if is_live else dataclasses.replace(frame, arrival_time=begin - before)
                prediction = dataclasses.replace(result.prediction, id=frame.id, time=frame.time)
                with timings.measure("postprocess"):
                    for step in post_processors:
                        prediction = step(frame, prediction)
                yield frame, dataclasses.replace(result, prediction=prediction)
                begin = time.monotonic()
