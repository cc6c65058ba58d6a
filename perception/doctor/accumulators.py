"""Accumulated results for one source: sums in bounded memory, updated image by image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.data.dataset import DataSource
from perception.doctor.data_plan import PlannedSource
from perception.doctor.findings import Finding, Issue, IssueCounter, sanitize_text
from perception.doctor.image_examination import ImageJob, ImageReport
from perception.doctor.statistics import TaskStatistics, merge_statistics

_SIZES = 200
UNREADABLE_CODES = (
    "missing_image", "damaged_image", "refused_image", "crashed", "timeout", "out_of_memory",
)  # fmt: skip
"""Issue codes of images that training cannot use."""


@dataclass
class LabelPreview:
    """An image of the report: its name, its JPEGs, and its labels in words."""

    name: str
    jpegs: list[bytes]
    caption: str = ""


@dataclass
class SourceState:
    """One source of the recipe and its accumulated results.

    Attributes:
        planned: the source as the recipe configures it.
        source: the opened source; None if it could not be opened.
        source_index: position among the examined sources; -1 = not opened.
        unreadable_tasks: tasks labeled by readers that could not be opened.
        labeled_classes: task -> bool [C], the classes its readers label; None where a reader does not declare them.
        findings: findings from opening the source.
        log_messages: messages logged by its readers.
        issues: issues with single images.
        num_examined: images examined so far.
        aborted: the examination stopped after too many failures.
        image_sizes: (height, width) -> number of images.
        traits: trait of an image file -> number of images.
        statistics: task -> statistics of its labels.
        num_cameras: images with intrinsics.
        focal_lengths: (fx, fy) in pixels -> number of images.
        num_duplicates: byte-identical copies within the source.
        num_unlisted: image files in the source's folders that no source lists.
        previews: example images for the report.
        selected_indices: indices of the images to examine, N of them. The arrays below have one row for each.
        readable: bool [N], rows that are filled because the image could be read.
        textureless: bool [N], images with too little texture for a perceptual hash.
        digests: uint64 [N, 2], hash of the file.
        hash_bits: uint64 [N, 8], perceptual hash.
        thumbnails: uint8 [N, 64], gray 8 x 8 thumbnails.
    """

    planned: PlannedSource
    source: DataSource | None = None
    source_index: int = -1
    unreadable_tasks: set[str] = field(default_factory=set)
    labeled_classes: dict[str, NDArray[np.bool_] | None] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    log_messages: list[str] = field(default_factory=list)
    issues: IssueCounter = field(default_factory=IssueCounter)
    num_examined: int = 0
    aborted: bool = False
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    traits: Counter[str] = field(default_factory=Counter)
    statistics: dict[str, TaskStatistics] = field(default_factory=dict)
    num_cameras: int = 0
    focal_lengths: Counter[tuple[float, float]] = field(default_factory=Counter)
    num_duplicates: int = 0
    num_unlisted: int = 0
    previews: list[LabelPreview] = field(default_factory=list)
    selected_indices: list[int] = field(default_factory=list)
    readable: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    textureless: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    digests: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    hash_bits: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 8), np.uint64))
    thumbnails: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 64), np.uint8))

    @property
    def where(self) -> str:
        """The source's name in findings."""
        return self.planned.where

    @property
    def split(self) -> str:
        """Either "train" or "validation"."""
        return self.planned.split

    @property
    def num_images(self) -> int:
        """Number of images in the source; 0 if it could not be opened."""
        return 0 if self.source is None else len(self.source)

    def select_images(self, max_images: int | None) -> None:
        """Select the images to examine: all, or ``max_images`` of them, evenly spread."""
        count = self.num_images if max_images is None else min(max_images, self.num_images)
        self.selected_indices = [i * self.num_images // count for i in range(count)]
        self.readable, self.textureless = np.zeros(count, bool), np.zeros(count, bool)
        self.digests, self.hash_bits = np.zeros((count, 2), np.uint64), np.zeros((count, 8), np.uint64)
        self.thumbnails = np.zeros((count, 64), np.uint8)

    def image_name(self, index: int) -> str:
        """Return an image's path relative to the data root, in printable form."""
        if self.source is None:
            return ""
        return sanitize_text(self.source.image_id(index).removeprefix(f"{self.source.name}/"), 200)

    def add_issue(self, code: str, text: str, index: int) -> None:
        """Count an issue with one image."""
        self.issues.add(Issue(code, text), (self.source_index, index))

    def add_report(self, job: ImageJob, report: ImageReport) -> None:
        """Add the results for one image."""
        self.num_examined += 1
        for trouble in report.issues:
            self.issues.add(trouble, (self.source_index, job.image_index))
        for task, statistics in report.statistics.items():
            if task in self.statistics and type(self.statistics[task]) is type(statistics):
                merge_statistics(self.statistics[task], statistics)
            else:
                self.statistics[task] = statistics
        if report.jpegs:
            self.previews.append(LabelPreview(self.image_name(job.image_index), report.jpegs, report.caption))
        if report.properties is None:
            return
        self._count_bounded(self.image_sizes, report.properties.size)
        for trait in report.properties.traits:
            self._count_bounded(self.traits, trait)
        if report.camera is not None:
            self.num_cameras += 1
            self._count_bounded(self.focal_lengths, (report.camera.fx, report.camera.fy))
        look = report.properties.perceptual_hash
        row = job.row
        self.readable[row], self.textureless[row] = True, look.textureless
        self.digests[row] = np.frombuffer(report.properties.digest, np.uint64)
        self.hash_bits[row], self.thumbnails[row] = look.hash_bits, look.thumbnail

    @staticmethod
    def _count_bounded(counter: Counter[Any], key: object) -> None:
        if key in counter or len(counter) < _SIZES:
            counter[key] += 1
