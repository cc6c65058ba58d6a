"""Annotated images and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.files.safe_write import make_folder, write_atomic
from perception.ops.draw import format_distances, format_warning
from perception.ops.panel import draw_panel
from perception.runtime.result import Result
from perception.runtime.sources import Frame
from perception.types import PerceptionError
from perception.video.mp4_writer import MAX_SIDE, Mp4Writer
from perception.video.writer import WriterContext

MAX_JPEG_SIDE = 65_500
"""Maximum side of a JPEG in pixels (libjpeg)."""


class AnnotatedFrameWriter:
    """Writes annotated images: ``<name>.jpg`` for an image, ``<name>.mp4`` for a video."""

    _video: Mp4Writer | None = None

    def open(self, context: WriterContext) -> None:
        """Start a source. The video file is created with its first frame."""
        self._context, self._video = context, None

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
        """Draw a frame, and write or encode it."""
        context = self._context
        prediction, is_video = result.prediction, context.fps > 0
        dense = sum(spec.annotation_type == "dense" for spec in result.specs.values())
        stacked = is_video or frame.image.shape[1] * (1 + dense) > MAX_JPEG_SIDE
        with context.timings.measure("draw"):
            picture = draw_panel(
                frame.image,
                result.annotations,
                result.specs,
                format_distances(prediction),
                format_warning(prediction),
                compact=stacked,
            )
        if not is_video:
            path = context.folder / f"{frame.output_stem}.jpg"
            shown = shrink_to_fit(picture, MAX_JPEG_SIDE)
            if shown is not picture:
                context.notify(
                    f"{path}: reduced to {shown.shape[1]}x{shown.shape[0]}, because a side "
                    f"of a JPEG has at most {MAX_JPEG_SIDE:,} pixels"
                )
            write_image(path, shown[:, :, ::-1])
            return
        if self._video is None:
            path = context.folder / f"{context.name}.mp4"
            make_folder(path.parent)
            self._video = Mp4Writer(path, context.fps, picture.shape, context.timings)
            if max(picture.shape) > MAX_SIDE:
                width, height = self._video.size
                context.notify(
                    f"{path}: reduced to {width}x{height}, because a side of an MPEG-4 video has at most "
                    f"{MAX_SIDE:,} pixels"
                )
        self._video.write(picture, frame.time or 0.0)

    def close(self) -> None:
        """Finish the video, if there is one."""
        film, self._video = self._video, None
        if film is not None:
            film.close()


def write_image(path: Path, image: NDArray) -> None:
    """Encode an image (BGR or one channel) in the format of the suffix. Raises PerceptionError if that fails."""
    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(image))
    if not done:
        raise PerceptionError(f"{path}: an image of {image.shape} cannot be encoded as {path.suffix}.")
    write_atomic(path, data.tobytes())


def shrink_to_fit(image: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    """Shrink the image if a side is longer than ``max_side`` pixels."""
    factor = max_side / max(image.shape[:2])
    if factor >= 1:
        return image
    size = [max(1, int(side * factor)) for side in image.shape[1::-1]]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
