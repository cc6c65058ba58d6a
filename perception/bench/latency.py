"""Latency of a network by stage and head, throughput by batch size and threads, and memory, for several variants.

Both CPU time and wall time are measured. On a machine with other load only the CPU time is meaningful. Variants are
measured in interleaved rounds, so that other load affects all of them equally. Denormal numbers are flushed to zero.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from perception.ops.image import compute_letterbox, warp_image

CAMERA_IMAGE_SIZE = (720, 1280)
"""(height, width) of the camera image for timing the letterbox."""

TOTAL = "total"

Stage = tuple[str, Callable[[], Any]]
"""Name, and a function that processes the results of the previous stages."""


class Variant(Protocol):
    """A network in one form, for example torch, compiled or an ONNX file.

    Attributes:
        name: name in the report.
        embeds_preprocessing: the graph includes the letterbox as its stage ``letterbox``.
    """

    name: str
    embeds_preprocessing: bool

    def build_stages(self, images: NDArray[np.uint8]) -> list[Stage]:
        """Build the stages for a letterboxed batch [B, 3, H, W], in order. The last is `TOTAL`: all of them at once."""
        ...

    def set_threads(self, threads: int) -> None:
        """Set the number of threads per call."""
        ...

    def measure_memory(self, images: NDArray[np.uint8]) -> float | None:
        """Measure the peak megabytes of a process that runs it, minus an empty process; None = unknown."""
        ...


@dataclass(frozen=True, slots=True)
class StageCost:
    """Cost of a stage in seconds.

    Attributes:
        cpu: median CPU time.
        wall: median wall time.
        wall_p99: 99th percentile of the wall time.
    """

    cpu: float
    wall: float
    wall_p99: float


@dataclass
class LatencyReport:
    """The measurements.

    Attributes:
        size: (height, width) of the input.
        batch_size: images per batch for ``costs``.
        rounds: number of measured rounds.
        costs: variant -> stage -> cost of one batch on one thread.
        throughput: variant -> (batch size, threads) -> images per wall second, and per CPU second.
        memory: variant -> peak megabytes minus an empty process; None = unknown.
        speedups: variant -> speedup over the first variant, by CPU time.
        notes: variant -> what it is, or why it is missing.
        hardware: description of the machine.
    """

    size: tuple[int, int]
    batch_size: int
    rounds: int
    costs: dict[str, dict[str, StageCost]] = field(default_factory=dict)
    throughput: dict[str, dict[tuple[int, int], tuple[float, float]]] = field(default_factory=dict)
    memory: dict[str, float | None] = field(default_factory=dict)
    speedups: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    hardware: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return all measurements as plain data, in seconds."""
        return {
            "machine": self.hardware,
            "size": list(self.size),
            "batch_size": self.batch_size,
            "rounds": self.rounds,
            "costs": {f: {s: dataclasses.asdict(c) for s, c in stages.items()} for f, stages in self.costs.items()},
            "speedups": self.speedups,
            "throughput": {
                form: [
                    {"batch_size": b, "threads": t, "images_per_second": wall, "images_per_cpu_second": cpu}
                    for (b, t), (wall, cpu) in rates.items()
                ]
                for form, rates in self.throughput.items()
            },
            "memory_mb": self.memory,
            "notes": self.notes,
        }

    def format_lines(self) -> list[str]:
        """Return the lines of the tables."""
        return [*self._header_lines(), *self._stage_lines(), "", *self._throughput_lines(), *self._note_lines()]

    def _header_lines(self) -> list[str]:
        height, width = self.size
        return [
            self.hardware,
            f"{self.batch_size} x {height}x{width}, one thread, medians of {self.rounds} rounds: ms of CPU time (wall)",
        ]

    def _stage_lines(self) -> list[str]:
        names = list(dict.fromkeys(name for stages in self.costs.values() for name in stages))
        names = [name for name in names if name != TOTAL] + [TOTAL]
        wide = max(map(len, names)) + 1
        table = [" " * wide + "".join(f"{form:>22s}" for form in self.costs)]
        for name in names:
            cells = [_format_cell(stages.get(name)) for stages in self.costs.values()]
            table.append(f"{name:{wide}s}" + "".join(f"{cell:>22s}" for cell in cells))
        if len(self.costs) > 1:
            first = next(iter(self.costs))
            cells = [f"{self.speedups[form]:.2f} x" if form in self.speedups else "" for form in self.costs]
            table.append(f"{'speed':{wide}s}" + "".join(f"{cell:>22s}" for cell in cells) + f"   (relative to {first})")
        return table

    def _throughput_lines(self) -> list[str]:
        cases = list(dict.fromkeys(case for rates in self.throughput.values() for case in rates))
        if not cases:
            return []
        table = [f"{'images per second (per CPU second)':44s}" + "".join(f"{f:>22s}" for f in self.throughput)]
        for batch, threads in cases:
            rates = [found.get((batch, threads)) for found in self.throughput.values()]
            cells = [f"{rate[0]:.1f} ({rate[1]:.1f})" if rate else "" for rate in rates]
            name = f"  batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
            table.append(f"{name:44s}" + "".join(f"{cell:>22s}" for cell in cells))
        return table

    def _note_lines(self) -> list[str]:
        found = [f"peak memory of {form}: {mb:.0f} MB" for form, mb in self.memory.items() if mb is not None]
        return [*found, *(f"{form}: {note}" for form, note in self.notes.items())]


def _format_cell(cost: StageCost | None) -> str:
    return f"{cost.cpu * 1e3:.1f} ({cost.wall * 1e3:.1f})" if cost else "-"


def measure_latency(
    variants: Sequence[Variant],
    size: tuple[int, int],
    *,
    batch_size: int = 1,
    rounds: int = 15,
    batch_sizes: Sequence[int] = (1, 4),
    thread_counts: Sequence[int] = (1,),
    images: NDArray[np.uint8] | None = None,
) -> LatencyReport:
    """Measure all variants. The first round is a warm-up and is not counted.

    Args:
        variants: the variants to measure.
        size: (height, width) of the input.
        batch_size: images per batch for the stages.
        rounds: number of measured rounds.
        batch_sizes: batch sizes for the throughput.
        thread_counts: numbers of threads for the throughput.
        images: uint8 [B, 3, H, W] for the stages; None = noise.

    Returns:
        The measurements.
    """
    generator = np.random.default_rng(0)
    shown = images if images is not None else generator.integers(0, 256, (batch_size, 3, *size), np.uint8)
    result = LatencyReport(size, batch_size, rounds)
    for form in variants:
        form.set_threads(1)
    plans = {
        form.name: [
            *([] if form.embeds_preprocessing else [_letterbox_stage(size, batch_size)]),
            *form.build_stages(shown),
        ]
        for form in variants
    }
    times = _time_interleaved(plans, rounds)
    for form in variants:
        result.costs[form.name] = {stage: _summarize_times(times[form.name, stage]) for stage, _ in plans[form.name]}
    first = times[variants[0].name, TOTAL]
    for form in variants[1:]:
        pairs = zip(first, times[form.name, TOTAL], strict=True)
        result.speedups[form.name] = statistics.median(a / max(b, 1e-9) for (a, _), (b, _) in pairs)
    _measure_throughput(result, variants, size, batch_sizes, thread_counts, generator)
    for form in variants:
        form.set_threads(1)
        result.memory[form.name] = form.measure_memory(shown)
    return result


def _letterbox_stage(size: tuple[int, int], batch_size: int) -> Stage:
    """The letterbox of camera images, for variants whose graph does not include it."""
    picture = np.random.default_rng(0).integers(0, 256, (*CAMERA_IMAGE_SIZE, 3), np.uint8)
    frame = compute_letterbox(CAMERA_IMAGE_SIZE, size)
    name = f"letterbox of {CAMERA_IMAGE_SIZE[0]}x{CAMERA_IMAGE_SIZE[1]}"
    return name, lambda: [
        np.ascontiguousarray(warp_image(picture, frame).transpose(2, 0, 1)) for _ in range(batch_size)
    ]


Times = list[tuple[float, float]]
"""(CPU seconds, wall seconds) of each round."""


def _time_interleaved(stages_by_variant: Mapping[str, Sequence[Stage]], rounds: int) -> dict[tuple[str, str], Times]:
    found: dict[tuple[str, str], Times] = {
        (form, name): [] for form, stages in stages_by_variant.items() for name, _ in stages
    }
    for turn in range(rounds + 1):
        for form, stages in stages_by_variant.items():
            for name, run in stages:
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                spent = time.process_time() - cpu, time.perf_counter() - wall
                if turn:
                    found[form, name].append(spent)
    return found


def _summarize_times(times: Times) -> StageCost:
    cpu, wall = zip(*times, strict=True)
    return StageCost(statistics.median(cpu), statistics.median(wall), float(np.quantile(wall, 0.99)))


def _measure_throughput(
    result: LatencyReport,
    variants: Sequence[Variant],
    size: tuple[int, int],
    batch_sizes: Sequence[int],
    thread_counts: Sequence[int],
    generator: np.random.Generator,
) -> None:
    for count in thread_counts:
        for batch in batch_sizes:
            images = generator.integers(0, 256, (batch, 3, *size), np.uint8)
            plans: dict[str, list[Stage]] = {}
            for form in variants:
                form.set_threads(count)
                plans[form.name] = [form.build_stages(images)[-1]]
            for (form, _), times in _time_interleaved(plans, max(3, result.rounds // 3)).items():
                cost = _summarize_times(times)
                rates = result.throughput.setdefault(form, {})
                rates[batch, count] = batch / cost.wall, batch / max(cost.cpu, 1e-9)
