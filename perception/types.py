"""The vocabulary of the system: what crosses from one layer to another.

No torch here. Annotations hold numpy arrays in the data layer and in the runtime, and tensors inside a training
step; both share these types. Targets and predictions are the same type.

Two conventions run through everything:

* ``None`` means *not labeled*; an empty container means *labeled, nothing there*.
* Coordinates are continuous pixels: pixel ``i`` covers ``[i, i + 1)``, a box is ``x1, y1, x2, y2`` with
  ``width = x2 - x1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Array: TypeAlias = Any
"""A numpy array (data layer, runtime) or a torch tensor (inside a training step)."""

IGNORE_INDEX = 255
"""The value of a segmentation mask's pixel that carries no label (Cityscapes' and CamVid's convention)."""


@dataclass(frozen=True, slots=True)
class Instances:
    """Things with boxes.

    boxes:   float32 [N, 4], x1 y1 x2 y2, pixels
    labels:  int64 [N], index into the task's classes; -1 for an ignore region of every class
    scores:  float32 [N] for predictions, None for targets
    ignore:  bool [N], regions that are neither object nor background (crowds); None = no such region
    labeled_classes: bool [C], which classes this image's source labels; None = all of them
    track_ids:  int64 [N], identity of each object through a video; None = unknown
    partial_classes: bool [C], which of ``labeled_classes`` are labeled in part: where none is labeled there may be
    more; None = none
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
    """What the ids of a source's segmentation masks mean, where they are not the task's classes one by one.

    class_sets:  for every id the task's classes that a pixel of it may be, ascending, at least one: of one class, of a
           super-class ("vehicle": car, truck or bus), or of whatever the source does not label
    names: of the ids; "" for what the source does not label: no class of its own, so no metric averages over it

    Plain tuples: equal ones compare and hash equal, and no batch has to move them.
    """

    names: tuple[str, ...]
    class_sets: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class DenseMap:
    """A value for every pixel: class ids (integer) or a quantity (float32; depth in metres).

    values: [H, W] or [C, H, W]
    valid:  bool [H, W], False where nothing is known
    relative_error:  float32 [H, W], how wrong a predicted quantity expects to be, as a share of its value (0.1 = 10
    %): the
            scale of a Laplace distribution over its logarithm. None = not told, and in targets
    label_space: which of the task's classes an id stands for, where the source knows only some classes or
    super-classes;
            None = id k is class k
    """

    values: Array
    valid: Array
    relative_error: Array | None = None
    label_space: LabelSpace | None = None


@dataclass(frozen=True, slots=True)
class ImageLabel:
    """A statement about the whole image.

    values:  float32 [C], 1 or 0 in a target, a probability in a prediction
    labeled_classes: bool [C], which classes this image's source labels (multi-label); None = all of them
    """

    values: Array
    labeled_classes: Array | None = None


Annotation: TypeAlias = Instances | DenseMap | ImageLabel


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """How a source image was placed in the network's input: cut ``crop``, resize it to ``placement``, mirror, pad.

    source_size, input_size: (height, width) in pixels
    crop:  (x, y, width, height) whole pixels of the source
    placement: (x, y, width, height) whole pixels of the input, before mirroring
    flip:  mirrored left to right within the input

    Whole pixels make the map exact: ``x_input = (x_source - crop.x) * scale_x + place.x``.
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
    """Pinhole intrinsics in pixels of the image they travel with (focal lengths and principal point)."""

    fx: float
    fy: float
    cx: float
    cy: float

    def to_input(self, transform: ImageTransform) -> Camera:
        """The same camera in the pixels of ``transform``'s input."""
        scale_x, scale_y = transform.scale
        cx = (self.cx - transform.crop[0]) * scale_x + transform.placement[0]
        cy = (self.cy - transform.crop[1]) * scale_y + transform.placement[1]
        return Camera(self.fx * scale_x, self.fy * scale_y, transform.input_size[1] - cx if transform.flip else cx, cy)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with whatever its source labels.

    image:       uint8 RGB [H, W, 3]
    annotations: task name -> annotation; a missing name or None = not labeled
    camera:      intrinsics in pixels of ``image``; None = unknown
    transform:       set where ``image`` is a network input but the annotations are still in source pixels (evaluation);
                 None where the annotations are in the pixels of ``image``
    id, source:  unique name of the image (it begins with its source), name of its source in the recipe
    """

    image: Array
    annotations: dict[str, Annotation | None]
    camera: Camera | None = None
    transform: ImageTransform | None = None
    id: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one size, and their annotations as lists of length B.

    images:      uint8 RGB [B, 3, H, W]
    annotations: task name -> B annotations (None = not labeled); the tasks that the recipe trains, always all keys.
                 Tensors in input pixels (training) or numpy in source pixels (evaluation, ``transforms`` set)
    cameras:     intrinsics in input pixels (training) or source pixels (evaluation)
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
"""The three annotation shapes that carry any number of tasks."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What everyone but the network needs to know of a task: metrics, drawing, JSON, the ONNX manifest.

    name:     the task's name in the recipe
    annotation_type:    which annotation carries it
    outputs:  names of its decoded tensors; in ONNX they are called ``<name>.<output>``
    classes:  class names; empty where the task predicts a quantity
    unit:     of a quantity ("m"); "" for classes
    limits:   smallest and largest value of a quantity
    canonical_focal: a quantity that scales with the focal length is predicted as seen by a camera of this focal
              length in input pixels; multiply by ``focal / canonical_focal``. 0 = does not scale
    default_focal: focal length, as a fraction of the image's width, that is assumed where intrinsics are unknown
    multi_label: an image may carry several classes (shape "label")
    score_threshold: score under which an instance or a label is not shown
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
    """Everything the network says of one image, in source pixels.

    time:      seconds from the start of a video
    distances: float32 [N], metres to each box of the first "instances" task, NaN where unknown; None = no depth
    closing_speeds: float32 [N], metres per second at which each of these boxes comes nearer, negative where it goes
               away, NaN where unknown; None = not tracked
    times_to_contact: float32 [N], seconds until each of these boxes is met if it goes on so, NaN where it will not be
    flags:     what is wrong with the image, and what was wrong with the network's output and was taken out
    valid:     False where no one should act on this prediction: the image shows too little (the flags say why)
    ood_score:     how unlike what the network knows this image and what it says are: the share of known good images
               that are less so, 0 to 1; None = not measured
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
    """Something the user can mend. The message names the file or record, what was expected, found, and the mend."""


class DataError(PerceptionError):
    """A data set is not what its recipe says."""


class ConfigError(PerceptionError):
    """A recipe or an override is wrong."""


class CheckpointError(PerceptionError):
    """A run folder or checkpoint is missing, damaged or does not fit."""


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
