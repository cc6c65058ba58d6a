"""How unlike known good pictures a picture and its prediction are (M2): a score whose meaning is its false-alarm rate.

The features of good pictures are described by their mean and covariance; the distance of a new one from them
(Mahalanobis) is told as the share of good pictures that are nearer: 0.99 is reached by one good picture in a hundred.
Source: Lee et al. 2018, A simple unified framework for detecting out-of-distribution samples, on features anyone can
read; the share is the conformal p-value of Bates et al. 2023.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.files.safe_write import write_whole
from perception.runtime.sources import Shot
from perception.types import PerceptionError, Prediction, TaskSpec
from perception.video.ood_features import feature_names, features

FORMAT = 1
LEAST = 50
"""Good pictures that a calibration needs."""
FOLDS = 5
SHRINKAGE = 0.1
"""Of the correlations towards none."""
FLOOR = 1e-3
"""Least standard deviation of a feature."""
LIMIT = 0.99
"""Doubt over which a prediction is flagged."""
MAX_BYTES = 1 << 26
"""Of a calibration's file."""
KEPT = 1001
"""Distances of good pictures that are kept, at equal steps of their share."""


@dataclass(frozen=True)
class Calibration:
    """What good pictures look like to a network. names [F], mean [F], scale [F], inverse [F, F], distances [K] growing.

    model: SHA-256 of the network it belongs to; "" = unknown
    """

    names: list[str]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    inverse: NDArray[np.float64]
    distances: NDArray[np.float64]
    count: int
    model: str = ""

    def distance(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of features [..., F] from those of good pictures."""
        offsets = (values - self.mean) / self.scale
        return np.sqrt(np.einsum("...i,ij,...j->...", offsets, self.inverse, offsets))

    def doubt(self, values: NDArray[np.float64]) -> float:
        """The share of good pictures that are less odd, 0 to 1 - 1 / (count + 1)."""
        share = float(np.searchsorted(self.distances, self.distance(values), side="right")) / len(self.distances)
        return share * self.count / (self.count + 1)

    def odd_features(self, values: NDArray[np.float64], count: int = 2) -> list[str]:
        """The names of the features that are farthest from the mean."""
        offsets = np.abs((values - self.mean) / self.scale)
        return [self.names[i] for i in np.argsort(-offsets)[:count]]

    def save(self, path: Path) -> None:
        record = {key: _plain(value) for key, value in dataclasses.asdict(self).items()}
        write_whole(path, f"{json.dumps({'format': FORMAT, **record}, allow_nan=False)}\n".encode())


def fit(values: NDArray[np.float64], names: list[str], model: str = "") -> Calibration:
    """Calibrate on the features [N, F] of good pictures, in the order in which they were taken.

    The distances are those of pictures that had no part in mean and covariance: each fold of neighbours is measured
    against the others. Raises PerceptionError for fewer than `LEAST` pictures.
    """
    if len(values) < LEAST:
        raise PerceptionError(
            f"{len(values)} good pictures. A calibration needs at least {LEAST}, better 500. Give more."
        )
    whole = _describe(values)
    measured = []
    for fold in np.array_split(np.arange(len(values)), FOLDS):
        others = np.delete(values, fold, axis=0)
        measured.append(Calibration(names, *_describe(others), np.zeros(0), len(others)).distance(values[fold]))
    distances = np.quantile(np.concatenate(measured), np.linspace(0, 1, min(KEPT, len(values))))
    return Calibration(names, *whole, distances, len(values), model)


def _describe(values: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """Mean, standard deviation and inverse correlation of features [N, F]."""
    mean, scale = values.mean(0), np.maximum(values.std(0), FLOOR)
    offsets = (values - mean) / scale
    correlation = (1 - SHRINKAGE) * offsets.T @ offsets / len(values) + SHRINKAGE * np.eye(values.shape[1])
    return mean, scale, np.linalg.inv(correlation)


def load(path: Path, specs: Mapping[str, TaskSpec], model: str = "") -> Calibration:
    """Raises PerceptionError where the file is missing, damaged, or of another network or other tasks."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has over {MAX_BYTES} bytes")
        found = _parsed(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise PerceptionError(f"{path} is no calibration: {error}. Make one with `perception calibrate`.") from error
    if found.names != feature_names(specs):
        raise PerceptionError(f"{path} is of other tasks. Make one for these with `perception calibrate`.")
    if model and found.model and model != found.model:
        raise PerceptionError(f"{path} is of another network. Make one for this with `perception calibrate`.")
    return found


def _parsed(record: Any) -> Calibration:
    """The calibration in a file's JSON. Raises ValueError, TypeError or OverflowError naming what is wrong."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"expected an object of format {FORMAT}")
    names, count, model = (record.get(key) for key in ("names", "count", "model"))
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("names is no list of words")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1 << 53:
        raise ValueError("count is no number of pictures")
    if not isinstance(model, str):
        raise ValueError("model is no text")
    size, arrays = len(names), {}
    distances = record.get("distances")
    kept = len(distances) if isinstance(distances, list) and 0 < len(distances) <= KEPT else -1
    for key, shape in (("mean", (size,)), ("scale", (size,)), ("inverse", (size, size)), ("distances", (kept,))):
        values = np.asarray(record.get(key), np.float64)
        if values.shape != shape or not np.isfinite(values).all():
            raise ValueError(f"{key} has the shape {list(values.shape)} or numbers that are not finite")
        arrays[key] = values
    if (arrays["scale"] <= 0).any() or (np.diff(arrays["distances"]) < 0).any():
        raise ValueError("scale is not over 0, or distances do not grow")
    if np.linalg.eigvalsh(arrays["inverse"]).min() <= 0:
        raise ValueError("inverse is not that of correlations")
    return Calibration(names=names, count=count, model=model, **arrays)


class Doubt:
    """A step of a pipeline: tells the doubt about each valid prediction, and flags those over `LIMIT`."""

    def __init__(self, calibration: Calibration, specs: Mapping[str, TaskSpec]) -> None:
        self.calibration, self.specs = calibration, specs

    def __call__(self, shot: Shot, prediction: Prediction) -> Prediction:
        if not prediction.valid:
            return prediction
        values = features(shot.image, prediction, self.specs)
        doubt, flags = self.calibration.doubt(values), prediction.flags
        if doubt > LIMIT:
            flags = (*flags, f"odd: {', '.join(self.calibration.odd_features(values))}")
        return dataclasses.replace(prediction, doubt=doubt, flags=flags)


class Collect:
    """A step that keeps the features of every valid prediction, for `fit`."""

    def __init__(self, specs: Mapping[str, TaskSpec]) -> None:
        self.specs = specs
        self.values: list[NDArray[np.float64]] = []

    def __call__(self, shot: Shot, prediction: Prediction) -> Prediction:
        if prediction.valid:
            self.values.append(features(shot.image, prediction, self.specs))
        return prediction


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
