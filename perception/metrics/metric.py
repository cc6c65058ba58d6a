"""What every metric is."""

from __future__ import annotations

from typing import Protocol

from perception.types import Annotation


class Metric(Protocol):
    """Accumulates predictions against targets, picture by picture, both in source pixels as numpy.

    The state is kept per picture id, so that the result does not depend on the order, the batch size or the number of
    ranks, and a picture that a distributed sampler delivers twice counts once.
    """

    def update(self, id: str, prediction: Annotation, target: Annotation) -> None:
        """Account for one labelled picture. Raises ValueError naming ``id`` where a score is NaN."""
        ...

    def state(self) -> dict:
        """Picklable state of this process; states of several ranks are united with `merge`."""
        ...

    def merge(self, states: list[dict]) -> None:
        """Replace the own state by the union of ``states``."""
        ...

    def compute(self) -> dict[str, float]:
        """Name -> number, for example ``{"ap": 0.41, "ap50": 0.62}``. NaN where nothing was labelled."""
        ...

    def table(self) -> dict[str, dict[str, float]]:
        """Per class: class name -> {column: number}; empty where a metric has no classes."""
        ...

    def quality(self, prediction: Annotation, target: Annotation) -> float:
        """A number of one picture alone, higher is better: ranks best and worst pictures in the report."""
        ...
