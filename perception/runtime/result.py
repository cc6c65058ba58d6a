"""What the network says of one picture, as a program wants to read it. numpy and OpenCV, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.ops.draw import describe, draw, warning
from perception.ops.panel import panel
from perception.ops.restore import to_json
from perception.types import Annotation, Camera, DenseMap, ImageLabel, Instances, PerceptionError, Prediction, TaskSpec


class Cloud(NamedTuple):
    """Points in the camera's frame (x right, y down, z forward, metres) with what the picture shows there.

    points: float32 [N, 3]; colours: uint8 RGB [N, 3]; labels: int64 [N], classes of the label map, -1 = unknown;
    None without a label map
    """

    points: NDArray[np.float32]
    colours: NDArray[np.uint8]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Result:
    """A view of a `Prediction` that knows its picture and what its tasks mean.

    Boxes, labels, scores and distances are those of the first task that finds instances, over its threshold; label map,
    depth and scene those of the first task of their kind. Each is None where the network has no such task.
    `prediction` holds everything: every task by its name and boxes of every score.

    image:  uint8 RGB [H, W, 3]
    camera: intrinsics in its pixels; None = the default focal length of the depth task
    """

    prediction: Prediction
    specs: Mapping[str, TaskSpec] = field(repr=False)
    image: NDArray[np.uint8] = field(repr=False)
    camera: Camera | None = None

    @property
    def annotations(self) -> dict[str, Annotation]:
        """Task name -> annotation in pixels of the picture, boxes of every score."""
        return self.prediction.annotations

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture."""
        return self.prediction.size

    @property
    def flags(self) -> tuple[str, ...]:
        """What is wrong, in words."""
        return self.prediction.flags

    @property
    def valid(self) -> bool:
        """False where no one should act on this result; the flags say why."""
        return self.prediction.valid

    @property
    def boxes(self) -> NDArray[np.float32] | None:
        """float32 [N, 4]: x1 y1 x2 y2 in pixels of the picture."""
        return self._of_boxes(lambda found: found.boxes)

    @property
    def scores(self) -> NDArray[np.float32] | None:
        """float32 [N]."""
        return self._of_boxes(lambda found: found.scores)

    @property
    def label_ids(self) -> NDArray[np.int64] | None:
        """int64 [N]: index into the task's classes."""
        return self._of_boxes(lambda found: found.labels)

    @property
    def labels(self) -> list[str] | None:
        """The class of each box in words."""
        ids, name = self.label_ids, self._first(Instances)
        return None if ids is None or name is None else [self.specs[name].classes[k] for k in ids]

    @property
    def tracks(self) -> NDArray[np.int64] | None:
        """int64 [N]: which object each box is, through a video; -1 = not known yet. None where nothing is tracked."""
        return self._of_boxes(lambda found: found.tracks)

    @property
    def distances(self) -> NDArray[np.float32] | None:
        """float32 [N]: metres to each box, NaN where unknown; None without depth."""
        return self._of_boxes(lambda _: self.prediction.distances)

    @property
    def closing_speeds(self) -> NDArray[np.float32] | None:
        """float32 [N]: metres per second at which each box comes nearer, NaN where unknown; None without tracks."""
        return self._of_boxes(lambda _: self.prediction.closing_speeds)

    @property
    def contact_times(self) -> NDArray[np.float32] | None:
        """float32 [N]: seconds until each box is met if it goes on so, NaN where it never is; None without tracks."""
        return self._of_boxes(lambda _: self.prediction.contact_times)

    @property
    def label_map(self) -> NDArray[np.uint8] | None:
        """[H, W]: class of each pixel; 255 where it is not valid."""
        name = self._first(DenseMap, lambda spec: bool(spec.classes))
        found = self.annotations[name] if name else None
        return np.where(found.valid, found.values, 255).astype(np.uint8) if isinstance(found, DenseMap) else None

    @property
    def depth(self) -> NDArray[np.float32] | None:
        """float32 [H, W]: metres along the optical axis; NaN where it is not valid."""
        name = self._first(DenseMap, lambda spec: spec.unit == "m")
        found = self.annotations[name] if name else None
        return np.where(found.valid, found.values, np.float32(np.nan)) if isinstance(found, DenseMap) else None

    @property
    def depth_error(self) -> NDArray[np.float32] | None:
        """float32 [H, W]: metres by which each depth is expected to be wrong, NaN where it is not valid; None where the
        network does not tell."""
        name = self._first(DenseMap, lambda spec: spec.unit == "m")
        found = self.annotations[name] if name else None
        if not isinstance(found, DenseMap) or found.error is None:
            return None
        return np.where(found.valid, found.values * found.error, np.float32(np.nan))

    @property
    def scene(self) -> dict[str, float] | None:
        """Class of the whole picture -> probability, the most probable first."""
        name = self._first(ImageLabel)
        found = self.annotations[name] if name else None
        if name is None or not isinstance(found, ImageLabel):
            return None
        pairs = zip(self.specs[name].classes, np.asarray(found.values).tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The classes of the label map, in the order of its ids."""
        name = self._first(DenseMap, lambda spec: bool(spec.classes))
        return self.specs[name].classes if name else None

    def lens(self) -> Camera:
        """The camera in pixels of the picture: the one given, or else the one that the depth task assumes.

        Raises PerceptionError where there is neither.
        """
        if self.camera is not None:
            return self.camera
        name = self._first(DenseMap, lambda spec: spec.unit == "m")
        if name is None:
            raise PerceptionError("The camera is unknown, and without depth nothing is assumed. Give its intrinsics.")
        return default_camera(self.size, self.specs[name])

    def points(self, step: int = 1) -> NDArray[np.float32]:
        """float32 [N, 3]: metres in the camera's frame (x right, y down, z forward) of each pixel with known depth.

        step: only every so many rows and columns. Raises PerceptionError where the network has no depth.
        """
        return self.cloud(step).points

    def cloud(self, step: int = 1) -> Cloud:
        """`points` with the colour and the label of each."""
        name = self._first(DenseMap, lambda spec: spec.unit == "m")
        if name is None:
            raise PerceptionError(f"No points without depth. The tasks are: {', '.join(self.specs) or 'none'}.")
        found = self.annotations[name]
        depth, valid = found.values[::step, ::step], found.valid[::step, ::step]  # type: ignore[union-attr]
        rows, columns = np.nonzero(valid)
        z = depth[rows, columns]
        lens = self.lens()
        x = (columns * step + 0.5 - lens.cx) / lens.fx * z
        y = (rows * step + 0.5 - lens.cy) / lens.fy * z
        label_map = self.label_map
        labels = None
        if label_map is not None:
            labels = label_map[::step, ::step][rows, columns].astype(np.int64)
            labels[labels == 255] = -1
        colours = self.image[::step, ::step][rows, columns]
        return Cloud(np.stack([x, y, z], axis=1).astype(np.float32), colours, labels)

    def plot(self, layout: Literal["panel", "picture"] = "panel") -> NDArray[np.uint8]:
        """uint8 RGB: picture, label map and depth side by side, or everything on the picture."""
        paint = panel if layout == "panel" else draw
        return paint(self.image, self.annotations, self.specs, describe(self.prediction), warning(self.prediction))

    def to_dict(self) -> dict[str, Any]:
        """The line of ``predictions.jsonl``: everything but the dense maps, ready for JSON."""
        return to_json(self.prediction, self.specs)

    def _first(self, kind: type, fits: Any = lambda spec: True) -> str | None:
        return next(self._names(kind, fits), None)

    def _names(self, kind: type, fits: Any) -> Iterator[str]:
        for name, annotation in self.annotations.items():
            if isinstance(annotation, kind) and fits(self.specs[name]):
                yield name

    def _of_boxes(self, part: Any) -> Any:
        """What ``part`` takes from the instances, of those over the threshold."""
        name = self._first(Instances)
        found = self.annotations[name] if name else None
        if name is None or not isinstance(found, Instances) or (values := part(found)) is None:
            return None
        return values if found.scores is None else values[found.scores >= self.specs[name].threshold]


def default_camera(size: tuple[int, int], spec: TaskSpec) -> Camera:
    """The camera that a quantity's spec assumes for a picture (height, width) without intrinsics."""
    focal = spec.default_focal * size[1]
    return Camera(focal, focal, size[1] / 2, size[0] / 2)
