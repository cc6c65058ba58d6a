"""Which tasks are labeled on the same images, and what follows for comparing their gradients."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Protocol


class TaskLabels(Protocol):
    """A reader's config. tasks: those that it labels."""

    @property
    def tasks(self) -> Collection[str]: ...


def find_unpaired_tasks(sources: Sequence[Sequence[TaskLabels]], tasks: Collection[str]) -> list[tuple[str, str]]:
    """The pairs of tasks that no source labels together. sources: the readers of each source"""
    labelled = [{task for label in labels for task in label.tasks} for labels in sources]
    return [pair for pair in itertools.combinations(tasks, 2) if not any(set(pair) <= own for own in labelled)]


def explain_incomparable_gradients(
    space: str | None, sources: Sequence[Sequence[TaskLabels]], tasks: Collection[str]
) -> str:
    """Why gradients of some tasks cannot be compared in this ``balance.space``; "" where they can.

    An image that labels one task has no gradient of the other at its features. So at the features the gradients of two
    tasks that no image labels together are orthogonal, whatever they do to the weights.
    """
    apart = find_unpaired_tasks(sources, tasks) if space == "features" else []
    if not apart:
        return ""
    named = ", ".join(f"{one} and {other}" for one, other in apart)
    return (
        f"balance.space is 'features', but no training source labels {named} on the same images: the cosines of their "
        "gradients are zero there whether they conflict or not. Take balance.space=late."
    )
