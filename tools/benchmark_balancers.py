"""Trains every balancer by one recipe, several seeds each, and tells what it was worth: make bench-balance.

    python tools/benchmark_balancers.py configs/street.yaml [key=value ...] [--balancers a,b] [--seeds 3] [--steps N]
        [--space params] [--weights recipe|none]

Static weights are trained twice, the same but for rounding: the noise floor. Safe to interrupt: the same command goes
on. --page FILE puts the table between the lines "<!-- begin NAME -->" and "<!-- end NAME -->" of a page, where NAME is
the recipe's.
"""

import argparse
import re
import sys
from pathlib import Path

from perception import recipe as recipes
from perception.studies.balancer_benchmark import TABLE, run_benchmark
from perception.types import ConfigError, PerceptionError


def update_page(page: Path, name: str, text: str) -> None:
    """Put a text between a page's marks, in place of what is there."""
    marks = re.compile(f"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    changed, count = marks.subn(lambda found: f"{found[1]}{text}{found[2]}", page.read_text("utf-8"))
    if not count:
        raise ConfigError(f"{page} has no lines '<!-- begin {name} -->' and '<!-- end {name} -->'. Add them.")
    page.write_text(changed, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains every balancer by one recipe, several seeds each.")
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--balancers", type=lambda text: text.split(","), default=(), metavar="A,B", help="default: all"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--steps", type=int, metavar="N", help="instead of the recipe's")
    parser.add_argument("--space", metavar="S", help="where gradients are compared (default: each balancer's)")
    parser.add_argument(
        "--weights", choices=("recipe", "none"), default="recipe",
        help="recipe: the recipe's static weights, to all that take weights (default); none: equal ones",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at a time")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of the measurement of a step's cost")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/<name of the recipe>_balancers)")
    parser.add_argument("--page", type=Path, help="page to put the table into")
    given = parser.parse_args()
    overrides = [*given.overrides, *([f"train.steps={given.steps}"] if given.steps else [])]
    recipe = recipes.load(given.config, overrides)
    out = given.out or Path("runs") / f"{recipe.name}_balancers"
    options = {"num_seeds": given.seeds, "jobs": given.jobs, "repeats": given.rounds}
    run_benchmark(recipe, out, balancers=given.balancers, space=given.space, weights=given.weights, **options)
    text = (out / TABLE).read_text("utf-8")
    print(text)
    if given.page:
        update_page(given.page, recipe.name, text)


if __name__ == "__main__":
    try:
        main()
    except PerceptionError as error:
        sys.exit(f"benchmark_balancers: {error}")
