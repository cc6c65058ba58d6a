"""Soft labels: nothing to learn from an equal, the Kullback-Leibler divergence elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence

from perception.mtl.distillation import distillation_loss
from perception.types import TaskSpec


class Logits(NamedTuple):
    logits: Tensor


class Depth(NamedTuple):
    log_depth: Tensor


class Boxes(NamedTuple):
    logits: Tensor
    box_regression: Tensor


SEGMENTATION = TaskSpec("segmentation", "dense", ("mask",), ("a", "b", "c"))
DEPTH = TaskSpec("depth", "dense", ("depth",), (), "m")
LABEL = TaskSpec("label", "label", ("probabilities",), ("a", "b", "c"))
LABELS = TaskSpec("label", "label", ("probabilities",), ("a", "b", "c"), multi_label=True)
DETECTION = TaskSpec("detection", "instances", ("boxes", "scores", "labels"), ("a", "b"))


def raw(spec: TaskSpec, seed: int, bins: int = 1):
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    if spec is SEGMENTATION:
        return Logits(random(2, 3, 4, 5))
    if spec is DEPTH:
        return Depth(random(2, 1, 4, 5))
    if spec is DETECTION:
        return Boxes(random(2, 7, 2), random(2, 7, 4 * bins) * 2)
    return Logits(random(2, 3))


@pytest.mark.parametrize(
    ("spec", "bins"), [(SEGMENTATION, 1), (DEPTH, 1), (LABEL, 1), (LABELS, 1), (DETECTION, 1), (DETECTION, 16)]
)
def test_an_equal_teaches_nothing_and_another_teaches_towards_itself(spec, bins):
    teacher = raw(spec, 0, bins)
    assert float(distillation_loss(spec, teacher, teacher)) == pytest.approx(0, abs=1e-6)
    far, near = raw(spec, 1, bins), []
    for part in far:
        part.requires_grad_()
        near.append(part)
    loss = distillation_loss(spec, far, teacher)
    loss.backward()
    moved = [part.detach() - 1e-3 * part.grad / part.grad.norm() for part in near]
    assert float(distillation_loss(spec, far._replace(**dict(zip(far._fields, moved, strict=False))), teacher)) < float(
        loss.detach()
    )


def test_closed_forms():
    mine, theirs = raw(LABEL, 0), raw(LABEL, 1)
    expected = kl_divergence(Categorical(logits=theirs.logits), Categorical(logits=mine.logits)).mean()
    assert float(distillation_loss(LABEL, mine, theirs)) == pytest.approx(float(expected), rel=1e-5)
    expected = kl_divergence(Bernoulli(logits=theirs.logits), Bernoulli(logits=mine.logits)).mean()
    assert float(distillation_loss(LABELS, mine, theirs)) == pytest.approx(float(expected), rel=1e-5)
    mine, theirs = raw(DEPTH, 0), raw(DEPTH, 1)
    expected = (mine.log_depth - theirs.log_depth).abs().mean()
    assert float(distillation_loss(DEPTH, mine, theirs)) == pytest.approx(float(expected))


def test_a_box_counts_by_how_sure_the_teacher_is_and_in_units_of_its_cell():
    sure = Boxes(torch.tensor([[[9.0], [-20.0]]]), torch.full((1, 2, 4), 20.0))
    moved = sure._replace(box_regression=torch.full((1, 2, 4), 20.5))
    assert float(distillation_loss(DETECTION, moved, sure)) == pytest.approx(0.5, rel=1e-3)
