"""The command `bench`: measures the speed of a network (bench MODEL) or of data loading (bench data CONFIG)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from perception.cli.arguments import (
    Commands,
    add_command,
    add_overrides,
    add_tasks,
    parse_count,
    parse_names,
    parse_size,
    print_lines,
)

if TYPE_CHECKING:
    from perception.bench.latency import Variant

BuildVariants: TypeAlias = "Callable[[Sequence[str], dict[str, str], str], list[Variant]]"
"""(backends, notes, name prefix) -> variants to measure. Unavailable ones are explained in the notes."""

BACKENDS = ("torch", "compiled", "onnx", "int8")


def add_commands(commands: Commands) -> None:
    """Add the command `bench`."""
    command = add_command(
        commands,
        "bench",
        _bench,
        "measure the latency of each stage of a network, or the data loading speed of a recipe",
    )
    command.usage = "perception bench MODEL [options]\n       perception bench data CONFIG [key=value ...] [options]"
    command.add_argument(
        "model", metavar="MODEL", help="run folder or .onnx file; or the word data, to measure the loading of CONFIG"
    )
    command.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="YAML recipe, after the word data")
    add_overrides(command)
    network = command.add_argument_group("bench MODEL")
    add_tasks(network)
    network.add_argument(
        "--against",
        type=Path,
        metavar="OTHER",
        help="another run folder or .onnx file to compare with, measured in alternation",
    )
    network.add_argument(
        "--size", type=parse_size, metavar="HxW", help="input size (default: that of the recipe or file)"
    )
    network.add_argument(
        "--batch-size",
        type=parse_count,
        default=1,
        metavar="N",
        help="batch size of the stage measurements (default: 1)",
    )
    network.add_argument(
        "--batch-sizes",
        type=parse_counts,
        default=[1, 4],
        metavar="N,N",
        help="batch sizes of the throughput measurement (default: 1,4)",
    )
    network.add_argument(
        "--threads",
        type=parse_counts,
        default=[1],
        metavar="N,N",
        help="thread counts of the throughput measurement (default: 1)",
    )
    network.add_argument(
        "--rounds", type=parse_count, default=15, metavar="N", help="measurements per stage (default: 15)"
    )
    network.add_argument(
        "--backends",
        type=parse_names,
        default=list(BACKENDS),
        metavar="A,B",
        help=f"backends of a run folder: {', '.join(BACKENDS)} (default: all)",
    )
    network.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    data = command.add_argument_group("bench data")
    data.add_argument("--seconds", type=float, default=20, help="duration of the measurement (default: 20)")
    data.add_argument("--workers", type=int, help="loader processes (default: the recipe's data.workers)")


def parse_counts(text: str) -> list[int]:
    """Parse integers of at least 1, separated by commas."""
    return [parse_count(part) for part in parse_names(text)]


def _bench(parsed: argparse.Namespace) -> int:
    from perception.types import ConfigError

    if parsed.model == "data" and parsed.config is not None:
        return _bench_data(parsed)
    if parsed.model == "data" or parsed.config is not None or parsed.overrides:
        raise ConfigError(
            f"'{parsed.model}' with {parsed.config or 'no recipe'} cannot be measured. "
            "Expected: perception bench MODEL, or perception bench data CONFIG"
        )
    return _bench_model(parsed)


def _bench_data(parsed: argparse.Namespace) -> int:
    from perception import recipe as recipes
    from perception.bench.data import measure_loading
    from perception.types import ConfigError

    if not 0 < parsed.seconds <= 3600 or not 0 <= (parsed.workers or 0) <= 256:
        raise ConfigError(
            f"--seconds {parsed.seconds} --workers {parsed.workers}: expected 0 to 3600 seconds and 0 to 256 processes."
        )
    recipe = recipes.load(parsed.config, parsed.overrides)
    workers = recipe.data.workers if parsed.workers is None else parsed.workers
    mixture = recipes.build_mixture(recipe)
    print(measure_loading(mixture, list(recipe.tasks), recipe.train.batch_size, workers, parsed.seconds))  # noqa: T201
    return 0


def _bench_model(parsed: argparse.Namespace) -> int:
    from perception.bench import latency
    from perception.runs import describe_hardware
    from perception.types import ConfigError

    if unknown := [name for name in parsed.backends if name not in BACKENDS]:
        raise ConfigError(f"--backends {', '.join(unknown)}: unknown. Known: {', '.join(BACKENDS)}.")
    notes: dict[str, str] = {}
    shown, prepare = _open_model(Path(parsed.model), parsed.tasks, parsed.size)
    opened = [(prepare, parsed.backends, "")]
    if parsed.against is not None:
        other, prepare_other = _open_model(parsed.against, parsed.tasks, shown)
        if other != shown:
            sizes = ["x".join(map(str, pair)) for pair in (other, shown)]
            raise ConfigError(
                f"{parsed.against} only accepts input size {sizes[0]}, but {parsed.model} is measured at {sizes[1]}. "
                f"Export one of them again, or use --size {sizes[0]} if the other model accepts it."
            )
        opened.append((prepare_other, parsed.backends[:1], "against "))
    forms = [form for prepare, kinds, prefix in opened for form in prepare(kinds, notes, prefix)]
    result = latency.measure_latency(
        forms,
        shown,
        batch_size=parsed.batch_size,
        rounds=parsed.rounds,
        batch_sizes=parsed.batch_sizes,
        thread_counts=parsed.threads,
    )
    result.notes, result.hardware = notes, describe_hardware()
    print_lines(result.format_lines())
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(result.to_json(), indent=1) + "\n", "utf-8")
    return 0


def _open_model(
    path: Path, tasks: Sequence[str] | None, input_size: tuple[int, int] | None
) -> tuple[tuple[int, int], BuildVariants]:
    """The input size of a run folder or file, and the function that builds its variants (may take minutes)."""
    from perception import runs
    from perception.bench.backends import build_variants
    from perception.bench.variants import load_variant

    if path.suffix == ".onnx":
        form, rules = load_variant(path.name, path, tasks)

        def named(kinds: Sequence[str], notes: dict[str, str], prefix: str) -> list[Variant]:
            form.name = prefix + path.name
            return [form]

        return input_size if input_size and rules.dynamic else rules.size, named
    recipe, model = runs.open_inference_model(path, tasks)
    shown = input_size or recipe.data.size

    def prepared(kinds: Sequence[str], notes: dict[str, str], prefix: str) -> list[Variant]:
        slow = "; compiling it takes minutes" if "compiled" in kinds else ""
        print(f"Preparing {path}{slow}", file=sys.stderr)  # noqa: T201
        return build_variants(path, model, shown, kinds, notes, prefix)

    return shown, prepared
