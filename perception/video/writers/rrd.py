"""Recordings for the viewer of rerun.io (``--save rrd``): image, boxes, segmentation mask and depth."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.ops.draw import format_distances
from perception.ops.palette import class_palette
from perception.runtime.result import Result, default_camera
from perception.runtime.sources import Frame
from perception.types import Camera, DenseMap, ImageLabel, Instances, PerceptionError, TaskSpec
from perception.video.writer import WriterContext

INSTALL_HINT = "--save rrd needs rerun-sdk. Install it: pip install 'dense-perception[rerun]'"
UNITS_PER_METER = 1000
"""Units of the 16-bit depth image per metre."""


class RerunWriter:
    """Writes ``<name>.rrd`` for each video, and one file for all images. It sends nothing over the network."""

    _stream: Any = None

    def open(self, context: WriterContext) -> None:
        """Create the recording of a source. Raises PerceptionError if rerun-sdk is not installed."""
        try:
            import rerun  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise PerceptionError(INSTALL_HINT) from error
        self._rerun, self._specs, self._count = rerun, context.specs, 0
        path = context.folder / f"{context.name or 'images'}.rrd"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = rerun.RecordingStream("perception", recording_id=context.name or "images")
        self._stream.save(path)
        for name, spec in context.specs.items():
            if spec.classes and spec.annotation_type != "label":
                infos = zip(range(len(spec.classes)), spec.classes, class_palette(spec.classes).tolist(), strict=True)
                self._log(f"camera/{name}", rerun.AnnotationContext(list(infos)), static=True)

    def write(self, frame: Frame, result: Result, record: dict[str, Any]) -> None:
        """Log an image, its camera and its results."""
        if frame.time is None:
            self._stream.set_time("image", sequence=self._count)
        else:
            self._stream.set_time("video", duration=frame.time)
        self._count += 1
        rerun = self._rerun
        data = cv2.imencode(".jpg", cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))[1].tobytes()
        self._log("camera", self._make_pinhole(result))
        self._log("camera/image", rerun.EncodedImage(contents=data, media_type="image/jpeg"))
        notes = format_distances(result.prediction)
        for name, annotation in result.annotations.items():
            spec = self._specs[name]
            if isinstance(annotation, Instances):
                self._log_boxes(name, annotation, spec, notes)
                notes = []
            elif isinstance(annotation, ImageLabel):
                values = dict(zip(spec.classes, np.asarray(annotation.values).tolist(), strict=True))
                for label, value in values.items():
                    self._log(f"{name}/{label}", rerun.Scalars(value))
            elif spec.classes:
                shown = np.where(annotation.valid, annotation.values, 255).astype(np.uint8)
                self._log(f"camera/{name}", rerun.SegmentationImage(shown, opacity=0.4))
            else:
                self._log(f"camera/{name}", rerun.DepthImage(_encode_depth(annotation), meter=float(UNITS_PER_METER)))
        if result.flags:
            level = rerun.TextLogLevel.WARN if result.valid else rerun.TextLogLevel.ERROR
            self._log("flags", rerun.TextLog("; ".join(result.flags), level=level))

    def close(self) -> None:
        """Flush and close the recording."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.flush()
            stream.disconnect()

    def _log(self, path: str, entity: object, static: bool = False) -> None:
        self._stream.log(path, entity, static=static)

    def _log_boxes(self, name: str, found: Instances, spec: TaskSpec, captions: list[str]) -> None:
        scores = np.ones(len(found.boxes)) if found.scores is None else found.scores
        shown = np.flatnonzero(scores >= spec.score_threshold)
        words = []
        for i in shown:
            parts = [spec.classes[int(found.labels[i])]]
            parts += [f"#{found.track_ids[i]}"] if found.track_ids is not None and found.track_ids[i] >= 0 else []
            words.append(" ".join([*parts, f"{scores[i]:.2f}", *captions[i : i + 1]]))
        rerun = self._rerun
        boxes = rerun.Boxes2D(
            array=found.boxes[shown],
            array_format=rerun.Box2DFormat.XYXY,
            labels=words,
            class_ids=found.labels[shown].astype(np.uint16),
        )
        self._log(f"camera/{name}", boxes)

    def _make_pinhole(self, result: Result) -> object:
        lens: Camera | None = result.camera
        if lens is None:
            depth = next((spec for spec in self._specs.values() if spec.unit == "m"), TaskSpec("", "dense", ()))
            lens = default_camera(result.size, depth)
        height, width = result.size
        return self._rerun.Pinhole(
            focal_length=[lens.fx, lens.fy], principal_point=[lens.cx, lens.cy], width=width, height=height
        )


def _encode_depth(depth: DenseMap) -> NDArray[np.uint16]:
    metres = np.where(depth.valid, depth.values, 0)
    return np.clip(np.rint(metres * UNITS_PER_METER), 0, 65535).astype(np.uint16)
