"""Out-of-distribution score of an image and its prediction (monitor M2), calibrated by its false-alarm rate.

The features of good images are modeled by their mean and covariance. The score of a new image is the share of good
images with a smaller Mahalanobis distance: one good image in a hundred reaches 0.99.
Source: Lee et al. 2018, A simple unified framework for detecting out-of-distribution samples, applied to interpretable
features. The share is the conformal p-value of Bates et al. 2023.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perception.files.safe_write import write_atomic
from perception.runtime.sources import Frame
from perception.types import PerceptionError, Prediction, TaskSpec
from perception.video.ood_features import compute_features, feature_names

FORMAT = 1
MIN_IMAGES = 50
"""Minimum number of good images for a fit."""
NUM_FOLDS = 5
SHRINKAGE = 0.1
"""Shrinkage of the correlations towards zero."""
MIN_SCALE = 1e-3
"""Minimum standard deviation of a feature."""
OOD_THRESHOLD = 0.99
"""Predictions with a larger ood score are flagged."""
MAX_BYTES = 1 << 26
"""Maximum size of an ood model file."""
MAX_DISTANCES = 1001
"""Maximum number of stored distances of good images, at equally spaced quantiles."""


@dataclass(frozen=True)
class OodModel:
    """Feature statistics of good images for one network.

    Attributes:
        feature_names: F names.
        mean: [F].
        scale: [F], standard deviations.
        inverse_correlation: [F, F].
        distances: [K], ascending distances of good images.
        num_images: number of good images.
        network_sha256: SHA-256 of the network; "" = unknown.
    """

    feature_names: list[str]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    inverse_correlation: NDArray[np.float64]
    distances: NDArray[np.float64]
    num_images: int
    network_sha256: str = ""

    def mahalanobis_distance(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the distances [...] of features [..., F] from those of good images."""
        offsets = (values - self.mean) / self.scale
        return np.sqrt(np.einsum("...i,ij,...j->...", offsets, self.inverse_correlation, offsets))

    def score(self, values: NDArray[np.float64]) -> float:
        """Return the share of good images with a smaller distance, 0 to 1 - 1 / (num_images + 1)."""
        share = float(np.searchsorted(self.distances, self.mahalanobis_distance(values), side="right")) / len(
            self.distances
        )
        return share * self.num_images / (self.num_images + 1)

    def outlier_features(self, values: NDArray[np.float64], count: int = 2) -> list[str]:
        """Return the names of the features farthest from the mean."""
        offsets = np.abs((values - self.mean) / self.scale)
        return [self.feature_names[i] for i in np.argsort(-offsets)[:count]]

    def save(self, path: Path) -> None:
        """Write the model as JSON."""
        record = {key: _to_plain(value) for key, value in dataclasses.asdict(self).items()}
        write_atomic(path, f"{json.dumps({'format': FORMAT, **record}, allow_nan=False)}\n".encode())


def fit_features(values: NDArray[np.float64], names: list[str], model: str = "") -> OodModel:
    """Fit the model to the features [N, F] of good images, in recording order.

    The distances are cross-validated: each fold of consecutive images is measured with the statistics of the other
    folds. Raises PerceptionError for fewer than `MIN_IMAGES` images.
    """
    if len(values) < MIN_IMAGES:
        raise PerceptionError(
            f"found {len(values)} good images. The fit needs at least {MIN_IMAGES}, better 500. Add more images."
        )
    whole = _compute_statistics(values)
    measured = []
    for fold in np.array_split(np.arange(len(values)), NUM_FOLDS):
        others = np.delete(values, fold, axis=0)
        measured.append(
            OodModel(names, *_compute_statistics(others), np.zeros(0), len(others)).mahalanobis_distance(values[fold])
        )
    distances = np.quantile(np.concatenate(measured), np.linspace(0, 1, min(MAX_DISTANCES, len(values))))
    return OodModel(names, *whole, distances, len(values), model)


def _compute_statistics(values: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """Mean, standard deviation and inverse correlation of features [N, F]."""
    mean, scale = values.mean(0), np.maximum(values.std(0), MIN_SCALE)
    offsets = (values - mean) / scale
    correlation = (1 - SHRINKAGE) * offsets.T @ offsets / len(values) + SHRINKAGE * np.eye(values.shape[1])
    return mean, scale, np.linalg.inv(correlation)


def load_ood_model(path: Path, specs: Mapping[str, TaskSpec], model: str = "") -> OodModel:
    """Load a model. Raises PerceptionError if the file is missing, damaged, or belongs to another network or tasks."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        found = _parse_record(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise PerceptionError(
            f"{path} is not a valid ood model: {error}. Create one with `perception ood fit`."
        ) from error
    if found.feature_names != feature_names(specs):
        raise PerceptionError(
            f"{path} was fitted for other tasks. Create one for these tasks with `perception ood fit`."
        )
    if model and found.network_sha256 and model != found.network_sha256:
        raise PerceptionError(
            f"{path} was fitted for another network. Create one for this network with `perception ood fit`."
        )
    return found


def _parse_record(record: object) -> OodModel:
    """Parse the JSON of a file. Raises ValueError, TypeError or OverflowError that names the invalid field."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"expected an object of format {FORMAT}")
    names, count, model = (record.get(key) for key in ("feature_names", "num_images", "network_sha256"))
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("feature_names is not a list of strings")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1 << 53:
        raise ValueError("num_images is not a valid image count")
    if not isinstance(model, str):
        raise ValueError("network_sha256 is not a string")
    size, arrays = len(names), {}
    distances = record.get("distances")
    kept = len(distances) if isinstance(distances, list) and 0 < len(distances) <= MAX_DISTANCES else -1
    for key, shape in (
        ("mean", (size,)),
        ("scale", (size,)),
        ("inverse_correlation", (size, size)),
        ("distances", (kept,)),
    ):
        values = np.asarray(record.get(key), np.float64)
        if values.shape != shape or not np.isfinite(values).all():
            raise ValueError(f"{key} has the wrong shape ({list(values.shape)}) or values that are not finite")
        arrays[key] = values
    if (arrays["scale"] <= 0).any() or (np.diff(arrays["distances"]) < 0).any():
        raise ValueError("scale is not positive, or distances are not ascending")
    if np.linalg.eigvalsh(arrays["inverse_correlation"]).min() <= 0:
        raise ValueError("inverse_correlation is not positive definite")
    return OodModel(feature_names=names, num_images=count, network_sha256=model, **arrays)


class OodMonitor:
    """A post-processor that sets the ood score of each valid prediction, and flags scores above `OOD_THRESHOLD`."""

    def __init__(self, ood_model: OodModel, specs: Mapping[str, TaskSpec]) -> None:
        self.ood_model, self.specs = ood_model, specs

    def __call__(self, frame: Frame, prediction: Prediction) -> Prediction:
        """Return the prediction with its ood score."""
        if not prediction.valid:
            return prediction
        values = compute_features(frame.image, prediction, self.specs)
        ood_score, flags = self.ood_model.score(values), prediction.flags
        if ood_score > OOD_THRESHOLD:
            flags = (*flags, f"odd: {', '.join(self.ood_model.outlier_features(values))}")
        return dataclasses.replace(prediction, ood_score=ood_score, flags=flags)


class FeatureCollector:
    """A post-processor that collects the features of every valid prediction, for `fit_features`."""

    def __init__(self, specs: Mapping[str, TaskSpec]) -> None:
        self.specs = specs
        self.values: list[NDArray[np.float64]] = []

    def __call__(self, frame: Frame, prediction: Prediction) -> Prediction:
        """Store the features and return the prediction unchanged."""
        if prediction.valid:
            self.values.append(compute_features(frame.image, prediction, self.specs))
        return prediction


def _to_plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value
