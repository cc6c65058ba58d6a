"""Errors of depth maps, as predicted and after median alignment."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from perception.metrics.metric import Records, mean
from perception.types import DenseMap

NAMES = ("abs_rel", "sq_rel", "rmse", "rmse_log", "silog", "delta1", "delta2", "delta3")


class DepthMetric(Records[tuple[float, ...]]):
    """The depth errors of Eigen et al. (2014) and KITTI: per picture over its valid pixels, then the mean of pictures.

    * A pixel counts where the truth is valid and within ``limits``. Predictions are clipped to ``limits``, and one that
      is not valid counts as the lower limit, so that leaving pixels out does not pay.
    * The numbers without an ending are metric: nothing is aligned. Those with ``_aligned`` are taken after the
      prediction is multiplied, per picture, by median(truth) / median(prediction) (Zhou et al. 2017), and say how good
      the shape is where the scale is wrong.
    * A picture without a pixel that counts is in no mean.

    limits: smallest and largest distance that is evaluated, metres
    """

    def __init__(self, limits: tuple[float, float]) -> None:
        super().__init__()
        if not 0 < limits[0] < limits[1] < math.inf:
            raise ValueError(f"Depth limits {limits} are wrong. Expected 0 < smallest < largest, in metres.")
        self.limits = float(limits[0]), float(limits[1])
        self.protocol = (
            f"Per picture over valid pixels from {limits[0]:g} to {limits[1]:g} m, then the mean over pictures; "
            "no alignment, and beside it (aligned) with each picture's median brought to the truth's."
        )

    def update(self, id: str, prediction: DenseMap, target: DenseMap) -> None:
        """Account for one picture. Raises ValueError with ``id`` where sizes differ or a valid depth is not finite."""
        self._records[id] = self._errors(id, prediction, target)

    def compute(self) -> dict[str, float]:
        """abs_rel, sq_rel (m), rmse (m), rmse_log, silog (x 100, as KITTI), delta1 to delta3 (share of pixels within
        a factor of 1.25, 1.25^2, 1.25^3), and the same with ``_aligned``."""
        columns = zip(*self._ordered(), strict=True) if self._records else ((),) * (2 * len(NAMES))
        return dict(zip((*NAMES, *(f"{name}_aligned" for name in NAMES)), map(mean, columns), strict=True))

    def table(self) -> dict[str, dict[str, float]]:
        """Empty: depth has no classes."""
        return {}

    def quality(self, prediction: DenseMap, target: DenseMap) -> float:
        """1 minus abs_rel of this picture alone."""
        return 1.0 - self._errors("this picture", prediction, target)[0]

    def _errors(self, id: str, prediction: DenseMap, target: DenseMap) -> tuple[float, ...]:
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
        true = truth[counted].astype(np.float64)
        if not true.size:
            return (math.nan,) * (2 * len(NAMES))
        predicted = np.where(known, values, self.limits[0])[counted].astype(np.float64)
        predicted = np.clip(predicted, *self.limits)
        aligned = np.clip(predicted * (np.median(true) / np.median(predicted)), *self.limits)
        return (*_compare(predicted, true), *_compare(aligned, true))


def _compare(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[float, ...]:
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
