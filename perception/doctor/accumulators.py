"""What was found of one source so far: sums in bounded memory, filled picture by picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.data.dataset import Source
from perception.doctor.data_plan import PlannedSource
from perception.doctor.examine import Job, Report
from perception.doctor.findings import Finding, Trouble, Troubles, plain
from perception.doctor.statistics import Statistics, merge

_SIZES = 200
UNREADABLE = (
    "missing_picture", "damaged_picture", "refused_picture", "crashed", "too_slow", "out_of_memory",
)  # fmt: skip
"""Troubles of pictures that training could not use."""


@dataclass
class Sample:
    """A picture of the page: its name, JPEGs, and its labels in words."""

    name: str
    tiles: list[bytes]
    words: str = ""


@dataclass
class SourceState:
    """One source of the recipe and all that is known of it.

    position:  of the source among those examined; -1 = could not be opened
    lost:      tasks that a reader which could not be opened would have labelled
    labelled:  task -> which classes its readers label, None where a reader does not say
    said:      what its readers logged
    chosen:    indices of the pictures that are looked at; the arrays have a row for each of them
    known:     rows that are filled: the picture could be read
    """

    planned: PlannedSource
    source: Source | None = None
    position: int = -1
    lost: set[str] = field(default_factory=set)
    labelled: dict[str, NDArray[np.bool_] | None] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    troubles: Troubles = field(default_factory=Troubles)
    looked: int = 0
    given_up: bool = False
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    traits: Counter[str] = field(default_factory=Counter)
    tasks: dict[str, Statistics] = field(default_factory=dict)
    cameras: int = 0
    focals: Counter[tuple[float, float]] = field(default_factory=Counter)
    duplicates: int = 0
    beside: int = 0
    samples: list[Sample] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    known: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    flat: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    digests: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    bits: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 8), np.uint64))
    miniatures: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 64), np.uint8))

    @property
    def where(self) -> str:
        """Its name in findings."""
        return self.planned.where

    @property
    def part(self) -> str:
        """train or validation."""
        return self.planned.part

    @property
    def pictures(self) -> int:
        """How many it has."""
        return 0 if self.source is None else len(self.source)

    def choose(self, quick: int | None) -> None:
        """Settle which pictures are looked at: all, or ``quick`` of them evenly spread."""
        count = self.pictures if quick is None else min(quick, self.pictures)
        self.chosen = [i * self.pictures // count for i in range(count)]
        self.known, self.flat = np.zeros(count, bool), np.zeros(count, bool)
        self.digests, self.bits = np.zeros((count, 2), np.uint64), np.zeros((count, 8), np.uint64)
        self.miniatures = np.zeros((count, 64), np.uint8)

    def name(self, index: int) -> str:
        """A picture's path from the data root, printable."""
        if self.source is None:
            return ""
        return plain(self.source.id(index).removeprefix(f"{self.source.name}/"), 200)

    def trouble(self, kind: str, text: str, index: int) -> None:
        """Count a trouble with a picture."""
        self.troubles.add(Trouble(kind, text), (self.position, index))

    def add(self, job: Job, report: Report) -> None:
        """Add what was found of one picture."""
        self.looked += 1
        for trouble in report.troubles:
            self.troubles.add(trouble, (self.position, job.index))
        for task, statistics in report.tasks.items():
            if task in self.tasks and type(self.tasks[task]) is type(statistics):
                merge(self.tasks[task], statistics)
            else:
                self.tasks[task] = statistics
        if report.tiles:
            self.samples.append(Sample(self.name(job.index), report.tiles, report.words))
        if report.facts is None:
            return
        self._count(self.sizes, report.facts.size)
        for trait in report.facts.traits:
            self._count(self.traits, trait)
        if report.camera is not None:
            self.cameras += 1
            self._count(self.focals, (report.camera.fx, report.camera.fy))
        look = report.facts.look
        row = job.row
        self.known[row], self.flat[row] = True, look.flat
        self.digests[row] = np.frombuffer(report.facts.digest, np.uint64)
        self.bits[row], self.miniatures[row] = look.bits, look.miniature

    @staticmethod
    def _count(counter: Counter[Any], key: Any) -> None:
        if key in counter or len(counter) < _SIZES:
            counter[key] += 1
