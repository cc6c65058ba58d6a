"""Usable labels: counts, per task and source, the labeled images that contribute to the task's loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from perception.data.formats.depth_maps import guess_unit
from perception.engine.callbacks import Callback, TrainRun
from perception.engine.step import StepResult
from perception.types import Annotation, Batch, DataError, DenseMap, ImageLabel, Instances, TaskSpec

WARN_AFTER_MAPS, WARN_AFTER_INSTANCES = 16, 200
"""Number of labeled images of a task and source without a usable pixel (or object) after which a warning follows."""

MIN_IMAGES = 4
"""Fewest labeled images for an error."""

_PIXEL_STRIDE = 8
"""Only every n-th row and column is checked first, because nearly always one of these pixels counts."""


class HasSpec(Protocol):
    """A task, as far as its specification."""

    spec: TaskSpec


class LabelCheck(Callback):
    """Counts usable labels over all ranks, on batches before they move to a device.

    Args:
        tasks: name -> task.
        sources: names of all sources, the same on every rank.
        counts: "<task>/<source>" -> [labeled images, those with usable labels]; updated in place, and saved.
    """

    def __init__(self, tasks: Mapping[str, HasSpec], sources: Collection[str], counts: dict[str, list[int]]) -> None:
        self._tasks = tasks
        self._sources = sorted(sources) or [""]
        self._counts = counts
        self._reasons: dict[str, str] = {}

    def before_step(self, run: TrainRun, batch: Batch, tasks: Collection[str] | None) -> Mapping[str, int]:
        """Count the labels of the batch."""
        return self.count_labels(batch, tasks)

    def after_step(self, run: TrainRun, result: StepResult) -> None:
        """Add the counts of all ranks, and warn about sources without usable labels."""
        fractions, sentences = self.update(result.flags)
        for sentence in sentences:
            run.log.write_warning(run.state.step, sentence)
        if not result.problem:
            run.state.add_to_window(fractions)

    def before_evaluation(self, run: TrainRun) -> None:
        """Before the first evaluation, raise DataError if a task had labeled images, but none with usable labels."""
        if not run.state.task_scores:
            self.require_usable_labels()

    def count_labels(self, batch: Batch, active_tasks: Collection[str] | None) -> dict[str, int]:
        """Count this rank's images of a batch: "labeled <task>/<source>" and "usable <task>/<source>" (usable labels).

        Args:
            batch: the batch, on the CPU.
            active_tasks: tasks that the step trains; None means all.

        Returns:
            Counts to sum over the ranks.
        """
        names = [name for name in self._tasks if active_tasks is None or name in active_tasks]
        found = {f"{kind} {name}/{source}": 0 for name in names for source in self._sources for kind in _COUNT_KINDS}
        for name in names:
            task = self._tasks[name]
            for source, target in zip(batch.sources, batch.annotations[name], strict=True):
                if target is None:
                    continue
                key = f"{name}/{source if source in self._sources else self._sources[0]}"
                found[f"labeled {key}"] += 1
                if has_usable_labels(target, task.spec):
                    found[f"usable {key}"] += 1
                elif isinstance(target, DenseMap):
                    self._reasons[key] = _explain_unusable_map(target, task.spec)
        return found

    def update(self, summed_counts: Mapping[str, int]) -> tuple[dict[str, float], list[str]]:
        """Add the summed `count_labels` of a step.

        Returns:
            "labeled_fraction/<task>" -> fraction of images with usable labels (for boxes, images without objects count,
            too), and warnings about sources without usable labels so far.
        """
        seen: dict[str, float] = {}
        sentences = []
        for flag, labelled in summed_counts.items():
            kind, _, key = flag.partition(" ")
            if kind != _COUNT_KINDS[0]:
                continue
            taught = summed_counts[f"{_COUNT_KINDS[1]} {key}"]
            name = key.partition("/")[0]
            boxes = self._tasks[name].spec.annotation_type == "instances"
            seen[f"labeled_fraction/{name}"] = (
                seen.get(f"labeled_fraction/{name}", 0) + (labelled if boxes else taught) / summed_counts["images"]
            )
            before = self._counts.setdefault(key, [0, 0])
            after = [before[0] + labelled, before[1] + taught]
            limit = WARN_AFTER_INSTANCES if boxes else WARN_AFTER_MAPS
            if not after[1] and before[0] < limit <= after[0]:
                sentences.append(f"{self._format_warning([key], after[0])} Check with: perception doctor.")
            before[:] = after
        return seen, sentences

    def require_usable_labels(self) -> None:
        """Raise DataError if a task had labeled images, but none with usable labels."""
        for name, task in self._tasks.items():
            keys = [key for key, (labelled, _) in self._counts.items() if labelled and key.partition("/")[0] == name]
            labelled, taught = (sum(self._counts[key][k] for key in keys) for k in range(2))
            if labelled >= MIN_IMAGES and not taught and task.spec.annotation_type != "instances":
                raise DataError(
                    f"{self._format_warning(keys, labelled)} Nothing was learned. Check with: perception doctor."
                )

    def _format_warning(self, keys: Sequence[str], images: int) -> str:
        name = keys[0].partition("/")[0]
        sources = ", ".join(filter(None, (key.partition("/")[2] for key in keys)))
        what = {"instances": "an object", "dense": "a pixel", "label": "a class"}[
            self._tasks[name].spec.annotation_type
        ]
        where = f" of {sources}" if sources else ""
        why = next((f" The last image: {self._reasons[key]}" for key in keys if key in self._reasons), "")
        return f"None of the {images} images{where} labeled for '{name}' so far has {what} that the loss counts.{why}"


_COUNT_KINDS = ("labeled", "usable")


def has_usable_labels(target: Annotation, spec: TaskSpec) -> bool:
    """Whether a target has an object, a pixel or a class that the task's loss counts."""
    match target:
        case Instances():
            counted = torch.ones(len(target.labels), dtype=torch.bool)
            if target.ignore is not None:
                counted &= ~torch.as_tensor(target.ignore)
            if target.labeled_classes is not None:
                counted &= torch.as_tensor(target.labeled_classes)[torch.as_tensor(target.labels).clamp(min=0)]
            return bool(counted.any())
        case DenseMap():
            return any(bool(counted.any()) for counted in _find_counted_pixels(target, spec))
        case ImageLabel():
            return target.labeled_classes is None or bool(torch.as_tensor(target.labeled_classes).any())
    return True


def _find_counted_pixels(target: DenseMap, spec: TaskSpec) -> Iterator[Tensor]:
    """Masks of the pixels that count: first on a coarse grid, then on all pixels."""
    for step in (_PIXEL_STRIDE, 1):
        valid = torch.as_tensor(target.valid)[..., ::step, ::step]
        values = torch.as_tensor(target.values)[..., ::step, ::step]
        if spec.limits is not None:
            valid = valid & (values >= spec.limits[0]) & (values <= spec.limits[1])
        elif target.label_space is not None:
            says = torch.tensor([len(each) < len(spec.classes) for each in target.label_space.class_sets])
            valid = valid & says[torch.where(valid, values, 0).long()]
        yield valid


def _explain_unusable_map(target: DenseMap, spec: TaskSpec) -> str:
    """Explain why no pixel counts, in the doctor's words."""
    known = torch.as_tensor(target.values)[torch.as_tensor(target.valid)]
    if spec.limits is None:
        return "all its pixels are ignored." if not len(known) else "each of its pixels may be any class."
    if not len(known):
        return "no pixel has a depth value. Correct scale and max of the reader."
    low, high = spec.limits
    median = float(known.float().median())
    advice = ""
    if found := guess_unit(median, spec.limits):
        advice = f" If the unit is {found[1]} ({found[0]:g} m), the median is {median * found[0]:.3g} m. Correct scale."
    return f"median {median:,.4g} m; limits {low:g} to {high:g} m.{advice}"
