"""What is written of a source: records, annotated pictures and films, maps, and what other programs read.

A writer is told when a source begins (`Recording`), of each frame, and when the source ends, also where it ends by an
error. `WRITERS` names them all; a new one is an entry there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.deploy.result import Result
from perception.deploy.robots.bag_saver import BagSaver
from perception.deploy.sources import Shot
from perception.deploy.video.film import LARGEST, VideoFile
from perception.deploy.video.interrupt import Stopped
from perception.deploy.video.rerun_writer import RerunWriter
from perception.deploy.video.timing import Timings
from perception.ops.draw import describe, warning
from perception.ops.files import append_line, make_folder, write_whole
from perception.ops.names import check_file_name
from perception.ops.panel import panel
from perception.types import IGNORE_INDEX, DenseMap, PerceptionError, TaskSpec

RECORDS = "predictions.jsonl"
WIDEST = 65_500
"""Pixels that a side of a JPEG may have, by libjpeg."""
FINE, COARSE = 0.001, 1 / 256
"""Metres per step of a 16-bit depth PNG where everything then fits into it (65.5 m), and where it does not (256 m)."""
STEPS = 65535
ERROR_SCALE = 0.0001
"""Share of the depth per step of the 16-bit PNG of the error that it expects."""


@dataclass(frozen=True)
class Recording:
    """A source that begins. folder: of the run; name: of the source within it, without suffix; fps: 0 = pictures.

    say: tells the user a sentence
    """

    folder: Path
    name: str
    fps: float
    specs: Mapping[str, TaskSpec]
    timings: Timings
    say: Callable[[str], None] = lambda text: None


class Writer(Protocol):
    """One for a run; ``open`` and ``close`` for each of its videos, and once for all of its pictures."""

    def open(self, recording: Recording) -> None: ...

    def write(self, shot: Shot, result: Result, record: dict[str, Any]) -> None:
        """A frame. record: its line of ``predictions.jsonl``, to which names of files may be added."""
        ...

    def close(self) -> None: ...


class RecordWriter:
    """A line of ``predictions.jsonl`` for each frame, on disk at once and whole, or not at all."""

    _file: FileIO | None = None

    def open(self, recording: Recording) -> None:
        self._path = recording.folder / RECORDS
        self._file = self._path.open("ab", buffering=0)

    def write(self, shot: Shot, result: Result, record: dict[str, Any]) -> None:
        assert self._file is not None
        append_line(self._file, self._path, json.dumps(record, ensure_ascii=False, allow_nan=False))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


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


class MapWriter:
    """Label maps (8-bit PNG of class ids, 255 = unknown), quantities (16-bit PNG, 0 = not valid, steps of `step`) and,
    beside them, the relative errors that they expect (16-bit PNG, steps of `ERROR_SCALE`)."""

    def open(self, recording: Recording) -> None:
        self._folder = recording.folder

    def write(self, shot: Shot, result: Result, record: dict[str, Any]) -> None:
        for name, annotation in result.annotations.items():
            if not isinstance(annotation, DenseMap):
                continue
            file = self._folder / "maps" / f"{shot.place}.{check_file_name(name, 'a task')}.png"
            save(file, stored(annotation, result.specs[name]))
            record[name] = {"file": file.relative_to(self._folder).as_posix()}
            if not result.specs[name].classes:
                record[name] |= {"scale": step(result.specs[name]), "unit": result.specs[name].unit}
                if annotation.error is not None:
                    beside = file.with_name(f"{file.stem}_error.png")
                    save(beside, np.clip(np.rint(annotation.error / ERROR_SCALE), 0, STEPS).astype(np.uint16))
                    record[name] |= {
                        "error": {"file": beside.relative_to(self._folder).as_posix(), "scale": ERROR_SCALE}
                    }

    def close(self) -> None:
        pass


class Window:
    """What is drawn, on the screen. Raises PerceptionError where OpenCV was built without windows, as ours is."""

    TITLE = "perception"
    _is_open = False

    def open(self, recording: Recording) -> None:
        try:
            cv2.namedWindow(self.TITLE, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise PerceptionError(
                "This OpenCV has no windows (opencv-python-headless, which robots and servers want). Leave out --show, "
                "and watch the mp4, or --save rrd and open it with `rerun`."
            ) from error
        self._is_open = True

    def write(self, shot: Shot, result: Result, record: dict[str, Any]) -> None:
        cv2.imshow(self.TITLE, np.ascontiguousarray(result.plot("picture")[:, :, ::-1]))
        if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
            raise Stopped

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            cv2.destroyAllWindows()


WRITERS: dict[str, Callable[[], Writer]] = {
    "maps": MapWriter,
    "jsonl": RecordWriter,
    "mp4": PictureWriter,
    "rrd": RerunWriter,
    "mcap": BagSaver,
    "window": Window,
}
"""In the order in which they are told of a frame: what adds to its record comes before what writes the record."""


def make_writers(names: set[str]) -> list[Writer]:
    """Raises PerceptionError for a name that is none of `WRITERS`."""
    if unknown := sorted(names - set(WRITERS)):
        raise PerceptionError(f"No way to save {', '.join(unknown)}. There are: {', '.join(WRITERS)}.")
    return [make() for name, make in WRITERS.items() if name in names]


def step(spec: TaskSpec) -> float:
    """Of a quantity's 16-bit PNG: the finest of those that people know in which its upper limit can be written."""
    if spec.limits is None:
        return COARSE
    return next((scale for scale in (FINE, COARSE) if spec.limits[1] <= STEPS * scale), spec.limits[1] / STEPS)


def stored(map: DenseMap, spec: TaskSpec) -> NDArray:
    """A map as its PNG holds it: class ids uint8, 255 = unknown; a quantity uint16 in steps of `step`, 0 = unknown."""
    if spec.classes:
        return np.where(map.valid, map.values, IGNORE_INDEX).astype(np.uint8)
    steps = np.where(map.valid, np.maximum(np.rint(map.values / step(spec)), 1), 0)
    return np.minimum(steps, STEPS).astype(np.uint16)


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
