"""What a training step costs with each balancer: python tools/benchmark_balancer_cost.py [TURNS [NAME...]].

Four tasks on the default network, all labeled. The balancers take turns step by step, timed by processor time in one
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

from perception.bench.step_cost import TrainStep, make_training_step, measure_steps
from perception.model import ModelConfig, MultiTaskModel
from perception.mtl.balancer import GradientSpace
from perception.mtl.balancers import BALANCERS, build_balancer
from perception.nn.backbone import BackboneConfig
from perception.runs import describe_hardware
from perception.tasks import TASKS, sum_loss_terms
from perception.types import Batch, DenseMap, ImageLabel, Instances

MEASURED_IN_EVERY_SPACE = ("upgrad", "gradnorm")
"""Balancers that are measured in every space of gradients: the cost hardly depends on the solver."""
CLASSES = {"detection": 6, "segmentation": 14, "classification": 6}


def build_model(backbone: str | None = None) -> MultiTaskModel:
    names = {task: tuple(f"{task} {k}" for k in range(count)) for task, count in CLASSES.items()}
    configs = {task: kind.Config(**({"classes": names[task]} if task in names else {})) for task, kind in TASKS.items()}
    chosen = BackboneConfig(weights="none", name=backbone or BackboneConfig().name)
    return MultiTaskModel(ModelConfig(backbone=chosen), configs)


def make_batch(size: tuple[int, int], num_images: int = 2) -> Batch:
    """Images of noise with labels for all tasks."""
    torch.manual_seed(0)
    valid = torch.ones(size, dtype=torch.bool)
    corners = torch.rand(num_images, 8, 2) * torch.tensor([size[1] - 64.0, size[0] - 64.0])
    kinds = torch.randint(CLASSES["detection"], (num_images, 8))
    annotations = {
        "detection": [Instances(torch.cat([c, c + 48], 1), kind) for c, kind in zip(corners, kinds, strict=True)],
        "segmentation": [DenseMap(torch.randint(CLASSES["segmentation"], size), valid) for _ in range(num_images)],
        "depth": [DenseMap(1 + 50 * torch.rand(size), valid) for _ in range(num_images)],
        "classification": [ImageLabel(torch.eye(CLASSES["classification"])[k % 6]) for k in range(num_images)],
    }
    images = torch.randint(0, 256, (num_images, 3, *size), dtype=torch.uint8)
    ids = [str(k) for k in range(num_images)]
    return Batch(images, annotations, [None] * num_images, [None] * num_images, ids, ["made"] * num_images)


def balancer_step(
    name: str, model: MultiTaskModel, batch: Batch, log_gradients: bool = False, **options: Any
) -> TrainStep:
    return make_training_step(
        model, build_balancer(BALANCERS[name].Config(**options), tuple(model.tasks)), batch, log_gradients=log_gradients
    )


def libmtl_step(model: MultiTaskModel, batch: Batch) -> TrainStep:
    """A whole backward pass for each task, then the mean of the gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    average = ModelEmaV3(model)

    def step() -> None:
        losses = [sum_loss_terms(parts) for parts in model.compute_loss_terms(batch).terms.values()]
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


def torchjd_step(model: MultiTaskModel, batch: Batch) -> TrainStep:
    """`mtl_backward` and PCGrad, task by task (its parallel form needs vmap, which these losses do not support)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    average = ModelEmaV3(model)
    aggregator = PCGrad()

    def step() -> None:
        found = model.compute_loss_terms(batch)
        losses = [sum_loss_terms(parts) for parts in found.terms.values()]
        mtl_backward(losses, features=found.shared_features, parallel_chunk_size=1)
        jac_to_grad([p for p in model.parameters() if getattr(p, "jac", None) is not None], aggregator)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(model)

    return step


def build_steps(model: MultiTaskModel, batch: Batch, names: Sequence[str]) -> dict[str, TrainStep]:
    steps: dict[str, TrainStep] = {
        "static": balancer_step("static", model, batch),
        "static, gradients looked at": balancer_step("static", model, batch, log_gradients=True),
    }
    for name in names:
        if name not in steps:
            steps[name] = balancer_step(name, model, batch)
        for space in get_args(GradientSpace) if name in MEASURED_IN_EVERY_SPACE else ():
            steps[f"{name}, {space}"] = balancer_step(name, model, batch, space=space)
    return {
        **steps,
        "a backward pass for each task": libmtl_step(model, batch),
        "torchjd's mtl_backward": torchjd_step(model, batch),
    }


def main(rounds: int = 7, *names: str, size: tuple[int, int] = (128, 256)) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model, given = build_model(), make_batch(size)
    steps = build_steps(model, given, names or tuple(BALANCERS))
    found = measure_steps(steps, rounds)
    print(f"{len(given)} images of {size[0]} x {size[1]}, float32, {rounds} turns, {describe_hardware()}\n")
    print("| step with | milliseconds | x static | MiB |\n|---|---:|---:|---:|")
    for name, cost in found.items():
        print(f"| {name} | {cost.milliseconds:.0f} | {cost.ratio_to(found['static']):.2f} | {cost.peak_memory:.0f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7, *sys.argv[2:])
