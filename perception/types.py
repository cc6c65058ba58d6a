"""Data types shared by all layers of the package.

No torch here. Annotations contain numpy arrays in the data layer and in the runtime, and tensors in a training step.
Targets and predictions use the same types.

Two conventions hold everywhere:

* ``None`` means *not labeled*; an empty container means *labeled, but empty*.
* Coordinates are continuous pixels: pixel ``i`` covers ``[i, i + 1)``, a box is ``x1, y1, x2, y2`` with
  ``width = x2 - x1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Array: TypeAlias = Any
"""A numpy array (data layer, runtime) or a torch tensor (inside a training step)."""

IGNORE_INDEX = 255
"""Value of unlabeled pixels in a segmentation mask (the convention of Cityscapes and CamVid)."""


@dataclass(frozen=True, slots=True)
class Instances:
    """Objects with boxes.

    Attributes:
        boxes: float32 [N, 4], x1 y1 x2 y2, pixels.
        labels: int64 [N], index into the task's classes; -1 for an ignore region of every class.
        scores: float32 [N] for predictions; None for targets.
        ignore: bool [N], regions that are neither object nor background (crowds); None = no such region.
        labeled_classes: bool [C], classes that this image's source labels; None = all.
        track_ids: int64 [N], identity of each object in a video; None = unknown.
        partial_classes: bool [C], those of ``labeled_classes`` whose labels are incomplete: there may be more objects
            of these classes. None = no such class.
    """

    boxes: Array
    labels: Array
    scores: Array | None = None
    ignore: Array | None = None
    labeled_classes: Array | None = None
    track_ids: Array | None = None
    partial_classes: Array | None = None


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """Meaning of the ids in a source's segmentation masks, if they are not the task's classes one by one.

    Plain tuples: equal label spaces compare and hash equal, and batches need not move them between devices.

    Attributes:
        names: name of each id; "" for pixels that the source does not label. That id is not a class and has no metric.
        class_sets: for each id, the task's classes that its pixels may have; ascending, at least one. It can be one
            class, a super-class ("vehicle": car, truck or bus), or the classes that the source does not label.
    """

    names: tuple[str, ...]
    class_sets: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class DenseMap:
    """One value per pixel: a class id (integer) or a quantity (float32; depth in metres).

    Attributes:
        values: [H, W] or [C, H, W].
        valid: bool [H, W], False where the value is unknown.
        relative_error: float32 [H, W], expected error of a predicted quantity relative to its value (0.1 = 10 %). It is
            the scale of a Laplace distribution over the logarithm of the value. None = not predicted; None in targets.
        label_space: classes of each id, if the source has only some classes or super-classes; None = id k is class k.
    """

    values: Array
    valid: Array
    relative_error: Array | None = None
    label_space: LabelSpace | None = None


@dataclass(frozen=True, slots=True)
class ImageLabel:
    """Label of a whole image.

    Attributes:
        values: float32 [C], 1 or 0 in a target, a probability in a prediction.
        labeled_classes: bool [C], classes that this image's source labels (multi-label); None = all.
    """

    values: Array
    labeled_classes: Array | None = None


Annotation: TypeAlias = Instances | DenseMap | ImageLabel


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """Maps a source image to the network input: cut out ``crop``, resize it to ``placement``, mirror, pad.

    Whole pixels make the mapping exact: ``x_input = (x_source - crop.x) * scale_x + placement.x``.

    Attributes:
        source_size: (height, width) of the source in pixels.
        input_size: (height, width) of the network input in pixels.
        crop: (x, y, width, height), whole pixels of the source.
        placement: (x, y, width, height), whole pixels of the input, before mirroring.
        flip: mirrored left to right within the input.
    """

    source_size: tuple[int, int]
    input_size: tuple[int, int]
    crop: tuple[int, int, int, int]
    placement: tuple[int, int, int, int]
    flip: bool = False

    @property
    def scale(self) -> tuple[float, float]:
        """(scale_x, scale_y): input pixels per source pixel."""
        return self.placement[2] / self.crop[2], self.placement[3] / self.crop[3]


@dataclass(frozen=True, slots=True)
class Camera:
    """Pinhole intrinsics (focal lengths and principal point) in pixels of the image that they belong to."""

    fx: float
    fy: float
    cx: float
    cy: float

    def to_input(self, transform: ImageTransform) -> Camera:
        """Return the same camera in input pixels of ``transform``."""
        scale_x, scale_y = transform.scale
        cx = (self.cx - transform.crop[0]) * scale_x + transform.placement[0]
        cy = (self.cy - transform.crop[1]) * scale_y + transform.placement[1]
        return Camera(self.fx * scale_x, self.fy * scale_y, transform.input_size[1] - cx if transform.flip else cx, cy)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with the annotations of its source.

    Attributes:
        image: uint8 RGB [H, W, 3].
        annotations: task name -> annotation; a missing name or None = not labeled.
        camera: intrinsics in pixels of ``image``; None = unknown.
        transform: set if ``image`` is a network input but the annotations are in source pixels (evaluation). None if
            the annotations are in pixels of ``image``.
        id: unique name of the image, which begins with its source.
        source: name of its source in the recipe.
    """

    image: Array
    annotations: dict[str, Annotation | None]
    camera: Camera | None = None
    transform: ImageTransform | None = None
    id: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one size. All lists have length B.

    Attributes:
        images: uint8 RGB [B, 3, H, W].
        annotations: task name -> B annotations (None = not labeled). It has a key for each task of the recipe. Tensors
            in input pixels (training), or numpy arrays in source pixels (evaluation, ``transforms`` set).
        cameras: intrinsics in input pixels (training) or source pixels (evaluation).
        transforms: mapping from source to input of each image; None in training.
        ids: unique name of each image.
        sources: name of each image's source in the recipe.
    """

    images: Array
    annotations: dict[str, list[Annotation | None]]
    cameras: list[Camera | None]
    transforms: list[ImageTransform | None]
    ids: list[str]
    sources: list[str]

    def __len__(self) -> int:
        return len(self.ids)


AnnotationType: TypeAlias = Literal["instances", "dense", "label"]
"""All tasks use one of these three annotation types."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """Description of a task for code outside the network: metrics, drawing, JSON, ONNX manifest.

    Attributes:
        name: the task's name in the recipe.
        annotation_type: type of its annotations.
        outputs: names of its decoded tensors. ONNX names are ``<name>.<output>``.
        classes: class names; empty if the task predicts a quantity.
        unit: unit of a quantity ("m"); "" for classes.
        limits: smallest and largest value of a quantity.
        canonical_focal: reference focal length in input pixels for a quantity that scales with focal length. The
            network predicts it for this focal length; multiply by ``focal / canonical_focal``. 0 = does not scale.
        default_focal: assumed focal length if the intrinsics are unknown, as a fraction of the image width.
        multi_label: an image may have several classes (annotation type "label").
        score_threshold: instances and labels with a lower score are not shown.
    """

    name: str
    annotation_type: AnnotationType
    outputs: tuple[str, ...]
    classes: tuple[str, ...] = ()
    unit: str = ""
    limits: tuple[float, float] | None = None
    canonical_focal: float = 0.0
    default_focal: float = 1.0
    multi_label: bool = False
    score_threshold: float = 0.3


@dataclass(frozen=True, slots=True)
class Prediction:
    """All predictions for one image, in source pixels.

    Attributes:
        annotations: task name -> annotation.
        size: (height, width) of the source image.
        id: unique name of the image.
        time: seconds from the start of a video.
        distances: float32 [N], metres to each box of the first "instances" task; NaN if unknown. None = no depth.
        closing_speeds: float32 [N], metres per second at which each of these boxes approaches; negative if it moves
            away, NaN if unknown. None = not tracked.
        times_to_contact: float32 [N], seconds until contact with each of these boxes at constant speed; NaN if there is
            no contact. None = not tracked.
        flags: problems of the image, and invalid network outputs that were removed.
        valid: False if this prediction must not be used because the image is not usable; see ``flags``.
        ood_score: out-of-distribution score of image and outputs, 0 to 1: the fraction of the known good images that
            have a lower score. None = not measured.
    """

    annotations: dict[str, Annotation]
    size: tuple[int, int]
    id: str = ""
    time: float | None = None
    distances: Array | None = None
    closing_speeds: Array | None = None
    times_to_contact: Array | None = None
    flags: tuple[str, ...] = ()
    valid: bool = True
    ood_score: float | None = None


class PerceptionError(Exception):
    """An error that the user can fix. The message names file or record, what was expected and found, and the fix."""


class DataError(PerceptionError):
    """A data set does not match its recipe."""


class ConfigError(PerceptionError):
    """A recipe or an override is not valid."""


class CheckpointError(PerceptionError):
    """A run folder or checkpoint is missing, damaged or does not match."""


__all__ = [
    "IGNORE_INDEX",
    "Annotation",
    "AnnotationType",
    "Array",
    "Batch",
    "Camera",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DenseMap",
    "ImageLabel",
    "ImageTransform",
    "Instances",
    "LabelSpace",
    "PerceptionError",
    "Prediction",
    "Sample",
    "TaskSpec",
]  # fmt: skip
