"""Tasks that are labeled on the same images, as required for comparing their gradients."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Protocol


class TaskLabels(Protocol):
    """The part of a reader's config that names its tasks."""

    @property
    def tasks(self) -> Collection[str]:
        """Tasks that the reader labels."""
        ...


def find_unpaired_tasks(sources: Sequence[Sequence[TaskLabels]], tasks: Collection[str]) -> list[tuple[str, str]]:
    """Find the pairs of tasks that no source labels together. ``sources`` has the readers of each source."""
    labelled = [{task for label in labels for task in label.tasks} for labels in sources]
    return [pair for pair in itertools.combinations(tasks, 2) if not any(set(pair) <= own for own in labelled)]


def explain_incomparable_gradients(
    space: str | None, sources: Sequence[Sequence[TaskLabels]], tasks: Collection[str]
) -> str:
    """Explain why gradients of some tasks cannot be compared in this ``balance.space``; "" if they can.

    An image that labels only one task has no gradient of the other task at its features. If no image labels both
    tasks, their feature gradients are therefore orthogonal, whatever their effect on the weights.
    """
    apart = find_unpaired_tasks(sources, tasks) if space == "features" else []
    if not apart:
        return ""
    named = ", ".join(f"{one} and {other}" for one, other in apart)
    return (
        f"balance.space is 'features', but no training source labels {named} on the same images: the cosines of their "
        "gradients are zero there, with or without a conflict. Use balance.space=late."
    )
