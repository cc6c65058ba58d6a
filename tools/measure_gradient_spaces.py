"""Where do the tasks' gradients show what they show over all shared parameters, and at what cost?

    python tools/measure_gradient_spaces.py configs/street.yaml [--steps 200] [--looks 40] [--rounds 7] [key=value ...]

A training with static weights. At ``looks`` steps, in bursts of four neighbors spread over the last three quarters,
the gradients of the tasks are taken at the features and, layer group by layer group, in all shared parameters; inner
products of a suffix of the groups (the neck, the neck and the last stage of the backbone, ...) are sums of those of its
groups. Prints, for each candidate space, how its cosines relate to those over all parameters: correlation over looks
and pairs, the share of equal signs where the latter are at least 0.05, the mean cosine of each pair; and what a step
costs that takes the Gramian there. Below: how well a Gramian that is some steps old, or a moving average, predicts a
step's.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perception import recipe as recipes
from perception.bench.step_cost import make_training_step, measure_steps
from perception.data.loader import make_train_loader
from perception.engine import distributed
from perception.engine.distributed import reduce_losses
from perception.engine.run_start import build_train_state
from perception.engine.step import seed_step, take_step
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.mtl.task_gradients import compute_gramian
from perception.nn.gradient_cut import BackwardPass
from perception.ops.denormals import flush_denormals
from perception.runs import describe_hardware

BURST_LENGTH = 4
SKETCH_SIZE = 4096
"""Numbers of a random projection of a gradient."""


def group_parameters(model: Any) -> dict[str, list[torch.nn.Parameter]]:
    """Layer group -> its shared parameters, from the images upwards."""
    shared = {id(p) for p in model.shared_parameters()}
    found: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in shared:
            parts = name.split(".")
            stage = parts.index("blocks") + 1 if "blocks" in parts else None
            key = "neck" if "neck" in parts else f"stage {parts[stage]}" if stage else "stem"
            found.setdefault(key, []).append(parameter)
    return found


def measure_inner_products(
    model: Any, batch: Any, groups: dict[str, list[torch.nn.Parameter]], weights: dict[str, float]
) -> dict:
    """Space or layer group -> inner products [T, T] of the weighted tasks' gradients, of one batch."""
    found = model.compute_loss_terms(batch, cut_graph=True)
    joint = reduce_losses(
        found, {name: sum(a is not None for a in batch.annotations[name]) for name in found.terms}, {}
    )
    total = torch.stack([loss * weights.get(name, 1.0) for name, loss in joint.losses.items()]).sum()
    backward = BackwardPass(found.graph_cuts, total, joint.penalties)
    places = {"features": [place for place in found.shared_features if place.requires_grad], **groups}
    every = [p for own in places.values() for p in own]
    gradients = [backward.task_gradient(name, every) for name in joint.losses]
    products, start = {}, 0
    for key, own in places.items():
        products[key] = compute_gramian([g[start : start + len(own)] for g in gradients]).numpy()
        start += len(own)
    count = len(places["features"])
    params = every[count:]
    products["sketch"] = compute_gramian([(sketch_gradient(g[count:], params),) for g in gradients]).numpy()
    model.zero_grad()
    present = [name for name, count in joint.num_labeled.items() if count]
    return {"products": products, "present": present}


def sketch_gradient(gradient: Sequence[torch.Tensor | None], parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """A random projection of a gradient (count sketch, Charikar et al. 2002): inner products stay, on average."""
    dense = [torch.zeros_like(p) if g is None else g for g, p in zip(gradient, parameters, strict=True)]
    flat = torch.cat([g.reshape(-1) for g in dense])
    generator = torch.Generator().manual_seed(0)
    bins = torch.randint(SKETCH_SIZE, (len(flat),), generator=generator)
    signs = torch.randint(2, (len(flat),), generator=generator) * 2.0 - 1
    return torch.zeros(SKETCH_SIZE).index_add_(0, bins, flat * signs)


def cosines(products: NDArray, names: Sequence[str], present: Sequence[str]) -> dict[tuple[str, str], float]:
    """Pair -> cosine, of the pairs that both have a gradient."""
    norms = np.sqrt(np.diag(products))
    pairs = itertools.combinations([i for i, name in enumerate(names) if name in present and norms[i] > 0], 2)
    return {(names[i], names[j]): products[i, j] / norms[i] / norms[j] for i, j in pairs}


def correlate_cosines(estimated: list[dict], truth: list[dict]) -> tuple[float, float]:
    """Correlation over looks and pairs; share of equal signs where the truth is at least 0.05."""
    pairs = [(one[key], two[key]) for one, two in zip(estimated, truth, strict=True) for key in two if key in one]
    if len(pairs) < 3:
        return float("nan"), float("nan")
    x, y = np.array(pairs).T
    clear = np.abs(y) >= 0.05
    same = float(np.mean(np.sign(x[clear]) == np.sign(y[clear]))) if clear.any() else float("nan")
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 else 0.0, same


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    chosen, changes = parser.parse_known_args(arguments)
    recipe = recipes.load(chosen.recipe, [*changes, f"train.steps={chosen.steps}"])
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    model = recipes.build_model(recipe).train()
    names, settings = tuple(recipe.tasks), recipe.train
    balancer = build_balancer(recipe.balance, names, recipe.seed)
    weights = dict(getattr(recipe.balance, "weights", {}))
    training = build_train_state(model, balancer, settings)
    losses_of = distributed.LossFunction(model)
    groups = group_parameters(model)
    bursts = max(chosen.samples // BURST_LENGTH, 1)
    starts = np.linspace(chosen.steps // 4, chosen.steps - BURST_LENGTH, bursts).astype(int)
    when = {int(start) + k for start in starts for k in range(BURST_LENGTH)}
    seen: dict[int, dict] = {}
    stream = iter(make_train_loader(recipes.build_mixture(recipe), names, settings.batch_size, chosen.steps))
    batch = None
    with flush_denormals():
        for step in range(chosen.steps):
            batch = next(stream)
            seed_step(recipe.seed, step)
            if step in when:
                buffers = [buffer.clone() for buffer in model.buffers()]
                seen[step] = measure_inner_products(model, batch, groups, weights)
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.data.copy_(before)
                seed_step(recipe.seed, step)
            lr = settings.learning_rate(step)
            options = {"clip_norm": settings.clip_norm, "precision": "float32", "flags": {}, "with_weights": False}
            take_step(training, losses_of, batch, lr=lr, **options)
            print(f"\rstep {step + 1} of {chosen.steps}", end="", file=sys.stderr)
    print(file=sys.stderr)
    print_spaces(recipe, seen, names, groups)
    if chosen.rounds and batch is not None:
        print_costs(model, batch, names, groups, chosen.rounds)


def print_spaces(recipe: Any, samples: dict[int, dict], names: Sequence[str], groups: dict) -> None:
    order = list(groups)
    spaces = {"features": ["features"], "random projection of all_shared": ["sketch"]}
    upwards = [key for key in reversed(order) if key != "neck"]
    for k in range(len(upwards) + 1):
        members = (["neck"] if "neck" in order else []) + upwards[:k]
        if members:
            spaces["all_shared" if k == len(upwards) else members[-1] + " and up"] = members
    found = {
        space: [
            cosines(np.sum([one["products"][m] for m in members], 0), names, one["present"]) for one in samples.values()
        ]
        for space, members in spaces.items()
    }
    truth = found["all_shared"]
    keys = sorted({key for one in truth for key in one})
    print(f"Recipe {recipe.name}, {len(samples)} looks, {describe_hardware()}\n")
    print("| space | correlation | same sign | " + " | ".join(f"{a[:3]}/{b[:3]}" for a, b in keys) + " |")
    print("|---|---:|---:|" + "---:|" * len(keys))
    for space, own in found.items():
        correlation, same = correlate_cosines(own, truth)
        means = [np.mean([one[key] for one in own if key in one]) for key in keys]
        deviations = [np.std([one[key] for one in own if key in one]) for key in keys]
        cells = " | ".join(f"{m:+.3f} ({d:.3f})" for m, d in zip(means, deviations, strict=True))
        print(f"| {space} | {correlation:.2f} | {same:.2f} | {cells} |")
    steps = sorted(samples)
    by_step = dict(zip(samples, truth, strict=True))
    for age in range(1, BURST_LENGTH):
        pairs = [(by_step[s - age], by_step[s]) for s in steps if s - age in by_step]
        if pairs:
            old, new = zip(*pairs, strict=True)
            print(f"\nparams, {age} steps old: correlation {correlate_cosines(list(old), list(new))[0]:.2f}", end="")
    running: dict[tuple[str, str], float] = {}
    before: list[dict] = []
    for s in steps:
        before.append(dict(running))
        for key, value in by_step[s].items():
            running[key] = 0.9 * running.get(key, value) + 0.1 * value
    half = len(steps) // 2
    correlation, same = correlate_cosines(before[half:], [by_step[s] for s in steps[half:]])
    print(f"\nparams, moving average (.9) of the looks before: correlation {correlation:.2f}, same sign {same:.2f}\n")


def print_costs(model: Any, batch: Any, names: Sequence[str], groups: dict, rounds: int) -> None:
    """What a step costs that takes the Gramian in each suffix of the groups, times a step of the summed loss."""
    every = {key: [id(p) for p in own] for key, own in groups.items()}
    order = [key for key in reversed(list(groups)) if key != "neck"]
    shared = list(model.shared_parameters())
    steps = {"static": make_training_step(model, build_balancer(BALANCERS["static"].Config(), names), batch)}
    steps["features"] = make_training_step(
        model, build_balancer(BALANCERS["upgrad"].Config(space="features"), names), batch
    )
    plain = type(model).shared_parameters

    def within(members: list[str]) -> Any:
        wanted = {key for member in members for key in every[member]}
        step = make_training_step(model, build_balancer(BALANCERS["upgrad"].Config(space="all_shared"), names), batch)

        def run() -> None:
            type(model).shared_parameters = lambda self: iter([p for p in shared if id(p) in wanted])
            try:
                step()
            finally:
                type(model).shared_parameters = plain

        return run

    for k in range(len(order) + 1):
        members = (["neck"] if "neck" in every else []) + order[:k]
        if members:
            steps["all_shared" if k == len(order) else members[-1] + " and up"] = within(members)
    found = measure_steps(steps, rounds)
    print("| Gramian in | milliseconds | x static | share of parameters |\n|---|---:|---:|---:|")
    total = sum(p.numel() for p in shared)
    for name, cost in found.items():
        k = next((k for k in range(len(order) + 1) if name == (order[k - 1] + " and up" if k else "neck and up")), None)
        members = list(every) if name == "all_shared" else [] if k is None else ["neck", *order[:k]]
        share = sum(p.numel() for m in members for p in groups.get(m, [])) / total
        print(f"| {name} | {cost.milliseconds:.0f} | {cost.ratio_to(found['static']):.2f} | {share:.2f} |")


if __name__ == "__main__":
    main()
