"""Metrics of depth maps, without and with median alignment, and of the predicted errors."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perception.metrics.metric import PerImageRecords, nanmean
from perception.types import DenseMap

METRIC_NAMES = ("abs_rel", "sq_rel", "rmse", "rmse_log", "silog", "delta1", "delta2", "delta3")
CONFIDENCE_LEVELS = np.arange(0.1, 0.95, 0.1)
"""Confidence levels of the prediction intervals whose coverage is measured."""


class _DepthRecord(NamedTuple):
    """Metrics of one image.

    Attributes:
        errors: values of `METRIC_NAMES`, then the same aligned.
        ause: empty if no error is predicted.
        coverage: at `CONFIDENCE_LEVELS`; empty if no error is predicted.
    """

    errors: tuple[float, ...]
    ause: tuple[float, ...] = ()
    coverage: tuple[float, ...] = ()


class DepthMetric(PerImageRecords[_DepthRecord]):
    """The depth errors of Eigen et al. (2014) and KITTI: per image over its valid pixels, then the mean over images.

    * A pixel counts if the target is valid and within ``limits``. Predictions are clipped to ``limits``. An invalid
      prediction counts as the lower limit, so leaving pixels out does not improve the score.
    * The values without a suffix are metric: nothing is aligned. For those with ``_aligned``, the prediction is
      multiplied, per image, by median(truth) / median(prediction) (Zhou et al. 2017). They measure the shape when the
      scale is wrong.
    * An image without a counted pixel is excluded from the means.
    * If predictions include their expected error, two values measure its quality. ``ause``: the area between two
      sparsification curves of abs_rel, as a share of abs_rel (Ilg et al. 2018). One curve removes the pixels with the
      largest expected errors first, the other those with the largest actual errors. 0 = the ranking is right.
      ``miscalibration``: the mean absolute difference between the nominal coverage 10, 20 ... 90 % of prediction
      intervals and the share of pixels whose target is inside them (Kuleshov et al. 2018): 0 = the scale is right.

    Args:
        limits: smallest and largest distance that is evaluated, metres.
    """

    def __init__(self, limits: tuple[float, float]) -> None:
        super().__init__()
        if not 0 < limits[0] < limits[1] < math.inf:
            raise ValueError(f"Depth limits are {limits}. Expected 0 < smallest < largest, in metres.")
        self.limits = float(limits[0]), float(limits[1])
        self.protocol = (
            f"Per image over valid pixels from {limits[0]:g} to {limits[1]:g} m, then the mean over images; "
            "without alignment, and (aligned) with each image's median scaled to that of the truth."
        )

    def update(self, image_id: str, prediction: DenseMap, target: DenseMap) -> None:
        """Add one image.

        Raises:
            ValueError: sizes differ, or a valid depth is not finite. The message names ``image_id``.
        """
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
        """Return the metrics by name.

        They are abs_rel, sq_rel (m), rmse (m), rmse_log, silog (x 100, as KITTI), delta1 to delta3 (share of pixels
        within a factor of 1.25, 1.25^2, 1.25^3), and the same with ``_aligned``; ause and miscalibration if predictions
        include their error.
        """
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
        """Return an empty dict: depth has no classes."""
        return {}

    def score_image(self, prediction: DenseMap, target: DenseMap) -> float:
        """Return 1 minus abs_rel of this image."""
        predicted, true, _ = self._select_pixels("this image", prediction, target)
        return 1.0 - self._compute_errors(predicted, true)[0]

    def _select_pixels(
        self, id: str, prediction: DenseMap, target: DenseMap
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
        """Return predicted and true depths of the counted pixels [N], and their expected errors [N]."""
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
        """Return the values of `METRIC_NAMES`, then the same aligned; NaN without a pixel."""
        if not true.size:
            return (math.nan,) * (2 * len(METRIC_NAMES))
        aligned = np.clip(predicted * (np.median(true) / np.median(predicted)), *self.limits)
        return (*_depth_errors(predicted, true), *_depth_errors(aligned, true))


def ause(predicted: NDArray[np.float64], true: NDArray[np.float64], expected_errors: NDArray[np.float64]) -> float:
    """Return the area under the sparsification error curve of abs_rel, divided by abs_rel (Ilg et al. 2018).

    All arrays are [N], N > 0. 0 = the expected errors rank the actual ones correctly; also 0 if there is no error.
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
    """Return the share of pixels whose target is inside the interval of each level of `CONFIDENCE_LEVELS`. All [N]."""
    away = np.abs(np.log(predicted) - np.log(true)) / expected_errors
    return tuple(float(np.mean(away <= width)) for width in -np.log(1 - CONFIDENCE_LEVELS))


def _depth_errors(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the values of `METRIC_NAMES` over positive depths [N]."""
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
