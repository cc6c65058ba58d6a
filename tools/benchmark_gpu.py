"""Training throughput of a GPU: python tools/benchmark_gpu.py RECIPE [key=value ...] [--batch-sizes 1,8,32].

Whole steps (forward, balance, backward, clipping, AdamW, moving average) on the recipe's first batch, which stays on
the device: what the network costs, without its data; in float32 (TF32 convolutions, torch's default) and in bfloat16.
Each the median of 20 turns between synchronisations, after a warm-up. Prints a table in Markdown, and where it was
made.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from perception import recipe as recipes
from perception.bench.step_cost import make_training_step
from perception.data.loader import make_train_loader
from perception.engine.precision import Precision, move_to_device
from perception.mtl.balancers import build_balancer
from perception.runs import describe_hardware

NUM_ROUNDS, WARM_UP = 20, 5
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description="How many images a second a GPU trains on.")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--batch-sizes", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32])
    parsed = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmark_gpu: no GPU here. perception bench measures on a CPU.")
    recipe, device = recipes.load(parsed.recipe, parsed.overrides), torch.device("cuda")
    tasks, mixture = tuple(recipe.tasks), recipes.build_mixture(recipe)
    height, width = recipe.data.size
    print(
        f"{describe_hardware()}; torch {torch.__version__}; recipe {recipe.name}, "
        f"{height} x {width}, {len(tasks)} tasks\n"
    )
    print("| images a second | " + " | ".join(f"batches of {n}" for n in parsed.batch_sizes) + " |")
    print("|---|" + "---:|" * len(parsed.batch_sizes))
    for precision in PRECISIONS:
        model = recipes.build_model(recipe).train().to(device)
        row = []
        for count in parsed.batch_sizes:
            batch = move_to_device(next(iter(make_train_loader(mixture, tasks, count, 1))), device)
            balancer = build_balancer(recipe.balance, tasks, recipe.seed)
            row.append(count / median_seconds(make_training_step(model, balancer, batch, precision)))
        print(f"| {precision} | {' | '.join(f'{value:,.0f}' for value in row)} |", flush=True)


def median_seconds(step: Callable[[], object]) -> float:
    """Of one call: the median."""
    times = []
    for turn in range(WARM_UP + NUM_ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        if turn >= WARM_UP:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
