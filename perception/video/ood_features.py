"""Features of an image and its prediction for the out-of-distribution score."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.types import DenseMap, ImageLabel, Instances, Prediction, TaskSpec
from perception.video.consistency import find_contradictions
from perception.video.image_monitor import quantile, sharpness, to_small_gray

SAMPLE_ROWS = 96
"""Approximate number of rows sampled from a dense map."""


def feature_names(specs: Mapping[str, TaskSpec]) -> list[str]:
    """Return the names of the values of `compute_features`, in the same order."""
    names = [f"image.{name}" for name in IMAGE_FEATURES]
    for name, spec in specs.items():
        kind = spec.annotation_type if spec.annotation_type != "dense" else "mask" if spec.classes else "quantity"
        names += [f"{name}.{what}" for what in TASK_FEATURES[kind]]
    return [*names, *(f"consistency.{name}" for name in CONSISTENCY_FEATURES)]


IMAGE_FEATURES = ("brightness", "contrast", "entropy", "noise", "sharpness", "detail", "saturation", "warmth")
TASK_FEATURES = {
    "instances": ("count", "score", "size"),
    "mask": ("entropy", "borders", "largest", "height"),
    "quantity": ("median", "spread", "slope", "roughness"),
    "label": ("certainty",),
}
CONSISTENCY_FEATURES = ("unsupported", "depth_jumps", "unboxed")


def compute_features(
    image: NDArray[np.uint8], prediction: Prediction, specs: Mapping[str, TaskSpec]
) -> NDArray[np.float64]:
    """Return the features [F] of one image (uint8 RGB [H, W, 3]) and its prediction; see `feature_names`."""
    values = _image_features(image)
    for name, spec in specs.items():
        annotation = prediction.annotations.get(name)
        if isinstance(annotation, Instances):
            values += _instance_features(annotation, spec, prediction.size)
        elif isinstance(annotation, ImageLabel):
            values.append(float(np.max(annotation.values)))
        elif isinstance(annotation, DenseMap):
            values += _mask_features(annotation, spec) if spec.classes else _quantity_features(annotation)
        else:
            kind = spec.annotation_type if spec.annotation_type != "dense" else "mask" if spec.classes else "quantity"
            values += [0.0] * len(TASK_FEATURES[kind])
    found = find_contradictions(prediction, specs)
    share = max(1, found.num_boxes)
    return np.array([*values, found.unsupported / share, found.depth_jumps / share, found.unboxed])


def _image_features(image: NDArray[np.uint8]) -> list[float]:
    gray = to_small_gray(image)
    mean, deviation = cv2.meanStdDev(gray)
    counts = np.asarray(cv2.calcHist([gray], [0], None, [64], [0, 256])).ravel() / gray.size
    near = cv2.absdiff(gray, cv2.medianBlur(gray, 3))
    small = image[:: max(1, image.shape[0] // SAMPLE_ROWS), :: max(1, image.shape[1] // SAMPLE_ROWS)].astype(np.int16)
    return [
        float(mean[0, 0]) / 255,
        float(deviation[0, 0]) / 128,
        _entropy(counts),
        float(np.log1p(cv2.mean(near)[0])),
        sharpness(gray),
        float(np.log1p(quantile(cv2.convertScaleAbs(cv2.Laplacian(gray, cv2.CV_16S)), 0.9))),
        float((small.max(2) - small.min(2)).mean()) / 255,
        float((small[..., 0] - small[..., 2]).mean()) / 255,
    ]


def _instance_features(found: Instances, spec: TaskSpec, size: tuple[int, int]) -> list[float]:
    scores = np.ones(len(found.boxes)) if found.scores is None else np.asarray(found.scores)
    shown = scores >= spec.score_threshold
    if not shown.any():
        return [0.0, 0.0, -6.0]
    boxes = np.asarray(found.boxes)[shown]
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1) / (size[0] * size[1])
    return [float(np.log1p(shown.sum())), float(scores[shown].mean()), float(np.log(areas).mean())]


def _mask_features(found: DenseMap, spec: TaskSpec) -> list[float]:
    values = _subsample(np.asarray(found.values))
    shares = (
        np.bincount(values.ravel().astype(np.int64), minlength=len(spec.classes))[: len(spec.classes)] / values.size
    )
    largest = int(shares.argmax())
    rows = (values == largest).mean(1)
    borders = (values[:, 1:] != values[:, :-1]).mean() + (values[1:] != values[:-1]).mean()
    height = float((rows * np.linspace(0, 1, len(rows))).sum() / max(rows.sum(), 1e-9))
    return [_entropy(shares), float(np.log(borders + 1e-3)), float(shares[largest]), height]


def _quantity_features(found: DenseMap) -> list[float]:
    values, valid = _subsample(np.asarray(found.values)), _subsample(np.asarray(found.valid))
    logs = np.log(np.where(valid, np.maximum(values, 1e-3), 1.0))
    rows = logs.mean(1)
    spread = float(logs.std())
    slope = np.polyfit(np.linspace(-0.5, 0.5, len(rows)), rows, 1)[0] if len(rows) > 1 else 0.0
    rough = float(np.abs(np.diff(logs, axis=1)).mean()) if logs.shape[1] > 1 else 0.0
    return [float(np.median(logs)), spread, float(slope), float(np.log(rough + 1e-3))]


def _subsample(values: NDArray) -> NDArray:
    step = max(1, values.shape[0] // SAMPLE_ROWS)
    return values[::step, ::step]


def _entropy(shares: NDArray) -> float:
    """Entropy of a distribution, relative to its maximum."""
    known = shares[shares > 0]
    return float(-(known * np.log(known)).sum() / np.log(max(2, len(shares))))
