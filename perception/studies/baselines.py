"""Single-task controls of a joint recipe: what is held equal, and what cannot be."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from perception import recipe as recipes
from perception.data.dataset import DataSource
from perception.data.loader import make_train_loader
from perception.data.sampler import MixConfig, compute_sampling_shares
from perception.mtl.balancers import StaticConfig
from perception.mtl.schedule import FreezeConfig, TaskSchedule, TaskScheduleConfig
from perception.recipe import Recipe
from perception.tasks import sum_loss_terms

ControlKind = Literal["images", "compute", "budget"]
CONTROL_KINDS: tuple[ControlKind, ...] = get_args(ControlKind)

CONTROL_DESCRIPTIONS = {
    "images": "Each control is trained by the same recipe with its task alone: the same backbone and its weights, "
    "neck, head, image size, augmentation, optimizer, learning rate, number of steps and seed, and in every step as "
    "many images that label its task as the joint run sees on average (rounded up where that is no whole number). "
    "It learns in every step, also where tasks of the joint run take turns or join late. "
    "It spends less compute on training than the joint run, which also learns the other tasks.",
    "compute": "As above, but each control is trained for so many more steps that its training takes as many "
    "multiplications as the whole joint run; the learning rate's decay and the evaluations are stretched with it. "
    "It sees more images of its task than the joint run does.",
    "budget": "As above, but the controls together take as many multiplications as the joint run: each is trained for "
    "the same part of its steps; its decay, its evaluations and, where it is shorter, its warm-up change with them. "
    "This is the choice between one network and several where the time to train them is given. Where images carry "
    "the labels of several tasks, a control sees fewer of them than the joint run does.",
}
"""Kind of control -> what is held equal, in words for the report."""


def make_control(recipe: Recipe, task: str, sources: Sequence[DataSource]) -> Recipe:
    """The recipe of ``task`` alone that sees as many of its own images in a step as the joint recipe does.

    sources: the joint recipe's, opened. A source's share is that of its images that label the task; which images
    come in which order is the joint run's, for the order of a source does not depend on the other sources.
    """
    data = recipe.data
    coverage = [source.coverage for source in sources]
    parts = compute_sampling_shares(
        [len(source) for source in sources], [source.weight for source in sources], coverage, data.mix
    )
    own = {
        source.name: part * covered.get(task, 0.0)
        for source, part, covered in zip(sources, parts, coverage, strict=True)
    }
    labelled = math.fsum(own.values())
    train = tuple(
        dataclasses.replace(source, weight=max(1e-3, 1e3 * own[source.name] / labelled))
        for source in data.train
        if own.get(source.name)
    )
    alone = recipes.select_tasks(recipe, [task])
    return dataclasses.replace(
        alone,
        name=f"{recipe.name}_{task}",
        data=dataclasses.replace(data, train=train, mix=MixConfig(batches=data.mix.batches)),
        train=dataclasses.replace(
            recipe.train, batch_size=max(1, math.ceil(recipe.train.batch_size * labelled - 1e-9))
        ),
        balance=StaticConfig(weights=_static_weight(recipe, task)),
        schedule=TaskScheduleConfig(freeze=alone.schedule.freeze),
    )


def _static_weight(recipe: Recipe, task: str) -> dict[str, float]:
    """The weight that a static balance gives the task; what others give is a matter between tasks."""
    weights = recipe.balance.weights if isinstance(recipe.balance, StaticConfig) else {}
    return {name: weight for name, weight in weights.items() if name == task}


def match_controls(kind: ControlKind, joint: Recipe, single_task: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Every task's control in the length that ``kind`` asks for. ``single_task``: as `control` makes them."""
    if kind == "images":
        return dict(single_task)
    whole, own = count_step_flops(joint), {task: count_step_flops(its) for task, its in single_task.items()}
    together = sum(own.values())
    return {
        task: scale_steps(its, whole / (together if kind == "budget" else own[task]))
        for task, its in single_task.items()
    }


def scale_steps(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with ``factor`` times the steps, evaluated as often in all; parts rest for the same share of it. A
    longer training warms up as long as before, a shorter one for the same share."""
    train = recipe.train
    freeze = tuple(
        FreezeConfig(
            part=item.part,
            start=round(item.start * factor),
            stop=None if item.stop is None else round(item.stop * factor),
        )
        for item in recipe.schedule.freeze
    )
    return dataclasses.replace(
        recipe,
        schedule=dataclasses.replace(recipe.schedule, freeze=freeze),
        train=dataclasses.replace(
            train,
            steps=max(1, round(train.steps * factor)),
            warmup_steps=round(train.warmup_steps * min(factor, 1.0)),
            evaluate_every=max(1, round(train.evaluate_every * factor))
            if train.evaluate_every
            else train.evaluate_every,
        ),
    )


def count_step_flops(recipe: Recipe) -> int:
    """Floating-point operations of a training step, forward and backward, on the recipe's first batch; where tasks take
    turns or join late, the mean over the training (turns by progress are taken for even ones)."""
    model = recipes.build_model(recipe, pretrained=False).train()
    mixture, train, tasks = recipes.build_mixture(recipe), recipe.train, tuple(recipe.tasks)
    batch = next(iter(make_train_loader(mixture, tasks, train.batch_size, 1)))
    schedule, whole = TaskSchedule(recipe.schedule, tasks), 0
    for some, steps in Counter(schedule.choose_tasks(step, tasks) for step in range(train.steps)).items():
        counter = FlopCounterMode(display=False)
        with counter:
            torch.stack(
                [sum_loss_terms(parts) for parts in model.compute_loss_terms(batch, some).terms.values()]
            ).sum().backward()
        whole += steps * counter.get_total_flops()
    return round(whole / train.steps)
