"""A picture and what a network says of it in a few numbers, in which what is unlike others shows."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.types import DenseMap, ImageLabel, Instances, Prediction, TaskSpec
from perception.video.consistency import contradictions
from perception.video.image_monitor import quantile, sharpness, small_gray

ROWS = 96
"""Rows of a dense map that are looked at."""


def feature_names(specs: Mapping[str, TaskSpec]) -> list[str]:
    """What `features` gives, in its order."""
    names = [f"picture.{name}" for name in PICTURE]
    for name, spec in specs.items():
        kind = spec.shape if spec.shape != "dense" else "labels" if spec.classes else "quantity"
        names += [f"{name}.{what}" for what in OF_TASK[kind]]
    return [*names, *(f"agreement.{name}" for name in AGREEMENT)]


PICTURE = ("brightness", "contrast", "entropy", "noise", "sharpness", "detail", "saturation", "warmth")
OF_TASK = {
    "instances": ("count", "score", "size"),
    "labels": ("entropy", "borders", "largest", "height"),
    "quantity": ("median", "spread", "slope", "roughness"),
    "label": ("certainty",),
}
AGREEMENT = ("unsupported", "jumps", "unboxed")


def features(image: NDArray[np.uint8], prediction: Prediction, specs: Mapping[str, TaskSpec]) -> NDArray[np.float64]:
    """[F] of one picture, uint8 RGB [H, W, 3], and of what was predicted of it; see `feature_names`."""
    values = _of_picture(image)
    for name, spec in specs.items():
        annotation = prediction.annotations.get(name)
        if isinstance(annotation, Instances):
            values += _of_instances(annotation, spec, prediction.size)
        elif isinstance(annotation, ImageLabel):
            values.append(float(np.max(annotation.values)))
        elif isinstance(annotation, DenseMap):
            values += _of_labels(annotation, spec) if spec.classes else _of_quantity(annotation)
        else:
            kind = spec.shape if spec.shape != "dense" else "labels" if spec.classes else "quantity"
            values += [0.0] * len(OF_TASK[kind])
    found = contradictions(prediction, specs)
    share = max(1, found.boxes)
    return np.array([*values, found.unsupported / share, found.jumps / share, found.unboxed])


def _of_picture(image: NDArray[np.uint8]) -> list[float]:
    gray = small_gray(image)
    mean, deviation = cv2.meanStdDev(gray)
    counts = np.asarray(cv2.calcHist([gray], [0], None, [64], [0, 256])).ravel() / gray.size
    near = cv2.absdiff(gray, cv2.medianBlur(gray, 3))
    small = image[:: max(1, image.shape[0] // ROWS), :: max(1, image.shape[1] // ROWS)].astype(np.int16)
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


def _of_instances(found: Instances, spec: TaskSpec, size: tuple[int, int]) -> list[float]:
    scores = np.ones(len(found.boxes)) if found.scores is None else np.asarray(found.scores)
    shown = scores >= spec.threshold
    if not shown.any():
        return [0.0, 0.0, -6.0]
    boxes = np.asarray(found.boxes)[shown]
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1) / (size[0] * size[1])
    return [float(np.log1p(shown.sum())), float(scores[shown].mean()), float(np.log(areas).mean())]


def _of_labels(found: DenseMap, spec: TaskSpec) -> list[float]:
    values = _sampled(np.asarray(found.values))
    shares = (
        np.bincount(values.ravel().astype(np.int64), minlength=len(spec.classes))[: len(spec.classes)] / values.size
    )
    largest = int(shares.argmax())
    rows = (values == largest).mean(1)
    borders = (values[:, 1:] != values[:, :-1]).mean() + (values[1:] != values[:-1]).mean()
    height = float((rows * np.linspace(0, 1, len(rows))).sum() / max(rows.sum(), 1e-9))
    return [_entropy(shares), float(np.log(borders + 1e-3)), float(shares[largest]), height]


def _of_quantity(found: DenseMap) -> list[float]:
    values, valid = _sampled(np.asarray(found.values)), _sampled(np.asarray(found.valid))
    logs = np.log(np.where(valid, np.maximum(values, 1e-3), 1.0))
    rows = logs.mean(1)
    spread = float(logs.std())
    slope = np.polyfit(np.linspace(-0.5, 0.5, len(rows)), rows, 1)[0] if len(rows) > 1 else 0.0
    rough = float(np.abs(np.diff(logs, axis=1)).mean()) if logs.shape[1] > 1 else 0.0
    return [float(np.median(logs)), spread, float(slope), float(np.log(rough + 1e-3))]


def _sampled(values: NDArray) -> NDArray:
    step = max(1, values.shape[0] // ROWS)
    return values[::step, ::step]


def _entropy(shares: NDArray) -> float:
    """Of a distribution, relative to the most there can be."""
    known = shares[shares > 0]
    return float(-(known * np.log(known)).sum() / np.log(max(2, len(shares))))
