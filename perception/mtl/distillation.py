"""Knowledge distillation from the raw outputs of another network, with one rule per annotation type.

Hinton et al. 2015; to keep old tasks while a new one is learned, Li and Hoiem 2016 (learning without forgetting).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.types import TaskSpec


def distillation_loss(spec: TaskSpec, student: Any, teacher: Any) -> Tensor:
    """Return the distance between the raw outputs of two heads of the same task; 0 if they are equal.

    Type "instances": binary cross-entropy of the class scores, and the L1 distance of the boxes' sides in cells, both
    weighted towards cells where the teacher or the student detects something. Type "dense": Kullback-Leibler divergence
    of each cell's classes; for a quantity, the L1 distance. Type "label": the same for the image's classes; binary for
    multi-label.

    Args:
        spec: the task.
        student: raw output of the trained head.
        teacher: raw output of the reference head.
    """
    if spec.annotation_type == "instances":
        return _instance_loss(student, teacher)
    if not spec.classes:
        pairs = zip(student, teacher, strict=True)
        return torch.stack([(mine.float() - theirs.float()).abs().mean() for mine, theirs in pairs]).sum()
    mine, theirs = student.logits.float(), teacher.logits.float()
    return (
        _binary_kl_divergence(mine, theirs).mean()
        if spec.multi_label or mine.shape[1] == 1
        else _kl_divergence(mine, theirs).mean()
    )


def _kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) of the softmax over dimension 1."""
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)


def _binary_kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) of each sigmoid."""
    entropy = F.binary_cross_entropy_with_logits(teacher, teacher.sigmoid(), reduction="none")
    return F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none") - entropy


def _instance_loss(student: Any, teacher: Any) -> Tensor:
    """Return the loss of detections, normalized by the sum of the teacher's scores.

    Nearly all cells are background in both outputs. So a cell is weighted by the difference of the two (quality focal
    loss, Li et al. 2020), and its box by the teacher's score.
    """
    mine, theirs = student.logits.float(), teacher.logits.float()
    seen = theirs.sigmoid()
    sure = seen.amax(2)
    scores = ((mine.sigmoid().detach() - seen).abs() * _binary_kl_divergence(mine, theirs)).sum()
    distance = _box_distance(student.box_regression.float(), teacher.box_regression.float())
    return (scores + (distance * sure).sum()) / sure.sum().clamp(min=1)


def _box_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return distances [B, P] of boxes: of the four sides in cells, or the divergence of their distributions."""
    if student.shape[-1] == 4:
        return (F.softplus(student) - F.softplus(teacher)).abs().mean(2)
    bins = [one.unflatten(-1, (4, -1)).movedim(-1, 1) for one in (student, teacher)]
    return _kl_divergence(*bins).mean(2)
