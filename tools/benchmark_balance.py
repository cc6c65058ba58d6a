"""What a training step costs with each balancer: python tools/benchmark_balance.py [TURNS [NAME...]].

Four tasks on the default network, all labelled. The balancers take turns step by step, timed by processor time in one
thread, so that a busy machine slows them all alike; a ratio is the median over the turns of a step's time over that of
the summed loss ("static") in the same turn. Two other ways to weigh gradients are measured beside: a backward pass of
the whole network for each task (LibMTL's) and torchjd's `mtl_backward`. Memory is what a step takes at its peak beyond
what is there before it (Linux). Prints a table in Markdown, and where it was made.
"""

import sys
from collections.abc import Sequence
from typing import Any, get_args

import torch
from timm.utils.model_ema import ModelEmaV3
from torchjd.aggregation import PCGrad
from torchjd.autojac import jac_to_grad, mtl_backward

from perception.bench.step_cost import TrainStep, measure_steps, training_step
from perception.model import ModelConfig, Perception
from perception.mtl.balancer import Space
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.nn.backbone import BackboneConfig
from perception.runs import hardware
from perception.tasks import TASKS, join
from perception.types import Batch, DenseMap, ImageLabel, Instances

SPACES = ("upgrad", "gradnorm")
"""Balancers that are measured in every space of gradients: the cost hardly depends on the solver."""
CLASSES = {"detection": 6, "segmentation": 14, "classification": 6}


def network(backbone: str | None = None) -> Perception:
    names = {task: tuple(f"{task} {k}" for k in range(count)) for task, count in CLASSES.items()}
    configs = {task: kind.Config(**({"classes": names[task]} if task in names else {})) for task, kind in TASKS.items()}
    chosen = BackboneConfig(weights="none", name=backbone or BackboneConfig().name)
    return Perception(ModelConfig(backbone=chosen), configs)


def batch(size: tuple[int, int], pictures: int = 2) -> Batch:
    """Pictures of noise with labels for all tasks."""
    torch.manual_seed(0)
    valid = torch.ones(size, dtype=torch.bool)
    corners = torch.rand(pictures, 8, 2) * torch.tensor([size[1] - 64.0, size[0] - 64.0])
    kinds = torch.randint(CLASSES["detection"], (pictures, 8))
    annotations = {
        "detection": [Instances(torch.cat([c, c + 48], 1), kind) for c, kind in zip(corners, kinds, strict=True)],
        "segmentation": [DenseMap(torch.randint(CLASSES["segmentation"], size), valid) for _ in range(pictures)],
        "depth": [DenseMap(1 + 50 * torch.rand(size), valid) for _ in range(pictures)],
        "classification": [ImageLabel(torch.eye(CLASSES["classification"])[k % 6]) for k in range(pictures)],
    }
    images = torch.randint(0, 256, (pictures, 3, *size), dtype=torch.uint8)
    ids = [str(k) for k in range(pictures)]
    return Batch(images, annotations, [None] * pictures, [None] * pictures, ids, ["made"] * pictures)


def balanced(name: str, model: Perception, given: Batch, look: bool = False, **options: Any) -> TrainStep:
    return training_step(model, build_balancer(BALANCERS[name].Config(**options), tuple(model.tasks)), given, look=look)


def libmtl_style(model: Perception, given: Batch) -> TrainStep:
    """A whole backward pass for each task, then the mean of the gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    average = ModelEmaV3(model)

    def step() -> None:
        losses = [join(parts) for parts in model.loss_parts(given).parts.values()]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rows = []
        for loss in losses:
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat([(p if g is None else g).reshape(-1) for g, p in zip(found, parameters, strict=True)])
            )
        mean = torch.stack(rows).mean(0).split([parameter.numel() for parameter in parameters])
        for parameter, gradient in zip(parameters, mean, strict=True):
            parameter.grad = gradient.view_as(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)

    return step


def torchjd_style(model: Perception, given: Batch) -> TrainStep:
    """`mtl_backward` and PCGrad, task by task (its parallel form needs vmap, which these losses do not support)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    average = ModelEmaV3(model)
    aggregator = PCGrad()

    def step() -> None:
        found = model.loss_parts(given)
        losses = [join(parts) for parts in found.parts.values()]
        mtl_backward(losses, features=found.shared, parallel_chunk_size=1)
        jac_to_grad([p for p in model.parameters() if getattr(p, "jac", None) is not None], aggregator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)

    return step


def contenders(model: Perception, given: Batch, names: Sequence[str]) -> dict[str, TrainStep]:
    steps: dict[str, TrainStep] = {
        "static": balanced("static", model, given),
        "static, gradients looked at": balanced("static", model, given, look=True),
    }
    for name in names:
        if name not in steps:
            steps[name] = balanced(name, model, given)
        for space in get_args(Space) if name in SPACES else ():
            steps[f"{name}, {space}"] = balanced(name, model, given, space=space)
    return {
        **steps,
        "a backward pass for each task": libmtl_style(model, given),
        "torchjd's mtl_backward": torchjd_style(model, given),
    }


def main(turns: int = 7, *names: str, size: tuple[int, int] = (128, 256)) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model, given = network(), batch(size)
    steps = contenders(model, given, names or tuple(BALANCERS))
    found = measure_steps(steps, turns)
    print(f"{len(given)} pictures of {size[0]} x {size[1]}, float32, {turns} turns, {hardware()}\n")
    print("| step with | milliseconds | x static | MiB |\n|---|---:|---:|---:|")
    for name, cost in found.items():
        print(f"| {name} | {cost.milliseconds:.0f} | {cost.over(found['static']):.2f} | {cost.memory:.0f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7, *sys.argv[2:])
