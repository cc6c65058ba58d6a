"""Threaded pipeline: decoding, inference and post-processing in separate threads, with bounded queues between them."""

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
"""Called on each prediction, in frame order: a monitor, smoothing, tracking."""
PreparedBatch: TypeAlias = tuple[list[Frame], NDArray[np.uint8], list[ImageTransform], float]
OutputBatch: TypeAlias = tuple[list[Frame], Outputs, list[ImageTransform], float]
"""The last element: seconds of work on these frames so far, without waiting."""


class PredictorLike(Protocol):
    """A network: `runtime.predictor.Predictor` (ONNX) or `torch_predictor.TorchPredictor`."""

    specs: dict[str, TaskSpec]
    size: tuple[int, int]

    def letterbox_size(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """Return the letterbox size for the requested ``size``; None = the network resizes images itself."""
        ...

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Return the decoded outputs for a letterboxed batch uint8 RGB [B, 3, H, W], in input pixels."""
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
    """Yield each frame with its result, in order.

    Args:
        predictor: the network.
        frames: the input frames; closed at the end.
        post_processors: called on each prediction, in this order.
        timings: gets the durations of the stages.
        camera: intrinsics in pixels of the frames; None = default focal length.
        size: (height, width) of the network input; None = the training size.
        batch_size: batch size.
        is_live: keep the queues minimal, so that old frames are dropped at the source.
        check_stop: called repeatedly while waiting for a result; an exception from it ends the wait.
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
            # Without letterboxing, only images of the same size form a batch.
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
    """Post-process batches. Frames of a file wait in queues by design: their latency counts only the work."""
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
