"""Annotated images and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.files.safe_write import make_folder, write_whole
from perception.ops.draw import describe, warning
from perception.ops.panel import panel
from perception.runtime.result import Result
from perception.runtime.sources import Shot
from perception.types import PerceptionError
from perception.video.mp4_writer import LARGEST, VideoFile
from perception.video.writer import Recording

WIDEST = 65_500
"""Pixels that a side of a JPEG may have, by libjpeg."""


class PictureWriter:
    """Annotated pictures: ``<name>.jpg`` of a picture, ``<name>.mp4`` of a video."""

    _film: VideoFile | None = None

    def open(self, recording: Recording) -> None:
        self._recording, self._film = recording, None

    def write(self, shot: Shot, result: Result, record: dict[str, Any]) -> None:
        recording = self._recording
        prediction, is_film = result.prediction, recording.fps > 0
        dense = sum(spec.shape == "dense" for spec in result.specs.values())
        stacked = is_film or shot.image.shape[1] * (1 + dense) > WIDEST
        with recording.timings.measure("draw"):
            picture = panel(
                shot.image, result.annotations, result.specs, describe(prediction), warning(prediction), compact=stacked
            )
        if not is_film:
            path = recording.folder / f"{shot.place}.jpg"
            shown = within(picture, WIDEST)
            if shown is not picture:
                recording.say(
                    f"{path}: drawn {shown.shape[1]}x{shown.shape[0]}, for a side of a JPEG has {WIDEST:,} pixels"
                )
            save(path, shown[:, :, ::-1])
            return
        if self._film is None:
            path = recording.folder / f"{recording.name}.mp4"
            make_folder(path.parent)
            self._film = VideoFile(path, recording.fps, picture.shape, recording.timings)
            if max(picture.shape) > LARGEST:
                width, height = self._film.size
                recording.say(f"{path}: drawn {width}x{height}, for a side of an MPEG-4 film has {LARGEST:,} pixels")
        self._film.write(picture, shot.time or 0.0)

    def close(self) -> None:
        film, self._film = self._film, None
        if film is not None:
            film.close()


def save(path: Path, picture: NDArray) -> None:
    """Encode by the suffix of ``path`` (BGR or one channel). Raises PerceptionError where it cannot be written."""
    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(picture))
    if not done:
        raise PerceptionError(f"{path}: a picture of {picture.shape} cannot be encoded as {path.suffix}.")
    write_whole(path, data.tobytes())


def within(picture: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """The picture, made smaller where a side of it is longer than ``most`` pixels."""
    factor = most / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = [max(1, int(side * factor)) for side in picture.shape[1::-1]]
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
