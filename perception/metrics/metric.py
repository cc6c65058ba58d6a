"""What every metric is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from perception.types import Annotation

Record = TypeVar("Record")

LOWER_IS_BETTER = frozenset(
    (
        *(name + ending for name in ("abs_rel", "sq_rel", "rmse", "rmse_log", "silog") for ending in ("", "_aligned")),
        *("ause", "miscalibration", "ece", "nll"),
    )
)
"""Names of the numbers of `Metric.compute` that are errors. Every other number is better when it is higher."""


class Metric(Protocol):
    """Accumulates predictions against targets, image by image, both in source pixels as numpy.

    The state is kept per image id, so that the result does not depend on the order, the batch size or the number of
    ranks, and an image that a distributed sampler delivers twice counts once.
    """

    protocol: str
    """One sentence that names how the numbers are defined; printed beside them."""

    def update(self, image_id: str, prediction: Annotation, target: Annotation) -> None:
        """Account for one labeled image. Raises ValueError naming ``image_id`` where a number is NaN."""
        ...

    def state(self) -> dict:
        """Picklable state of this process; states of several ranks are united with `merge`."""
        ...

    def merge(self, states: list[dict]) -> None:
        """Replace the own state by the union of ``states``."""
        ...

    def compute(self) -> dict[str, float]:
        """Name -> number, for example ``{"ap": 0.41, "ap50": 0.62}``. NaN where nothing was labeled."""
        ...

    def compute_per_class(self) -> dict[str, dict[str, float]]:
        """Per class: class name -> {column: number}; empty where a metric has no classes.

        A class that is absent from the truth is there with NaN and a count of 0: no mean contains it.
        """
        ...

    def score_image(self, prediction: Annotation, target: Annotation) -> float:
        """A number of one image alone, higher is better, 1 is perfect: ranks best and worst images in the report.

        NaN where nothing of the image is labeled, or where there is nothing to see.
        """
        ...


class PerImageRecords(Generic[Record]):
    """The state that all metrics share: one small record per image id, read in the order of the ids."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def state(self) -> dict:
        """Image id -> its record."""
        return dict(self._records)

    def merge(self, states: list[dict]) -> None:
        """Replace the own records by the union of ``states``; of an image that several hold, the last one counts."""
        self._records = {id: record for state in states for id, record in state.items()}

    def _sorted_records(self) -> list[Record]:
        return [self._records[id] for id in sorted(self._records)]


def nanmean(values: Iterable[float]) -> float:
    """The mean of the numbers that are not NaN; NaN where there are none."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
