"""Convert decoded network outputs to annotations in source pixels, and to JSON. numpy, no torch.

Evaluation, `perception predict` with torch and the torch-free runtime use these functions, so predictions are the same
everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.ops import image as geometry
from perception.types import (
    Annotation,
    Camera,
    DenseMap,
    ImageLabel,
    ImageTransform,
    Instances,
    PerceptionError,
    Prediction,
    TaskSpec,
)

MAX_DISTANCE_SAMPLES = 32
"""Sampled depth rows and columns in a large box: at least this many, fewer than twice as many."""


def restore_annotations(
    outputs: Mapping[str, NDArray], specs: Mapping[str, TaskSpec], transform: ImageTransform, camera: Camera | None
) -> dict[str, Annotation]:
    """Return the annotations of one image, in source pixels and metric units.

    Invalid values are removed: boxes that are not finite or have no area. Pixels of a quantity are marked as not valid
    if the value or its expected error is not finite.

    Args:
        outputs: "<task>.<output>" -> array without batch dimension, from `MultiTaskModel.predict` or the ONNX file.
        specs: task name -> specification.
        transform: the letterbox of the image.
        camera: intrinsics in source pixels; None = the default focal length of the task's spec.
    """
    annotations: dict[str, Annotation] = {}
    for name, spec in specs.items():
        found = [outputs[f"{name}.{output}"] for output in spec.outputs if f"{name}.{output}" in outputs]
        if len(found) < len(spec.outputs):
            continue
        if spec.annotation_type == "instances":
            annotations[name] = _restore_instances(*found[:3], transform=transform)
        elif spec.annotation_type == "dense":
            annotations[name] = _restore_dense_map(*found[:2], spec=spec, transform=transform, camera=camera)
        else:
            annotations[name] = ImageLabel(np.asarray(found[0], np.float32))
    return annotations


def require_finite(outputs: Mapping[str, NDArray], specs: Mapping[str, TaskSpec], where: str) -> None:
    """Raise PerceptionError with the task name if an output of one image is NaN or a score is not finite.

    For evaluation: `restore_annotations` would remove these values, and a broken network would seem to find nothing.
    The runtime removes and flags them instead (`perception.runtime.predictor.sanitize_outputs`).
    """
    for name, spec in specs.items():
        for output in spec.outputs:
            values = outputs.get(f"{name}.{output}")
            if values is None or values.dtype.kind != "f":
                continue
            wrong = np.isnan(values) if spec.annotation_type == "dense" else ~np.isfinite(values)
            if wrong.any():
                raise PerceptionError(
                    f"{where}: {name}: {wrong.sum()} of {wrong.size} {output} from the network are not finite (NaN or "
                    "infinite). Its weights are damaged or its training diverged. Use another checkpoint, or "
                    "train again with a lower learning rate."
                )


def _restore_instances(boxes: NDArray, scores: NDArray, labels: NDArray, transform: ImageTransform) -> Instances:
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    kept = np.isfinite(boxes).all(1) & np.isfinite(scores) & (scores > 0)
    moved = geometry.unwarp_boxes(boxes[kept], transform)
    solid = (moved[:, 2:] > moved[:, :2]).all(1)
    return Instances(moved[solid], np.asarray(labels)[kept][solid].astype(np.int64), scores[kept][solid])


def _restore_dense_map(
    values: NDArray,
    relative_error: NDArray | None = None,
    *,
    spec: TaskSpec,
    transform: ImageTransform,
    camera: Camera | None,
) -> DenseMap:
    if spec.classes:
        label_map = geometry.unwarp_map(values, transform, smooth=False)
        return DenseMap(label_map, label_map < len(spec.classes))
    factor = geometry.focal_scale(camera, transform, spec.canonical_focal, spec.default_focal)
    quantity = geometry.unwarp_map(np.multiply(values, factor, dtype=np.float32), transform, smooth=True)
    valid = np.isfinite(quantity)
    if relative_error is not None:  # relative to the value, so independent of the focal length
        relative_error = geometry.unwarp_map(np.asarray(relative_error, np.float32), transform, smooth=True)
        valid &= np.isfinite(relative_error)
    if not valid.all():
        quantity[~valid] = 0
        relative_error = None if relative_error is None else np.where(valid, relative_error, np.float32(0))
    if spec.limits:
        np.clip(quantity, *spec.limits, out=quantity, where=valid)
    return DenseMap(quantity, valid, relative_error)


def measure_distances(instances: Instances, depth: DenseMap) -> NDArray[np.float32]:
    """Return metres to each box [N]: median depth of its central part (half its width and height); NaN if unknown.

    If the central part is larger than `MAX_DISTANCE_SAMPLES` pixels, rows and columns are sampled at equal steps.
    """
    height, width = depth.values.shape
    result = np.full(len(instances.boxes), np.nan, np.float32)
    for i, (x1, y1, x2, y2) in enumerate(np.asarray(instances.boxes, np.float64).tolist()):
        center_x, center_y, half_x, half_y = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 4, (y2 - y1) / 4
        area = (
            _sample_slice(center_y - half_y, center_y + half_y, height),
            _sample_slice(center_x - half_x, center_x + half_x, width),
        )
        known = depth.values[area][depth.valid[area]]
        if known.size:
            middle = known.size // 2
            ordered = np.partition(known, (middle - 1, middle) if known.size % 2 == 0 else middle)
            result[i] = ordered[middle] if known.size % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return result


def _sample_slice(start: float, stop: float, size: int) -> slice:
    """Sampled pixels between two positions on an axis of ``size``, at least one; see `MAX_DISTANCE_SAMPLES`."""
    first = min(max(math.floor(start), 0), size - 1)
    last = min(max(math.ceil(stop), first + 1), size)
    return slice(first, last, max(1, (last - first) // MAX_DISTANCE_SAMPLES))


def build_prediction(
    outputs: Mapping[str, NDArray],
    specs: Mapping[str, TaskSpec],
    transform: ImageTransform,
    camera: Camera | None = None,
    *,
    flags: tuple[str, ...] = (),
) -> Prediction:
    """As `restore_annotations`, plus the distance of each box if the network predicts boxes and depth."""
    annotations = restore_annotations(outputs, specs, transform, camera)
    instances = next((a for a in annotations.values() if isinstance(a, Instances)), None)
    depth = _find_depth_map(annotations, specs)
    measured = measure_distances(instances, depth) if instances is not None and depth is not None else None
    return Prediction(annotations, transform.source_size, distances=measured, flags=flags)


def _find_depth_map(annotations: Mapping[str, Annotation], specs: Mapping[str, TaskSpec]) -> DenseMap | None:
    """Return the first depth map."""
    return next((a for name, a in annotations.items() if isinstance(a, DenseMap) and specs[name].unit == "m"), None)


def to_json(prediction: Prediction, specs: Mapping[str, TaskSpec]) -> dict[str, Any]:
    """Return one record of ``predictions.jsonl``: boxes and labels above the threshold, in source pixels and metres.

    ``distance_error`` of a box is the expected error of its distance in metres, if the depth map has expected errors.
    Dense maps are too large for JSON. Callers that write them to files add the file names.
    """
    record: dict[str, Any] = {"id": prediction.id, "size": list(prediction.size)}
    if prediction.time is not None:
        record["time"] = round(prediction.time, 6)
    depth = _find_depth_map(prediction.annotations, specs)
    errors = None if depth is None or depth.relative_error is None else DenseMap(depth.relative_error, depth.valid)
    measured = {
        "distance": prediction.distances,
        "closing_speed": prediction.closing_speeds,
        "time_to_contact": prediction.times_to_contact,
    }
    for name, annotation in prediction.annotations.items():
        spec = specs[name]
        if isinstance(annotation, Instances):
            record[name] = _instances_to_json(annotation, spec, measured, errors)
            measured, errors = {}, None
        elif isinstance(annotation, ImageLabel):
            record[name] = _label_to_json(annotation, spec)
    if prediction.ood_score is not None:
        record["ood_score"] = round(prediction.ood_score, 4)
    if prediction.flags:
        record["flags"] = list(prediction.flags)
    if not prediction.valid:
        record["valid"] = False
    return record


def _instances_to_json(
    instances: Instances, spec: TaskSpec, measurements: Mapping[str, NDArray | None], errors: DenseMap | None
) -> list[dict[str, Any]]:
    scores = instances.scores
    shares = None if errors is None or measurements.get("distance") is None else measure_distances(instances, errors)
    boxes = []
    for i in range(len(instances.boxes)):
        if scores is not None and scores[i] < spec.score_threshold:
            continue
        item: dict[str, Any] = {
            "box": [round(float(value), 2) for value in instances.boxes[i]],
            "label": spec.classes[int(instances.labels[i])],
        }
        if scores is not None:
            item["score"] = round(float(scores[i]), 4)
        for key, values in measurements.items():
            if values is not None and np.isfinite(values[i]):
                item[key] = round(float(values[i]), 3)
        if shares is not None and "distance" in item:
            item["distance_error"] = round(item["distance"] * float(shares[i]), 3)
        if instances.track_ids is not None and instances.track_ids[i] >= 0:
            item["track"] = int(instances.track_ids[i])
        boxes.append(item)
    return boxes


def _label_to_json(label: ImageLabel, spec: TaskSpec) -> object:
    scores = {name: round(float(value), 4) for name, value in zip(spec.classes, label.values, strict=True)}
    if spec.multi_label:
        return {"labels": [name for name, score in scores.items() if score >= spec.score_threshold], "scores": scores}
    best = spec.classes[int(np.argmax(label.values))]
    return {"label": best, "score": scores[best], "scores": scores}
