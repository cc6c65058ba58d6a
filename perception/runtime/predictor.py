"""Running an exported network with numpy, OpenCV and ONNX Runtime alone. No torch.

from perception.runtime.predictor import Predictor
result = Predictor("street.onnx")(image)
result.boxes, result.labels, result.distances, result.segmentation_mask, result.depth, result.points(), result.plot()
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias, overload

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from perception.ops.image import compute_letterbox, warp_image
from perception.ops.postprocess import build_prediction
from perception.runtime import onnx_file
from perception.runtime.graph_check import check_outputs, check_signature
from perception.runtime.manifest import MAX_PIXELS, Manifest, OutputSpec, extract_manifest
from perception.runtime.onnxruntime_check import check_single_onnxruntime
from perception.runtime.result import Result
from perception.types import Camera, ImageTransform, PerceptionError, TaskSpec

Outputs: TypeAlias = dict[str, NDArray]
"""``"<task>.<output>"`` -> array."""

Provider: TypeAlias = str | tuple[str, dict[Any, Any]]
"""Name of an execution provider of ONNX Runtime, or the name with its options."""


class ImagePredictor(ABC):
    """A network that predicts images: in ONNX Runtime (`Predictor`) or in torch (`torch_predictor.TorchPredictor`).

    Attributes:
        specs: task -> specification.
        size: (height, width) that the network was trained at.
        size_divisor: input sizes are multiples of this.
    """

    specs: dict[str, TaskSpec]
    size: tuple[int, int]
    size_divisor: int

    @abstractmethod
    def letterbox_size(self, size: tuple[int, int] | None = None) -> tuple[int, int] | None:
        """Return the letterbox size for the requested ``size``; None = the network letterboxes images itself."""

    @abstractmethod
    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Return the decoded outputs of a letterboxed batch uint8 RGB [B, 3, H, W], in input pixels."""

    @abstractmethod
    def warm_up(self, batch_size: int = 1, size: tuple[int, int] | None = None) -> ImagePredictor:
        """Run on gray images, so that the first real image takes no longer than the others. Returns itself."""

    @overload
    def __call__(
        self, images: NDArray[np.uint8], camera: Camera | None = None, size: tuple[int, int] | None = None
    ) -> Result: ...
    @overload
    def __call__(
        self,
        images: Sequence[NDArray[np.uint8]],
        camera: Camera | Sequence[Camera | None] | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[Result]: ...
    def __call__(self, images, camera=None, size=None):
        """Predict one RGB uint8 image [H, W, 3] of any size, or a list of them in one pass.

        Args:
            images: the image or images.
            camera: intrinsics in pixels of the image, or one per image. Without them, depth assumes the default focal
                length of the task.
            size: (height, width) of the network input; None = `size`.

        Returns:
            One Result per image, in source-image coordinates.
        """
        return predict_images(self.run, self.specs, images, camera, self.letterbox_size(size), self.size_divisor)


class Predictor(ImagePredictor):
    """An exported network, ready to be called.

    path:      file written by `perception export`
    threads:   of ONNX Runtime within one operator; None = one per physical core
    providers: execution providers of ONNX Runtime, best first, with or without options; None = CPU
    tasks:     the only outputs that are computed and returned; None = all
    allow_spinning:  threads wait for work by trying again and again: quicker, but a core that waits is taken from
    others

    May be called by several threads at once. Raises PerceptionError where the file is missing, damaged, not
    self-contained, changed since its export, or where a task or provider does not exist or does not start: before a
    image is seen.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        providers: Sequence[Provider] | None = None,
        tasks: Sequence[str] | None = None,
        allow_spinning: bool = True,
    ) -> None:
        check_single_onnxruntime()
        model = onnx_file.read_model(path)
        self.manifest: Manifest = extract_manifest(model, str(path))
        self.specs = select_specs(self.manifest.tasks, tasks)
        self.size = self.manifest.input.size
        self.size_divisor = self.manifest.input.size_divisor
        check_threads(threads)
        self._output_names = [f"{name}.{output}" for name, spec in self.specs.items() for output in spec.outputs]
        if absent := sorted(set(self.manifest.outputs) - set(onnx_file.read_output_names(model))):
            raise PerceptionError(f"{path}: the manifest names outputs that the graph lacks: {', '.join(absent)}.")
        if len(self.specs) < len(self.manifest.tasks):
            model = onnx_file.prune_to_outputs(model, self._output_names)
        self._path = str(path)
        self._session = _open_session(model, self._path, threads, providers, allow_spinning)
        check_signature(self._session, self.manifest.input, self._output_specs(), self._path)

    def letterbox_size(self, size: tuple[int, int] | None = None) -> tuple[int, int] | None:
        """What `prepare` letterboxes to where ``size`` is asked for; None = the graph does it.

        Raises PerceptionError for a size that this file does not take.
        """
        rules = self.manifest.input
        check_input_size(size or self.size, self.size_divisor)
        if size is not None and not rules.dynamic and tuple(size) != tuple(rules.size):
            sizes = ["x".join(map(str, pair)) for pair in (size, rules.size)]
            raise PerceptionError(
                f"Wrong input size {sizes[0]}. This file was exported for {sizes[1]} alone. Leave the size out, or "
                "export it with --size dynamic."
            )
        return None if rules.embeds_preprocessing else size or self.size

    def warm_up(self, batch_size: int = 1, size: tuple[int, int] | None = None) -> Predictor:
        """Run on gray images, so that the first real one takes no longer than the others. Returns itself.

        size: as in a call; of a file that letterboxes inside it is that of the images, which may be any
        """
        inside = self.manifest.input.embeds_preprocessing
        shown = (size or self.size) if inside else self.letterbox_size(size)
        warm_up(self.run, shown or self.size, batch_size, embedded=inside)
        return self

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Decoded outputs of a letterboxed batch uint8 RGB [B, 3, H, W], in input pixels.

        A file that letterboxes inside takes images [B, H, W, 3] instead, and answers in their pixels. Raises
        PerceptionError where ONNX Runtime fails, or the file does not give what its manifest says.
        """
        try:
            found: Any = self._session.run(self._output_names, {self.manifest.input.name: images})
        except Exception as error:  # onnxruntime raises types of its own, which share only Exception
            raise PerceptionError(f"{self._path}: ONNX Runtime fails on {list(images.shape)}: {error}") from error
        check_outputs(images, found, self._output_specs(), self.manifest.input.embeds_preprocessing, self._path)
        return dict(zip(self._output_names, found))  # noqa: B905

    def _output_specs(self) -> dict[str, OutputSpec]:
        """What the manifest says of the outputs that are asked for, in their order."""
        return {name: self.manifest.outputs[name] for name in self._output_names}


def warm_up(
    run: Callable[[NDArray[np.uint8]], Outputs],
    size: tuple[int, int],
    batch_size: int = 1,
    num_runs: int = 2,
    embedded: bool = False,
) -> None:
    """Run on gray images, so that what is set up at the first call is not set up at the first real image."""
    if batch_size < 1:
        raise PerceptionError(f"Wrong batch {batch_size}. Expected 1 or more images.")
    for _ in range(num_runs):
        run(np.full((batch_size, *size, 3) if embedded else (batch_size, 3, *size), 114, np.uint8))


def predict_images(
    run: Callable[[NDArray[np.uint8]], Outputs],
    specs: Mapping[str, TaskSpec],
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    camera: Camera | Sequence[Camera | None] | None,
    size: tuple[int, int] | None,
    size_divisor: int = 32,
):
    """Letterbox, run, restore: the same for torch and ONNX Runtime, which only differ in ``run``.

    size: None = ``run`` letterboxes and restores itself; it gets images of one size together, of unlike ones singly
    """
    if size is not None:
        check_input_size(size, size_divisor)
    if not isinstance(images, Sequence):
        _check_image(images)
    image_list = [images] if isinstance(images, np.ndarray) else list(images)
    cameras = list(camera) if isinstance(camera, Sequence) else [camera] * len(image_list)
    if len(cameras) != len(image_list):
        raise PerceptionError(
            f"{len(cameras)} cameras for {len(image_list)} images. Give one for each, or one for all."
        )
    for lens in cameras:
        check_camera(lens)
    if not image_list:
        return []
    together = size is not None or len({np.shape(picture) for picture in image_list}) == 1
    found: list[Result] = []
    for start, stop in [(0, len(image_list))] if together else pairwise(range(len(image_list) + 1)):
        batch, transforms = preprocess(image_list[start:stop], size)
        found += postprocess(run(batch), specs, image_list[start:stop], transforms, cameras[start:stop])
    return found[0] if isinstance(images, np.ndarray) else found


def preprocess(
    images: Sequence[NDArray[np.uint8]], size: tuple[int, int] | None
) -> tuple[NDArray[np.uint8], list[ImageTransform]]:
    """Letterboxed uint8 RGB [B, 3, H, W] of ``size`` (height, width), and how each image was placed.

    size: None = the images, all of one size, as they are: [B, H, W, 3]
    Raises PerceptionError for what is no uint8 RGB image [H, W, 3].
    """
    for picture in images:
        _check_image(picture)
    if size is None:
        return np.stack(images), [_identity_transform(picture.shape[0], picture.shape[1]) for picture in images]
    transforms = [compute_letterbox((picture.shape[0], picture.shape[1]), size) for picture in images]
    batch = np.empty((len(images), 3, *size), np.uint8)
    for planes, picture, frame in zip(batch, images, transforms, strict=True):
        cv2.split(warp_image(picture, frame), list(planes))
    return batch, transforms


def _identity_transform(height: int, width: int) -> ImageTransform:
    return ImageTransform((height, width), (height, width), (0, 0, width, height), (0, 0, width, height))


def postprocess(
    outputs: Outputs,
    specs: Mapping[str, TaskSpec],
    images: Sequence[NDArray[np.uint8]],
    transforms: Sequence[ImageTransform],
    cameras: Sequence[Camera | None],
) -> list[Result]:
    """What the network said of each image of a batch, in its own pixels, without what no one should see."""
    found = []
    for i, (picture, frame, camera) in enumerate(zip(images, transforms, cameras, strict=True)):
        sound, flags = sanitize_outputs({name: values[i] for name, values in outputs.items()}, specs)
        prediction = build_prediction(sound, specs, frame, camera, flags=tuple(flags))
        found.append(Result(prediction, specs, picture, camera))
    return found


def check_camera(camera: Camera | None) -> None:
    """Raise PerceptionError for what is no camera, and for intrinsics that none has."""
    if camera is not None and not isinstance(camera, Camera):
        raise PerceptionError(f"Wrong camera {camera!r}. Expected a perception.types.Camera(fx, fy, cx, cy), or None.")
    if camera is not None and not (
        np.isfinite(list(dataclasses.astuple(camera))).all() and camera.fx > 0 and camera.fy > 0
    ):
        raise PerceptionError(
            f"Wrong {camera}. Expected finite numbers in pixels of the image, fx and fy over 0. Or give none."
        )


def check_input_size(size: Sequence[int], size_divisor: int) -> None:
    """Raise PerceptionError unless ``size`` is a (height, width) that the network takes."""
    if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(x, int | np.integer) for x in size):
        raise PerceptionError(f"Wrong input size {size!r}. Expected (height, width), multiples of {size_divisor}.")
    if any(x <= 0 or x % size_divisor for x in size):
        near = "x".join(str(max(1, -(-x // size_divisor)) * size_divisor) for x in size)
        raise PerceptionError(
            f"Wrong input size {'x'.join(map(str, size))}. Expected multiples of {size_divisor}. Use {near}."
        )
    if size[0] * size[1] > MAX_PIXELS:
        raise PerceptionError(f"Wrong input size {size[0]}x{size[1]}. Expected at most {MAX_PIXELS:,} pixels.")


def check_threads(threads: int | None) -> None:
    """Raise PerceptionError for a number of threads that there cannot be."""
    if threads is not None and threads < 1:
        raise PerceptionError(f"Wrong number of threads {threads}. Expected 1 or more, or None for one per core.")


def sanitize_outputs(outputs: Outputs, specs: Mapping[str, TaskSpec]) -> tuple[Outputs, list[str]]:
    """One image's outputs without values that no consumer should see, and a sentence for each kind that was found.

    Boxes that are not finite or have no area, and unknown labels, become padding; quantities that are not positive and
    finite become NaN (not valid); probabilities that are not finite become 0; unknown classes of a segmentation mask
    stay, not
    valid to whoever knows the classes.
    """
    sound, flags = dict(outputs), []
    for name, spec in specs.items():
        if spec.annotation_type == "instances":
            boxes, scores, labels = (sound[f"{name}.{output}"] for output in spec.outputs[:3])
            with np.errstate(invalid="ignore"):
                solid = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
            bad = (scores != 0) & ~(
                solid & np.isfinite(scores) & (scores > 0) & (labels >= 0) & (labels < len(spec.classes))
            )
            if bad.any():
                keys = [f"{name}.{output}" for output in spec.outputs[:3]]
                fixed = np.where(bad[:, None], 0, boxes), np.where(bad, 0, scores), np.where(bad, 0, labels)
                sound.update(zip(keys, fixed, strict=True))
                flags.append(f"{name}: {bad.sum()} boxes are not finite, without area or of no known class")
            continue
        key = f"{name}.{spec.outputs[0]}"
        values = sound[key]
        if spec.annotation_type == "label":
            bad = ~np.isfinite(values)
            sound[key], what = np.where(bad, 0, values), "probabilities are not finite"
        elif spec.classes:
            bad = values >= len(spec.classes)
            sound[key], what = values, "pixels are of no known class"
        else:  # a quantity, and the error that it expects, are both positive
            parts = [sound[f"{name}.{output}"] for output in spec.outputs[:2]]
            bad = ~np.logical_and.reduce([np.isfinite(part) & (part > 0) for part in parts])
            sound[key], what = np.where(bad, np.nan, values), "pixels are not positive and finite"
        if bad.any():
            flags.append(f"{name}: {bad.sum()} of {bad.size} {what}")
    return sound, flags


def select_specs(specs: Mapping[str, TaskSpec], tasks: Sequence[str] | None) -> dict[str, TaskSpec]:
    """The specs of ``tasks`` (None = all). Raises PerceptionError for one that the network does not have."""
    tasks = [tasks] if isinstance(tasks, str) else tasks
    unknown = sorted(set(tasks or ()) - set(specs))
    if unknown or (tasks is not None and not tasks):
        raise PerceptionError(f"No task {', '.join(unknown) or '(none given)'}. The network has: {', '.join(specs)}.")
    return {name: spec for name, spec in specs.items() if tasks is None or name in tasks}


def _open_session(
    model: bytes, where: str, threads: int | None, providers: Sequence[Provider] | None, allow_spinning: bool
) -> onnxruntime.InferenceSession:
    wanted = [providers] if isinstance(providers, str) else list(providers or ["CPUExecutionProvider"])
    names, available = [_provider_name(provider) for provider in wanted], onnxruntime.get_available_providers()
    if absent := [name for name in names if name not in available]:
        raise PerceptionError(
            f"No execution provider {', '.join(absent)}. This onnxruntime has: {', '.join(available)}."
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(allow_spinning)))
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(model, options, providers=wanted)
    except Exception as error:  # onnxruntime raises types of its own, which share only Exception
        raise PerceptionError(f"{where}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}") from error
    if names[0] not in session.get_providers():  # onnxruntime goes on with the CPU, and only its log says so
        raise PerceptionError(
            f"The execution provider {names[0]} does not start here: {', '.join(session.get_providers())} would run "
            f"instead. Check its driver and libraries, or ask for what there is."
        )
    return session


def _provider_name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _check_image(image: NDArray) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise PerceptionError(
            f"Wrong image: {found}. Expected uint8 RGB [height, width, 3]. Convert it (cv2 reads BGR)."
        )
    if not image.size:
        raise PerceptionError(f"Empty image {list(image.shape)}. Expected at least one pixel.")
