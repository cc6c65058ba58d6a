"""What a network costs, and where: each stage and head, batches, threads, memory; several forms of it in turns.

Processor time stands beside wall time: on a machine that does other work only the first means something. Forms take
turns, stage by stage, so that whatever the machine does meanwhile hits all of them. Denormal numbers count as zero.
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

from perception.ops.image import letterbox_frame, warp_image

PICTURE = (720, 1280)
"""(height, width) of the camera picture whose letterbox is timed."""

WHOLE = "everything"

Stage = tuple[str, Callable[[], Any]]
"""Name, and what it does with what the stages before it left."""


class Form(Protocol):
    """A network in one form: torch, compiled, an ONNX file..."""

    name: str
    inside: bool
    """The graph letterboxes: the letterbox is one of its stages, ``placing``."""

    def stages(self, images: NDArray[np.uint8]) -> list[Stage]:
        """The stages of a letterboxed batch [B, 3, H, W], in their order; the last is `WHOLE`, all of them at once."""
        ...

    def set_threads(self, threads: int) -> None:
        """How many threads one call may use from now on."""
        ...

    def memory(self, images: NDArray[np.uint8]) -> float | None:
        """Peak megabytes of a process that runs it, beyond an empty one; None = unknown."""
        ...


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians in seconds. wall_99: the wall time that one call in a hundred exceeds."""

    cpu: float
    wall: float
    wall_99: float


@dataclass
class Bench:
    """What was measured.

    costs:      form -> stage -> cost of one batch on one thread
    throughput: form -> (batch, threads) -> pictures per wall second, and per processor second
    memory:     form -> peak megabytes beyond an empty process; None = unknown
    ratios:     form -> how many times as fast as the first form, by processor time
    notes:      form -> what it is, or why it is not there
    """

    size: tuple[int, int]
    batch: int
    turns: int
    costs: dict[str, dict[str, Cost]] = field(default_factory=dict)
    throughput: dict[str, dict[tuple[int, int], tuple[float, float]]] = field(default_factory=dict)
    memory: dict[str, float | None] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    machine: str = ""

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; seconds."""
        return {
            "machine": self.machine,
            "size": list(self.size),
            "batch": self.batch,
            "turns": self.turns,
            "costs": {f: {s: dataclasses.asdict(c) for s, c in stages.items()} for f, stages in self.costs.items()},
            "speed_against_first": self.ratios,
            "throughput": {
                form: [
                    {"batch": b, "threads": t, "pictures_per_second": wall, "pictures_per_processor_second": cpu}
                    for (b, t), (wall, cpu) in rates.items()
                ]
                for form, rates in self.throughput.items()
            },
            "memory_mb": self.memory,
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """The tables."""
        return [*self._head(), *self._stages(), "", *self._throughput(), *self._rest()]

    def _head(self) -> list[str]:
        height, width = self.size
        return [
            self.machine,
            f"{self.batch} x {height}x{width}, one thread, medians of {self.turns} turns: ms of processor time (wall)",
        ]

    def _stages(self) -> list[str]:
        names = list(dict.fromkeys(name for stages in self.costs.values() for name in stages))
        names = [name for name in names if name != WHOLE] + [WHOLE]
        wide = max(map(len, names)) + 1
        table = [" " * wide + "".join(f"{form:>22s}" for form in self.costs)]
        for name in names:
            cells = [_cell(stages.get(name)) for stages in self.costs.values()]
            table.append(f"{name:{wide}s}" + "".join(f"{cell:>22s}" for cell in cells))
        if len(self.costs) > 1:
            first = next(iter(self.costs))
            cells = [f"{self.ratios[form]:.2f} x" if form in self.ratios else "" for form in self.costs]
            table.append(f"{'speed':{wide}s}" + "".join(f"{cell:>22s}" for cell in cells) + f"   (as fast as {first})")
        return table

    def _throughput(self) -> list[str]:
        cases = list(dict.fromkeys(case for rates in self.throughput.values() for case in rates))
        if not cases:
            return []
        table = [f"{'pictures per second (per processor second)':44s}" + "".join(f"{f:>22s}" for f in self.throughput)]
        for batch, threads in cases:
            rates = [found.get((batch, threads)) for found in self.throughput.values()]
            cells = [f"{rate[0]:.1f} ({rate[1]:.1f})" if rate else "" for rate in rates]
            name = f"  batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
            table.append(f"{name:44s}" + "".join(f"{cell:>22s}" for cell in cells))
        return table

    def _rest(self) -> list[str]:
        found = [f"peak memory of {form}: {mb:.0f} MB" for form, mb in self.memory.items() if mb is not None]
        return [*found, *(f"{form}: {note}" for form, note in self.notes.items())]


def _cell(cost: Cost | None) -> str:
    return f"{cost.cpu * 1e3:.1f} ({cost.wall * 1e3:.1f})" if cost else "-"


def measure(
    forms: Sequence[Form],
    size: tuple[int, int],
    *,
    batch: int = 1,
    turns: int = 15,
    batches: Sequence[int] = (1, 4),
    threads: Sequence[int] = (1,),
    images: NDArray[np.uint8] | None = None,
) -> Bench:
    """Measure every form. images: [B, 3, H, W] to show; noise by default.

    The first turn warms up and is not counted.
    """
    generator = np.random.default_rng(0)
    shown = images if images is not None else generator.integers(0, 256, (batch, 3, *size), np.uint8)
    result = Bench(size, batch, turns)
    for form in forms:
        form.set_threads(1)
    plans = {form.name: [*([] if form.inside else [_placing(size, batch)]), *form.stages(shown)] for form in forms}
    times = _in_turns(plans, turns)
    for form in forms:
        result.costs[form.name] = {stage: _cost(times[form.name, stage]) for stage, _ in plans[form.name]}
    first = times[forms[0].name, WHOLE]
    for form in forms[1:]:
        pairs = zip(first, times[form.name, WHOLE], strict=True)
        result.ratios[form.name] = statistics.median(a / max(b, 1e-9) for (a, _), (b, _) in pairs)
    _measure_throughput(result, forms, size, batches, threads, generator)
    for form in forms:
        form.set_threads(1)
        result.memory[form.name] = form.memory(shown)
    return result


def _placing(size: tuple[int, int], batch: int) -> Stage:
    """The letterbox of camera pictures: the same for every form that does not hold it."""
    picture = np.random.default_rng(0).integers(0, 256, (*PICTURE, 3), np.uint8)
    frame = letterbox_frame(PICTURE, size)
    name = f"letterbox of {PICTURE[0]}x{PICTURE[1]}"
    return name, lambda: [np.ascontiguousarray(warp_image(picture, frame).transpose(2, 0, 1)) for _ in range(batch)]


Times = list[tuple[float, float]]
"""(processor seconds, wall seconds) of each turn."""


def _in_turns(plans: Mapping[str, Sequence[Stage]], turns: int) -> dict[tuple[str, str], Times]:
    found: dict[tuple[str, str], Times] = {(form, name): [] for form, stages in plans.items() for name, _ in stages}
    for turn in range(turns + 1):
        for form, stages in plans.items():
            for name, run in stages:
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                spent = time.process_time() - cpu, time.perf_counter() - wall
                if turn:
                    found[form, name].append(spent)
    return found


def _cost(times: Times) -> Cost:
    cpu, wall = zip(*times, strict=True)
    return Cost(statistics.median(cpu), statistics.median(wall), float(np.quantile(wall, 0.99)))


def _measure_throughput(
    result: Bench,
    forms: Sequence[Form],
    size: tuple[int, int],
    batches: Sequence[int],
    threads: Sequence[int],
    generator: np.random.Generator,
) -> None:
    for count in threads:
        for batch in batches:
            images = generator.integers(0, 256, (batch, 3, *size), np.uint8)
            plans: dict[str, list[Stage]] = {}
            for form in forms:
                form.set_threads(count)
                plans[form.name] = [form.stages(images)[-1]]
            for (form, _), times in _in_turns(plans, max(3, result.turns // 3)).items():
                cost = _cost(times)
                rates = result.throughput.setdefault(form, {})
                rates[batch, count] = batch / cost.wall, batch / max(cost.cpu, 1e-9)
