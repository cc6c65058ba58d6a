"""Whether labels teach: how many of the labelled images of each task and source have anything that its loss counts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perception.data.formats.depth_maps import likely_unit
from perception.types import Annotation, Batch, DataError, DenseMap, ImageLabel, Instances, TaskSpec

PIXELS, OBJECTS = 16, 200
"""Labelled images of a task and source without a pixel, and without an object, after which that is told."""

LEAST = 4
"""Images from which on it is certain enough to be an error."""

_THIN = 8
"""Every so many pixels are looked at first, both ways: nearly always there is something."""


class Teaching:
    """Counts over all ranks, by the sums that a step makes anyway, on the batch as it is before it goes to a device.

    counts: "<task>/<source>" -> [labelled images, of them with something that counts]; filled in place, and saved
    sources: names of all sources, the same on every rank
    """

    def __init__(self, tasks: Mapping[str, Any], sources: Collection[str], counts: dict[str, list[int]]) -> None:
        self._tasks = tasks
        self._sources = sorted(sources) or [""]
        self._counts = counts
        self._why: dict[str, str] = {}

    def look(self, batch: Batch, chosen: Collection[str] | None) -> dict[str, int]:
        """This rank's images of a batch, to be summed over the ranks: "labelled <task>/<source>" and "taught ...".

        chosen: the tasks that the step trains; None = all
        """
        names = [name for name in self._tasks if chosen is None or name in chosen]
        found = {f"{kind} {name}/{source}": 0 for name in names for source in self._sources for kind in _KINDS}
        for name in names:
            task = self._tasks[name]
            for source, target in zip(batch.sources, batch.annotations[name], strict=True):
                if target is None:
                    continue
                key = f"{name}/{source if source in self._sources else self._sources[0]}"
                found[f"labelled {key}"] += 1
                if teaches(target, task.spec):
                    found[f"taught {key}"] += 1
                elif isinstance(target, DenseMap):
                    self._why[key] = _why(target, task.spec)
        return found

    def note(self, joint: Mapping[str, int]) -> tuple[dict[str, float], list[str]]:
        """Account for the summed `look` of a step: "seen/<task>", the part of the images that teach it (with boxes an
        image without one does, too), and sentences about what has not taught anything so far."""
        seen: dict[str, float] = {}
        sentences = []
        for flag, labelled in joint.items():
            kind, _, key = flag.partition(" ")
            if kind != _KINDS[0]:
                continue
            taught = joint[f"{_KINDS[1]} {key}"]
            name = key.partition("/")[0]
            boxes = self._tasks[name].spec.shape == "instances"
            seen[f"seen/{name}"] = seen.get(f"seen/{name}", 0) + (labelled if boxes else taught) / joint["pictures"]
            before = self._counts.setdefault(key, [0, 0])
            after = [before[0] + labelled, before[1] + taught]
            limit = OBJECTS if boxes else PIXELS
            if not after[1] and before[0] < limit <= after[0]:
                sentences.append(f"{self._sentence([key], after[0])} Look with: perception doctor.")
            before[:] = after
        return seen, sentences

    def require(self) -> None:
        """Raise DataError where a task has had labelled images and none of them taught it anything."""
        for name, task in self._tasks.items():
            keys = [key for key, (labelled, _) in self._counts.items() if labelled and key.partition("/")[0] == name]
            labelled, taught = (sum(self._counts[key][k] for key in keys) for k in range(2))
            if labelled >= LEAST and not taught and task.spec.shape != "instances":
                raise DataError(f"{self._sentence(keys, labelled)} Nothing was learned. Look with: perception doctor.")

    def _sentence(self, keys: Sequence[str], images: int) -> str:
        name = keys[0].partition("/")[0]
        sources = ", ".join(filter(None, (key.partition("/")[2] for key in keys)))
        what = {"instances": "an object", "dense": "a pixel", "label": "a class"}[self._tasks[name].spec.shape]
        where = f" of {sources}" if sources else ""
        why = next((f" The last one: {self._why[key]}" for key in keys if key in self._why), "")
        return f"None of the {images} images{where} that label '{name}' so far has {what} that counts.{why}"


_KINDS = ("labelled", "taught")


def teaches(target: Annotation, spec: TaskSpec) -> bool:
    """Whether a target has an object, a pixel or a class that the loss of its task counts."""
    match target:
        case Instances():
            counted = torch.ones(len(target.labels), dtype=torch.bool)
            if target.ignore is not None:
                counted &= ~torch.as_tensor(target.ignore)
            if target.classes is not None:
                counted &= torch.as_tensor(target.classes)[torch.as_tensor(target.labels).clamp(min=0)]
            return bool(counted.any())
        case DenseMap():
            return any(bool(counted.any()) for counted in _counted(target, spec))
        case ImageLabel():
            return target.classes is None or bool(torch.as_tensor(target.classes).any())
    return True


def _counted(target: DenseMap, spec: TaskSpec) -> Iterator[Tensor]:
    """Which pixels count: of a few, then of all."""
    for step in (_THIN, 1):
        valid = torch.as_tensor(target.valid)[..., ::step, ::step]
        values = torch.as_tensor(target.values)[..., ::step, ::step]
        if spec.limits is not None:
            valid = valid & (values >= spec.limits[0]) & (values <= spec.limits[1])
        elif target.classes is not None:
            says = torch.tensor([len(each) < len(spec.classes) for each in target.classes.sets])
            valid = valid & says[torch.where(valid, values, 0).long()]
        yield valid


def _why(target: DenseMap, spec: TaskSpec) -> str:
    """What is there instead, as the doctor says it."""
    known = torch.as_tensor(target.values)[torch.as_tensor(target.valid)]
    if spec.limits is None:
        return "all its pixels are void." if not len(known) else "its classes may be any."
    if not len(known):
        return "no pixel of it has a distance: correct scale and max of the reader."
    low, high = spec.limits
    median = float(known.float().median())
    advice = ""
    if found := likely_unit(median, spec.limits):
        advice = (
            f" Were they {found[1]} ({found[0]:g} m), the median would be {median * found[0]:.3g} m: correct scale."
        )
    return f"median {median:,.4g} m; limits {low:g} to {high:g} m.{advice}"
