"""`perception predict`: any network, any source; annotated pictures or mp4, and ``predictions.jsonl``. No torch."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.deploy.sources import Shot, Source, Video, find, read_picture
from perception.ops.draw import describe
from perception.ops.panel import panel
from perception.ops.restore import to_json
from perception.types import Camera, DenseMap, PerceptionError, Prediction, TaskSpec

RECORDS = "predictions.jsonl"
DEPTH_SCALE = 0.001
"""Metres per step of a 16-bit depth PNG; 0 = not valid."""

UNKNOWN = 10**9
"""Length of a stream."""


class Network(Protocol):
    """A network of either kind: `runtime.Perceiver` or `torch_runtime.TorchPerceiver`."""

    specs: dict[str, TaskSpec]

    def __call__(self, images: Any, camera: Any = None, size: tuple[int, int] | None = None) -> Any:
        """A list of RGB uint8 pictures [H, W, 3] to a list of predictions in their pixels."""
        ...


@dataclass
class Report:
    """What `predict` did. failures: (source, reason) of each source that could not be read or written to its end."""

    out: Path
    frames: int = 0
    boxes: int = 0
    flagged: int = 0
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        rate = f"{self.frames / self.seconds:.1f} frames/s" if self.seconds else ""
        text = f"{self.out}: {self.frames} frames, {self.boxes} boxes, {rate}"
        text += f", {self.flagged} frames with values that were not sound" if self.flagged else ""
        return text + (f", {len(self.failures)} sources failed" if self.failures else "")


def predict(
    network: Network,
    source: str | Path | int,
    out: str | Path | None = None,
    *,
    camera: Camera | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    save_maps: bool = False,
    frames: int | None = None,
    quiet: bool = False,
) -> Report:
    """Run ``network`` over ``source`` and write what it says to the folder ``out``.

    source: image, folder, glob, video, camera index or stream URL
    out:    a folder that is empty or does not exist yet; None = the next free of runs/predict, runs/predict-2, ...
    camera: intrinsics in pixels of every picture; size: (height, width) that the network sees
    save_maps: also write label maps (8-bit PNG of class ids, 255 = unknown) and quantities (16-bit PNG, step
        `DEPTH_SCALE`) to ``out/maps``
    frames: stop each video or stream after so many
    quiet: no progress, failures and summary on standard error

    Writes ``<name>.jpg`` or ``<name>.mp4`` per source and one line per frame to `RECORDS`. A source that cannot be read
    is reported in the result and the others are done.
    """
    stream, sources = None if quiet else sys.stderr, find(source)
    report, writer = Report(out_folder(out)), Writer(network.specs, save_maps)
    names = _names(sources)
    begin = time.perf_counter()
    with (report.out / RECORDS).open("x", encoding="utf-8") as records:
        for number, item in enumerate(sources):
            line = _Progress(stream, item, number, len(sources))
            try:
                stem = report.out / names[item.id]
                with closing(_predictions(network, item, camera, size, batch_size, frames, line)) as found:
                    for record in writer.write(found, stem, item, report.out):
                        records.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
                        records.flush()
                        report.frames += 1
                        report.flagged += "flags" in record
                        report.boxes += _count(record)
            except PerceptionError as error:
                report.failures.append((str(item.address), str(error)))
                _say(stream, f"{line.place}{item.address}: skipped. {error}")
            except KeyboardInterrupt:
                line.done()
                break
            line.done()
    report.seconds = time.perf_counter() - begin
    _say(stream, str(report))
    return report


def _say(stream: TextIO | None, text: str) -> None:
    if stream is not None:
        stream.write(f"{text}\n")
        stream.flush()


def out_folder(out: str | Path | None) -> Path:
    """The folder to write to, made. Raises PerceptionError where it already holds something: nothing is overwritten."""
    if out is None:
        number = 1
        while (folder := Path("runs") / (f"predict-{number}" if number > 1 else "predict")).exists():
            number += 1
    else:
        folder = Path(out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise PerceptionError(f"{folder} is not empty. Expected a new or empty folder: give another, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _names(sources: Sequence[Source]) -> dict[str, str]:
    """Source id -> relative path of its output without suffix; a suffix is kept where names would meet otherwise."""
    bare = [Path(source.id).with_suffix("").as_posix() for source in sources]
    return {
        s.id: s.id if bare.count(name) > 1 or s.kind == "live" else name for s, name in zip(sources, bare, strict=True)
    }


Found = tuple[Shot, Prediction, float]
"""A shot, what was said of it, and the frames per second of its video."""


def _predictions(
    network: Network,
    source: Source,
    camera: Camera | None,
    size: tuple[int, int] | None,
    batch_size: int,
    frames: int | None,
    line: _Progress,
) -> Generator[Found]:
    video = Video(source) if source.is_video else None
    if video is not None:
        line.length = min(video.length or UNKNOWN, frames or UNKNOWN)
    shots, count = iter(video) if video is not None else iter([read_picture(source)]), 0
    try:
        while chunk := list(islice(shots, min(batch_size, (frames or UNKNOWN) - count))):
            predictions = network([shot.image for shot in chunk], camera, size)
            for shot, prediction in zip(chunk, predictions, strict=True):
                name = f"{source.id}#{count}" if video is not None else source.id
                yield (
                    shot,
                    dataclasses.replace(prediction.prediction, id=name, time=shot.time),
                    video.fps if video else 0.0,
                )
                count += 1
                line.step(count)
    finally:
        if video is not None:
            video.close()
    if not count:
        raise PerceptionError(f"{source.address} opened but has no frame that can be decoded. Check the file.")


class Writer:
    """Writes the annotated picture or video of a source, and its maps."""

    def __init__(self, specs: Mapping[str, TaskSpec], save_maps: bool) -> None:
        self.specs, self.save_maps = specs, save_maps

    def write(self, found: Iterable[Found], stem: Path, source: Source, root: Path) -> Generator[dict[str, Any]]:
        """The record of each frame, after its files are written."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        video: VideoFile | None = None
        try:
            for number, (shot, prediction, fps) in enumerate(found):
                record = to_json(prediction, self.specs)
                picture = panel(shot.image, prediction.annotations, self.specs, describe(prediction))
                if source.is_video:
                    video = video or VideoFile(stem.with_name(stem.name + ".mp4"), fps, picture.shape[:2])
                    video.write(picture)
                else:
                    save(stem.with_name(stem.name + ".jpg"), picture[:, :, ::-1])
                if self.save_maps:
                    place = root / "maps" / stem.relative_to(root)
                    self._save_maps(record, prediction, place / f"{number:06d}" if source.is_video else place, root)
                yield record
        finally:
            if video is not None:
                video.close()

    def _save_maps(self, record: dict[str, Any], prediction: Prediction, place: Path, root: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        for name, annotation in prediction.annotations.items():
            if not isinstance(annotation, DenseMap):
                continue
            file = place.with_name(f"{place.name}.{name}.png")
            record[name] = {"file": file.relative_to(root).as_posix()}
            if self.specs[name].classes:
                save(file, np.where(annotation.valid, annotation.values, 255).astype(np.uint8))
            else:
                steps = np.where(annotation.valid, np.rint(annotation.values / DEPTH_SCALE), 0)
                save(file, np.clip(steps, 0, 65535).astype(np.uint16))
                record[name] |= {"scale": DEPTH_SCALE, "unit": self.specs[name].unit}


class VideoFile:
    """An mp4 of one size; a frame of another size is scaled to it (encoders drop it without a word)."""

    def __init__(self, path: Path, fps: float, shape: tuple[int, ...]) -> None:
        self.path, self.size = path, (shape[1] + shape[1] % 2, shape[0] + shape[0] % 2)
        self._file = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, self.size)
        if not self._file.isOpened():
            raise PerceptionError(f"{path} cannot be written as mp4. Check the folder and that OpenCV has FFmpeg.")

    def write(self, picture: NDArray[np.uint8]) -> None:
        """uint8 RGB [H, W, 3]."""
        if (picture.shape[1], picture.shape[0]) != self.size:
            picture = np.asarray(cv2.resize(picture, self.size), np.uint8)
        self._file.write(np.ascontiguousarray(picture[:, :, ::-1]))

    def close(self) -> None:
        self._file.release()


def save(path: Path, picture: NDArray) -> None:
    """Encode by the suffix of ``path`` (BGR or one channel). Raises PerceptionError where it cannot be written."""
    done, data = cv2.imencode(path.suffix, np.ascontiguousarray(picture))
    try:
        if done:
            path.write_bytes(data.tobytes())
    except OSError as error:
        raise PerceptionError(f"{path} cannot be written: {error}. Free some space or choose another --out.") from error
    if not done:
        raise PerceptionError(f"{path}: a picture of {picture.shape} cannot be encoded as {path.suffix}.")


def _count(record: Mapping[str, Any]) -> int:
    return sum(len(value) for key, value in record.items() if isinstance(value, list) and key not in ("size", "flags"))


class _Progress:
    """One line on a terminal: ``drive.mp4 120/222 frames, 8.1/s, 0:13 left``; at its end only, where it is a file."""

    def __init__(self, stream: TextIO | None, source: Source, number: int, total: int) -> None:
        self.stream, self.source, self.length = stream, source, 1
        self.place = f"[{number + 1}/{total}] " if total > 1 else ""
        self.begin, self.shown, self.text = time.monotonic(), 0.0, ""

    def step(self, count: int) -> None:
        now = time.monotonic()
        rate = count / max(now - self.begin, 1e-6)
        known = count <= self.length < UNKNOWN
        left = round((self.length - count) / rate) if known else 0
        text = f"{self.place}{self.source.id} {count}{f'/{self.length}' if known else ''} frames, {rate:.1f}/s"
        self.text = text + (f", {left // 60}:{left % 60:02d} left" if known else "")
        if self.stream and self.stream.isatty() and now - self.shown > 0.2:
            self.shown = now
            self.stream.write(f"\r\x1b[K{self.text}")
            self.stream.flush()

    def done(self) -> None:
        if self.stream and self.text:
            self.stream.write(f"\r\x1b[K{self.text}\n" if self.stream.isatty() else f"{self.text}\n")
            self.stream.flush()
