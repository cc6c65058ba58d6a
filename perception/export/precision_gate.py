"""Less precision than float32: what it does to every task and to the speed, and whether that pays."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from perception.runtime.session import Run, runner
from perception.types import PerceptionError, TaskSpec

TURNS = 9


class Refused(PerceptionError):
    """A reduced precision costs a task too much, or gains no speed. The message holds the table."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The reduced graph, what the manifest says of it, and the table for people."""

    model: ModelProto
    facts: dict[str, Any]
    table: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reduction:
    """How a graph is reduced and judged.

    pictures: letterboxed batches uint8 RGB [B, 3, H, W] of ``size``, for the ranges of activations and for timing
    evaluate: metrics ("<task>/<name>" -> number) of a function that runs the network, on the validation pictures
    budget:   what each task's metric may lose, absolutely: 0.01 is a point
    speed_up: how many times as fast as float32 it must be; None = at all (fp16 is also for other machines than this)
    symmetric: of int8: as TensorRT reads it, and not as processors like it
    """

    precision: Literal["fp16", "int8"]
    pictures: Sequence[NDArray[np.uint8]]
    evaluate: Callable[[Run], Mapping[str, float]]
    budget: float = 0.01
    speed_up: float | None = 1.0
    symmetric: bool = False
    say: Callable[[str], None] = field(default=lambda text: None)


class Judge:
    """Measures reduced graphs against the float32 one."""

    def __init__(self, reduction: Reduction, network: Any, core: ModelProto, specs: Mapping[str, TaskSpec]) -> None:
        self.reduction, self.core = reduction, core
        self.scores = {name: (network.tasks[name].score, network.tasks[name].score_sign) for name in specs}
        self.before = self._metrics(core)

    def _metrics(self, model: ModelProto) -> dict[str, float]:
        found = self.reduction.evaluate(runner(model.SerializeToString()))
        return {name: float(found.get(f"{name}/{score}", np.nan)) for name, (score, _) in self.scores.items()}

    def drops(self, after: Mapping[str, float]) -> dict[str, float]:
        """Task -> how much worse its metric is, absolutely: NaN where nothing is labelled, inf where it was lost."""
        drops = {name: sign * (self.before[name] - after[name]) for name, (_, sign) in self.scores.items()}
        lost = [name for name in drops if np.isnan(after[name]) and not np.isnan(self.before[name])]
        return drops | dict.fromkeys(lost, np.inf)

    def over_budget(self, after: Mapping[str, float]) -> list[str]:
        """The tasks that lose more than the budget, the worst first."""
        drops = self.drops(after)
        return sorted((n for n in drops if drops[n] > self.reduction.budget), key=lambda n: -drops[n])

    def measure(self, model: ModelProto) -> dict[str, float]:
        """Each task's metric, with the reduced graph. Raises PerceptionError where it gives no numbers."""
        try:
            return self._metrics(model)
        except PerceptionError as error:
            raise PerceptionError(f"In {self.reduction.precision}: {error}") from error

    def outcome(self, model: ModelProto, after: Mapping[str, float], notes: Sequence[str]) -> Outcome:
        """The table and the manifest's facts. Raises Refused where a task loses too much, or no speed is gained."""
        before_seconds, after_seconds, ratio = in_turns(
            [runner(one.SerializeToString()) for one in (self.core, model)], self.reduction.pictures[0][:1]
        )
        precision, budget = self.reduction.precision, self.reduction.budget
        drops = self.drops(after)
        table = [f"{'metric':28s} {'fp32':>8s} {precision:>8s} {'drop':>8s}   budget {budget:g}"]
        for name, (score, _) in self.scores.items():
            numbers = self.before[name], after[name], drops[name]
            table.append(f"{f'{name}/{score}':28s} " + " ".join(f"{number:8.4f}" for number in numbers))
        size = len(model.SerializeToString()) / len(self.core.SerializeToString())
        table.append(
            f"one thread, one picture: fp32 {before_seconds * 1e3:.1f} ms, {precision} {after_seconds * 1e3:.1f} ms of "
            f"processor time: {ratio:.2f} times as fast; {size:.2f} of the size"
        )
        table += notes
        if unjudged := [name for name in self.scores if np.isnan(self.before[name])]:
            table.append(f"not judged, for no validation picture is labelled: {', '.join(unjudged)}")
        problems = [
            f"{name} loses {drops[name]:.4f}, budget {budget:g}"
            if np.isfinite(drops[name])
            else f"{name}/{self.scores[name][0]} is no number any more"
            for name in self.over_budget(after)
        ]
        if self.reduction.speed_up is not None and ratio <= self.reduction.speed_up:
            problems.append(
                f"it is {ratio:.2f} times as fast as fp32 on this processor, wanted more than "
                f"{self.reduction.speed_up:g}"
            )
        if problems:
            raise Refused("\n".join([f"{precision} does not pay: {'; '.join(problems)}. Export fp32.", *table]))
        quality = {
            name: {"metric": score, "before": _or_none(self.before[name]), "after": _or_none(after[name])}
            for name, (score, _) in self.scores.items()
        }
        speed = {"before": round(before_seconds, 6), "after": round(after_seconds, 6), "ratio": round(ratio, 3)}
        return Outcome(model, {"precision": precision, "quality": quality, "speed": speed}, tuple(table))


def _or_none(number: float) -> float | None:
    return None if np.isnan(number) else round(number, 6)


def in_turns(runs: Sequence[Run], images: NDArray[np.uint8], turns: int = TURNS) -> tuple[float, float, float]:
    """Processor seconds of two functions, medians, and how many times the second is as fast as the first.

    They take turns, and the ratio is the median of each turn's: what else the machine does hits both.
    """
    seconds: list[list[float]] = [[], []]
    for turn in range(turns + 1):
        for run, kept in zip(runs, seconds, strict=True):
            begun = time.process_time()
            run(images)
            if turn:  # the first warms up
                kept.append(time.process_time() - begun)
    ratio = statistics.median(first / max(second, 1e-9) for first, second in zip(*seconds, strict=True))
    return statistics.median(seconds[0]), statistics.median(seconds[1]), ratio
