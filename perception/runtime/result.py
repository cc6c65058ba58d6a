"""What the network says of one image, as a program wants to read it. numpy and OpenCV, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.ops.draw import draw_annotations, format_distances, format_warning
from perception.ops.panel import draw_panel
from perception.ops.postprocess import to_json
from perception.types import Annotation, Camera, DenseMap, ImageLabel, Instances, PerceptionError, Prediction, TaskSpec


class PointCloud(NamedTuple):
    """Points in the camera's frame (x right, y down, z forward, metres) with what the image shows there.

    points: float32 [N, 3]; colors: uint8 RGB [N, 3]; labels: int64 [N], classes of the segmentation mask, -1 = unknown;
    None without a segmentation mask
    """

    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Result:
    """A view of a `Prediction` that knows its image and what its tasks mean.

    Boxes, labels, scores and distances are those of the first task that finds instances, over its threshold;
    segmentation mask,
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
        """Task name -> annotation in pixels of the image, boxes of every score."""
        return self.prediction.annotations

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
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
        """float32 [N, 4]: x1 y1 x2 y2 in pixels of the image."""
        return self._select_shown(lambda found: found.boxes)

    @property
    def scores(self) -> NDArray[np.float32] | None:
        """float32 [N]."""
        return self._select_shown(lambda found: found.scores)

    @property
    def label_ids(self) -> NDArray[np.int64] | None:
        """int64 [N]: index into the task's classes."""
        return self._select_shown(lambda found: found.labels)

    @property
    def labels(self) -> list[str] | None:
        """The class of each box in words."""
        ids, name = self.label_ids, self._first_task(Instances)
        return None if ids is None or name is None else [self.specs[name].classes[k] for k in ids]

    @property
    def tracks(self) -> NDArray[np.int64] | None:
        """int64 [N]: which object each box is, through a video; -1 = not known yet. None where nothing is tracked."""
        return self._select_shown(lambda found: found.track_ids)

    @property
    def distances(self) -> NDArray[np.float32] | None:
        """float32 [N]: metres to each box, NaN where unknown; None without depth."""
        return self._select_shown(lambda _: self.prediction.distances)

    @property
    def closing_speeds(self) -> NDArray[np.float32] | None:
        """float32 [N]: metres per second at which each box comes nearer, NaN where unknown; None without tracks."""
        return self._select_shown(lambda _: self.prediction.closing_speeds)

    @property
    def times_to_contact(self) -> NDArray[np.float32] | None:
        """float32 [N]: seconds until each box is met if it goes on so, NaN where it never is; None without tracks."""
        return self._select_shown(lambda _: self.prediction.times_to_contact)

    @property
    def segmentation_mask(self) -> NDArray[np.uint8] | None:
        """[H, W]: class of each pixel; 255 where it is not valid."""
        name = self._first_task(DenseMap, lambda spec: bool(spec.classes))
        found = self.annotations[name] if name else None
        return np.where(found.valid, found.values, 255).astype(np.uint8) if isinstance(found, DenseMap) else None

    @property
    def depth(self) -> NDArray[np.float32] | None:
        """float32 [H, W]: metres along the optical axis; NaN where it is not valid."""
        name = self._first_task(DenseMap, lambda spec: spec.unit == "m")
        found = self.annotations[name] if name else None
        return np.where(found.valid, found.values, np.float32(np.nan)) if isinstance(found, DenseMap) else None

    @property
    def depth_error(self) -> NDArray[np.float32] | None:
        """float32 [H, W]: metres by which each depth is expected to be wrong, NaN where it is not valid; None where the
        network does not tell.
        """
        name = self._first_task(DenseMap, lambda spec: spec.unit == "m")
        found = self.annotations[name] if name else None
        if not isinstance(found, DenseMap) or found.relative_error is None:
            return None
        return np.where(found.valid, found.values * found.relative_error, np.float32(np.nan))

    @property
    def scene_probabilities(self) -> dict[str, float] | None:
        """Class of the whole image -> probability, the most probable first."""
        name = self._first_task(ImageLabel)
        found = self.annotations[name] if name else None
        if name is None or not isinstance(found, ImageLabel):
            return None
        pairs = zip(self.specs[name].classes, np.asarray(found.values).tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    @property
    def segmentation_classes(self) -> tuple[str, ...] | None:
        """The classes of the segmentation mask, in the order of its ids."""
        name = self._first_task(DenseMap, lambda spec: bool(spec.classes))
        return self.specs[name].classes if name else None

    def effective_camera(self) -> Camera:
        """The camera in pixels of the image: the one given, or else the one that the depth task assumes.

        Raises PerceptionError where there is neither.
        """
        if self.camera is not None:
            return self.camera
        name = self._first_task(DenseMap, lambda spec: spec.unit == "m")
        if name is None:
            raise PerceptionError("The camera is unknown, and without depth nothing is assumed. Give its intrinsics.")
        return default_camera(self.size, self.specs[name])

    def points(self, stride: int = 1) -> NDArray[np.float32]:
        """float32 [N, 3]: metres in the camera's frame (x right, y down, z forward) of each pixel with known depth.

        stride: only every so many rows and columns. Raises PerceptionError where the network has no depth.
        """
        return self.point_cloud(stride).points

    def point_cloud(self, stride: int = 1) -> PointCloud:
        """`points` with the color and the label of each."""
        name = self._first_task(DenseMap, lambda spec: spec.unit == "m")
        if name is None:
            raise PerceptionError(f"No points without depth. The tasks are: {', '.join(self.specs) or 'none'}.")
        found = self.annotations[name]
        depth, valid = found.values[::stride, ::stride], found.valid[::stride, ::stride]  # type: ignore[union-attr]
        rows, columns = np.nonzero(valid)
        z = depth[rows, columns]
        lens = self.effective_camera()
        x = (columns * stride + 0.5 - lens.cx) / lens.fx * z
        y = (rows * stride + 0.5 - lens.cy) / lens.fy * z
        label_map = self.segmentation_mask
        labels = None
        if label_map is not None:
            labels = label_map[::stride, ::stride][rows, columns].astype(np.int64)
            labels[labels == 255] = -1
        colours = self.image[::stride, ::stride][rows, columns]
        return PointCloud(np.stack([x, y, z], axis=1).astype(np.float32), colours, labels)

    def plot(self, layout: Literal["panel", "image"] = "panel") -> NDArray[np.uint8]:
        """uint8 RGB: image, segmentation mask and depth side by side, or everything on the image."""
        paint = draw_panel if layout == "panel" else draw_annotations
        return paint(
            self.image, self.annotations, self.specs, format_distances(self.prediction), format_warning(self.prediction)
        )

    def to_dict(self) -> dict[str, Any]:
        """The line of ``predictions.jsonl``: everything but the dense maps, ready for JSON."""
        return to_json(self.prediction, self.specs)

    def _first_task(self, kind: type, accepts: Callable[[TaskSpec], bool] = lambda spec: True) -> str | None:
        return next(self._task_names(kind, accepts), None)

    def _task_names(self, kind: type, accepts: Callable[[TaskSpec], bool]) -> Iterator[str]:
        for name, annotation in self.annotations.items():
            if isinstance(annotation, kind) and accepts(self.specs[name]):
                yield name

    def _select_shown(self, get_values: Callable[[Instances], NDArray | None]) -> NDArray | None:
        """What ``get_values`` takes from the instances, of those over the threshold."""
        name = self._first_task(Instances)
        found = self.annotations[name] if name else None
        if name is None or not isinstance(found, Instances) or (values := get_values(found)) is None:
            return None
        return values if found.scores is None else values[found.scores >= self.specs[name].score_threshold]


def default_camera(size: tuple[int, int], spec: TaskSpec) -> Camera:
    """The camera that a quantity's spec assumes for an image (height, width) without intrinsics."""
    focal = spec.default_focal * size[1]
    return Camera(focal, focal, size[1] / 2, size[0] / 2)
