"""The interface of the metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from perception.types import Annotation

AnyAnnotation = TypeVar("AnyAnnotation", bound=Annotation, contravariant=True)
Record = TypeVar("Record")

LOWER_IS_BETTER = frozenset(
    (
        *(name + ending for name in ("abs_rel", "sq_rel", "rmse", "rmse_log", "silog") for ending in ("", "_aligned")),
        *("ause", "miscalibration", "ece", "nll"),
    )
)
"""Names of the values of `Metric.compute` that are errors. All other values are better when they are higher."""


class Metric(Protocol[AnyAnnotation]):
    """Accumulates predictions and targets, image by image, both in source pixels as numpy.

    The state is kept per image id. So the result does not depend on the order, the batch size or the number of ranks,
    and an image that a distributed sampler repeats counts once.
    """

    protocol: str
    """One sentence that defines the metrics, printed next to the values."""

    def update(self, image_id: str, prediction: AnyAnnotation, target: AnyAnnotation) -> None:
        """Add one labeled image.

        Raises:
            ValueError: a number is NaN. The message names ``image_id``.
        """
        ...

    def state(self) -> dict:
        """Return the picklable state of this process. `merge` combines the states of several ranks."""
        ...

    def merge(self, states: list[dict]) -> None:
        """Replace the own state by the union of ``states``."""
        ...

    def compute(self) -> dict[str, float]:
        """Return name -> value, for example ``{"ap": 0.41, "ap50": 0.62}``. NaN where nothing was labeled."""
        ...

    def compute_per_class(self) -> dict[str, dict[str, float]]:
        """Return class name -> {column: value}; empty if the metric has no classes.

        A class without true instances has NaN and a count of 0, and is excluded from the means.
        """
        ...

    def score_image(self, prediction: AnyAnnotation, target: AnyAnnotation) -> float:
        """Return a score of a single image, higher is better, 1 is perfect. The report ranks images by it.

        NaN if nothing in the image is labeled, or if it is empty.
        """
        ...


class PerImageRecords(Generic[Record]):
    """The state that all metrics share: one small record per image id, read in the order of the ids."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def state(self) -> dict:
        """Return image id -> record."""
        return dict(self._records)

    def merge(self, states: list[dict]) -> None:
        """Replace the own records by the union of ``states``. For duplicate images the last record counts."""
        self._records = {id: record for state in states for id, record in state.items()}

    def _sorted_records(self) -> list[Record]:
        return [self._records[id] for id in sorted(self._records)]


def nanmean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
