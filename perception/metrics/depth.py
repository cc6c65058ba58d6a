"""Errors of depth maps, as predicted and after median alignment, and how well they are foretold."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.metrics.metric import PerImageRecords, nanmean
from perception.types import DenseMap

METRIC_NAMES = ("abs_rel", "sq_rel", "rmse", "rmse_log", "silog", "delta1", "delta2", "delta3")
CONFIDENCE_LEVELS = np.arange(0.1, 0.95, 0.1)
"""Of the intervals around a prediction whose coverage is counted."""


class _DepthRecord(NamedTuple):
    """errors: by `NAMES`, then the same aligned. ause and coverage (at `LEVELS`): empty where no error is foretold."""

    errors: tuple[float, ...]
    ause: tuple[float, ...] = ()
    coverage: tuple[float, ...] = ()


class DepthMetric(PerImageRecords[_DepthRecord]):
    """The depth errors of Eigen et al. (2014) and KITTI: per image over its valid pixels, then the mean of images.

    * A pixel counts where the truth is valid and within ``limits``. Predictions are clipped to ``limits``, and one that
      is not valid counts as the lower limit, so that leaving pixels out does not pay.
    * The numbers without an ending are metric: nothing is aligned. Those with ``_aligned`` are taken after the
      prediction is multiplied, per image, by median(truth) / median(prediction) (Zhou et al. 2017), and say how good
      the shape is where the scale is wrong.
    * An image without a pixel that counts is in no mean.
    * Where predictions tell the error they expect, two numbers say how honest it is. ``ause``: the area between the
      curve of abs_rel when the pixels that expect the largest errors are left out first, and the same curve with those
      left out first that are the most wrong, as a share of abs_rel (sparsification error, Ilg et al. 2018): 0 = the
      order is right. ``miscalibration``: how far the share of pixels whose truth is within the interval that should
      hold it with 10, 20 ... 90 % is from that, on average (Kuleshov et al. 2018): 0 = the size is right.

    limits: smallest and largest distance that is evaluated, metres
    """

    def __init__(self, limits: tuple[float, float]) -> None:
        super().__init__()
        if not 0 < limits[0] < limits[1] < math.inf:
            raise ValueError(f"Depth limits {limits} are wrong. Expected 0 < smallest < largest, in metres.")
        self.limits = float(limits[0]), float(limits[1])
        self.protocol = (
            f"Per image over valid pixels from {limits[0]:g} to {limits[1]:g} m, then the mean over images; "
            "no alignment, and beside it (aligned) with each image's median brought to the truth's."
        )

    def update(self, image_id: str, prediction: DenseMap, target: DenseMap) -> None:
        """Account for one image. Raises ValueError with ``image_id`` where sizes differ or a valid depth is not
        finite."""
        predicted, true, expected = self._select_pixels(image_id, prediction, target)
        errors = self._compute_errors(predicted, true)
        if expected is None:
            self._records[image_id] = _DepthRecord(errors)
        elif not true.size:
            self._records[image_id] = _DepthRecord(errors, (math.nan,), (math.nan,) * len(CONFIDENCE_LEVELS))
        else:
            self._records[image_id] = _DepthRecord(
                errors, (ause(predicted, true, expected),), interval_coverage(predicted, true, expected)
            )

    def compute(self) -> dict[str, float]:
        """abs_rel, sq_rel (m), rmse (m), rmse_log, silog (x 100, as KITTI), delta1 to delta3 (share of pixels within
        a factor of 1.25, 1.25^2, 1.25^3), and the same with ``_aligned``; ause and miscalibration where predictions
        tell their error."""
        records = self._sorted_records()
        names = (*METRIC_NAMES, *(f"{name}_aligned" for name in METRIC_NAMES))
        columns = zip(*(record.errors for record in records), strict=True) if records else ((),) * len(names)
        numbers = dict(zip(names, map(nanmean, columns), strict=True))
        foretold = [record for record in records if record.ause]
        if foretold:
            shares = [nanmean(column) for column in zip(*(record.coverage for record in foretold), strict=True)]
            numbers["ause"] = nanmean(record.ause[0] for record in foretold)
            numbers["miscalibration"] = float(np.mean(np.abs(np.array(shares) - CONFIDENCE_LEVELS)))
        return numbers

    def compute_per_class(self) -> dict[str, dict[str, float]]:
        """Empty: depth has no classes."""
        return {}

    def score_image(self, prediction: DenseMap, target: DenseMap) -> float:
        """1 minus abs_rel of this image alone."""
        predicted, true, _ = self._select_pixels("this image", prediction, target)
        return 1.0 - self._compute_errors(predicted, true)[0]

    def _select_pixels(
        self, id: str, prediction: DenseMap, target: DenseMap
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
        """Predicted and true depths of the pixels that count [N], and the errors that were foretold [N]."""
        values, truth = np.asarray(prediction.values), np.asarray(target.values)
        if values.shape != truth.shape:
            raise ValueError(
                f"{id}: the predicted map is {values.shape}, the true map {truth.shape}. Expected one size."
            )
        known, valid = np.asarray(prediction.valid, np.bool_), np.asarray(target.valid, np.bool_)
        for kind, depths in (("predicted", values[known]), ("true", truth[valid])):
            if not np.isfinite(depths).all():
                raise ValueError(f"{id}: {(~np.isfinite(depths)).sum()} valid {kind} depths are not finite.")
        counted = valid & (truth >= self.limits[0]) & (truth <= self.limits[1])
        predicted = np.where(known, values, self.limits[0])[counted].astype(np.float64)
        expected = None
        if prediction.relative_error is not None:
            expected = np.where(known, prediction.relative_error, 1.0)[counted].astype(np.float64)
            if not (expected > 0).all():
                raise ValueError(f"{id}: {(~(expected > 0)).sum()} expected errors are not positive numbers.")
        return np.clip(predicted, *self.limits), truth[counted].astype(np.float64), expected

    def _compute_errors(self, predicted: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[float, ...]:
        """By `NAMES`, then the same aligned; NaN without a pixel."""
        if not true.size:
            return (math.nan,) * (2 * len(METRIC_NAMES))
        aligned = np.clip(predicted * (np.median(true) / np.median(predicted)), *self.limits)
        return (*_depth_errors(predicted, true), *_depth_errors(aligned, true))


def ause(predicted: NDArray[np.float64], true: NDArray[np.float64], expected_errors: NDArray[np.float64]) -> float:
    """Area under the sparsification error curve of abs_rel over its value (Ilg et al. 2018). All [N], N > 0.

    0 = the errors that are expected come in the order of those that are made; 0 where none is made.
    """
    made = np.abs(predicted - true) / true
    if not made.any():
        return 0.0
    left = len(made) - np.arange(0.0, 1.0, 0.05) * len(made)
    kept = np.ceil(left).astype(np.intp)
    curves = [np.cumsum(made[np.argsort(order, kind="stable")])[kept - 1] / kept for order in (expected_errors, made)]
    return float(np.mean(curves[0] - curves[1]) / made.mean())


def interval_coverage(
    predicted: NDArray[np.float64], true: NDArray[np.float64], expected_errors: NDArray[np.float64]
) -> tuple[float, ...]:
    """Share of pixels whose truth is within the interval that holds it with each probability of `LEVELS`. All [N]."""
    away = np.abs(np.log(predicted) - np.log(true)) / expected_errors
    return tuple(float(np.mean(away <= width)) for width in -np.log(1 - CONFIDENCE_LEVELS))


def _depth_errors(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[float, ...]:
    """The numbers of `NAMES` over positive depths [N]."""
    difference = predicted - true
    logarithm = np.log(predicted) - np.log(true)
    ratio = np.maximum(predicted / true, true / predicted)
    return (
        float(np.mean(np.abs(difference) / true)),
        float(np.mean(difference**2 / true)),
        float(np.sqrt(np.mean(difference**2))),
        float(np.sqrt(np.mean(logarithm**2))),
        float(100.0 * np.std(logarithm)),
        *(float(np.mean(ratio < 1.25**power)) for power in (1, 2, 3)),
    )
