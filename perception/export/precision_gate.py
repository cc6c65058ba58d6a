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

from perception.model import MultiTaskModel
from perception.runtime.session import ModelRunner, make_runner
from perception.types import PerceptionError, TaskSpec

NUM_ROUNDS = 9


class PrecisionRejected(PerceptionError):
    """A reduced precision costs a task too much, or gains no speed. The message holds the table."""


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """The reduced graph, what the manifest says of it, and the table for people."""

    model: ModelProto
    manifest_fields: dict[str, Any]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PrecisionSettings:
    """How a graph is reduced and judged.

    calibration_batches: letterboxed batches uint8 RGB [B, 3, H, W] of ``size``, for the ranges of activations and for
    timing
    evaluate: metrics ("<task>/<name>" -> number) of a function that runs the network, on the validation images
    budget:   what each task's metric may lose, absolutely: 0.01 is a point
    min_speedup: how many times as fast as float32 it must be; None = at all (fp16 is also for other machines than this)
    symmetric: of int8: as TensorRT reads it, and not as processors like it
    """

    precision: Literal["fp16", "int8"]
    calibration_batches: Sequence[NDArray[np.uint8]]
    evaluate: Callable[[ModelRunner], Mapping[str, float]]
    budget: float = 0.01
    min_speedup: float | None = 1.0
    symmetric: bool = False
    report_progress: Callable[[str], None] = field(default=lambda text: None)


class PrecisionGate:
    """Measures reduced graphs against the float32 one."""

    def __init__(
        self, settings: PrecisionSettings, network: MultiTaskModel, core: ModelProto, specs: Mapping[str, TaskSpec]
    ) -> None:
        self.settings, self.core = settings, core
        self.score_metrics = {
            name: (network.tasks[name].main_metric, network.tasks[name].main_metric_sign) for name in specs
        }
        self.fp32_scores = self._evaluate_graph(core)

    def _evaluate_graph(self, model: ModelProto) -> dict[str, float]:
        found = self.settings.evaluate(make_runner(model.SerializeToString()))
        return {name: float(found.get(f"{name}/{score}", np.nan)) for name, (score, _) in self.score_metrics.items()}

    def score_drops(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Task -> how much worse its metric is, absolutely: NaN where nothing is labeled, inf where it was lost."""
        drops = {name: sign * (self.fp32_scores[name] - scores[name]) for name, (_, sign) in self.score_metrics.items()}
        lost = [name for name in drops if np.isnan(scores[name]) and not np.isnan(self.fp32_scores[name])]
        return drops | dict.fromkeys(lost, np.inf)

    def tasks_over_budget(self, scores: Mapping[str, float]) -> list[str]:
        """The tasks that lose more than the budget, the worst first."""
        drops = self.score_drops(scores)
        return sorted((n for n in drops if drops[n] > self.settings.budget), key=lambda n: -drops[n])

    def evaluate(self, model: ModelProto) -> dict[str, float]:
        """Each task's metric, with the reduced graph. Raises PerceptionError where it gives no numbers."""
        try:
            return self._evaluate_graph(model)
        except PerceptionError as error:
            raise PerceptionError(f"In {self.settings.precision}: {error}") from error

    def decide(self, model: ModelProto, scores: Mapping[str, float], notes: Sequence[str]) -> PrecisionReport:
        """The table and the manifest's facts. Raises Refused where a task loses too much, or no speed is gained."""
        before_seconds, after_seconds, ratio = time_interleaved(
            [make_runner(one.SerializeToString()) for one in (self.core, model)],
            self.settings.calibration_batches[0][:1],
        )
        precision, budget = self.settings.precision, self.settings.budget
        drops = self.score_drops(scores)
        table = [f"{'metric':28s} {'fp32':>8s} {precision:>8s} {'drop':>8s}   budget {budget:g}"]
        for name, (score, _) in self.score_metrics.items():
            numbers = self.fp32_scores[name], scores[name], drops[name]
            table.append(f"{f'{name}/{score}':28s} " + " ".join(f"{number:8.4f}" for number in numbers))
        size = len(model.SerializeToString()) / len(self.core.SerializeToString())
        table.append(
            f"one thread, one image: fp32 {before_seconds * 1e3:.1f} ms, {precision} {after_seconds * 1e3:.1f} ms of "
            f"processor time: {ratio:.2f} times as fast; {size:.2f} of the size"
        )
        table += notes
        if unjudged := [name for name in self.score_metrics if np.isnan(self.fp32_scores[name])]:
            table.append(f"not judged, for no validation image is labeled: {', '.join(unjudged)}")
        problems = [
            f"{name} loses {drops[name]:.4f}, budget {budget:g}"
            if np.isfinite(drops[name])
            else f"{name}/{self.score_metrics[name][0]} is no number any more"
            for name in self.tasks_over_budget(scores)
        ]
        if self.settings.min_speedup is not None and ratio <= self.settings.min_speedup:
            problems.append(
                f"it is {ratio:.2f} times as fast as fp32 on this processor, wanted more than "
                f"{self.settings.min_speedup:g}"
            )
        if problems:
            raise PrecisionRejected(
                "\n".join([f"{precision} does not pay: {'; '.join(problems)}. Export fp32.", *table])
            )
        quality = {
            name: {
                "metric": score,
                "before": _round_or_none(self.fp32_scores[name]),
                "after": _round_or_none(scores[name]),
            }
            for name, (score, _) in self.score_metrics.items()
        }
        speed = {"before": round(before_seconds, 6), "after": round(after_seconds, 6), "ratio": round(ratio, 3)}
        return PrecisionReport(model, {"precision": precision, "quality": quality, "speed": speed}, tuple(table))


def _round_or_none(number: float) -> float | None:
    return None if np.isnan(number) else round(number, 6)


def time_interleaved(
    runs: Sequence[ModelRunner], images: NDArray[np.uint8], rounds: int = NUM_ROUNDS
) -> tuple[float, float, float]:
    """Processor seconds of two functions, medians, and how many times the second is as fast as the first.

    They take turns, and the ratio is the median of each turn's: what else the machine does hits both.
    """
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for run, kept in zip(runs, seconds, strict=True):
            begun = time.process_time()
            run(images)
            if turn:  # the first warms up
                kept.append(time.process_time() - begun)
    ratio = statistics.median(first / max(second, 1e-9) for first, second in zip(*seconds, strict=True))
    return statistics.median(seconds[0]), statistics.median(seconds[1]), ratio
