"""Single-task baselines of a joint recipe: what is kept equal, and what cannot be."""

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
    "images": "Each single-task baseline uses the same recipe for one task: the same pretrained backbone, neck, head, "
    "image size, augmentation, optimizer, learning rate, number of steps and seed. Every step uses as many images "
    "labeled for the task as the joint run on average, rounded up. The baseline trains in every step, even if tasks "
    "of the joint run alternate or start late. It uses less training compute than the joint run, which also learns "
    "the other tasks.",
    "compute": "As above, but each baseline trains for more steps, so that its training takes as many multiplications "
    "as the whole joint run. The learning rate schedule and the evaluations are stretched accordingly. A baseline "
    "uses more images of its task than the joint run.",
    "budget": "As above, but all baselines together take as many multiplications as the joint run: each trains for "
    "the same fraction of its steps. The learning rate schedule, the evaluations and, if the training is shorter, the "
    "warm-up change accordingly. This compares one network with several for a given training budget. If images carry "
    "labels of several tasks, a baseline uses fewer of them than the joint run.",
}
"""Kind of baseline -> what is kept equal, as text for the report."""


def make_control(recipe: Recipe, task: str, sources: Sequence[DataSource]) -> Recipe:
    """Make the single-task recipe of ``task``, with as many labeled images per step as in the joint recipe.

    A source's share is that of its images labeled for the task. The order of images within a source is that of the
    joint run, because it does not depend on the other sources.

    Args:
        recipe: the joint recipe.
        task: name of the task.
        sources: the opened training sources of the joint recipe.
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
    """The task's weight in a static balance; weights of other balancers have no meaning for a single task."""
    weights = recipe.balance.weights if isinstance(recipe.balance, StaticConfig) else {}
    return {name: weight for name, weight in weights.items() if name == task}


def match_controls(kind: ControlKind, joint: Recipe, single_task: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Adjust the length of the baselines to ``kind``; ``single_task`` comes from `make_control`."""
    if kind == "images":
        return dict(single_task)
    whole, own = count_step_flops(joint), {task: count_step_flops(its) for task, its in single_task.items()}
    together = sum(own.values())
    return {
        task: scale_steps(its, whole / (together if kind == "budget" else own[task]))
        for task, its in single_task.items()
    }


def scale_steps(recipe: Recipe, factor: float) -> Recipe:
    """Scale the number of steps by ``factor``.

    The number of evaluations and the frozen fraction of the training stay the same. The warm-up keeps its length in a
    longer training and its fraction in a shorter one.
    """
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
    """Floating-point operations of a training step, forward and backward, on the recipe's first batch.

    If tasks alternate or start late, this is the mean over the training; turns by progress count as even turns.
    """
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
