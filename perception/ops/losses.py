"""Losses as pure functions of tensors, independent of tasks and annotations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_ZERO = -1e4
"""Log-probability of impossible events: its exponential is 0 in float32."""


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of the valid values of each image: [B, H, W] -> [B]; 0 if none is valid. All values must be finite."""
    return (values * valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)


def silog(log_error: Tensor, valid: Tensor, variance_focus: float = 0.85) -> Tensor:
    """Scale-invariant log loss (Eigen et al. 2014; root form of Lee et al. 2019) per image: [B, H, W] -> [B].

    Mean over valid pixels; about 0 if no pixel is valid.
    """
    variance = masked_mean(log_error.square(), valid) - variance_focus * masked_mean(log_error, valid).square()
    return variance.clamp(min=1e-8).sqrt()


def gradient_matching(log_error: Tensor, valid: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of neighboring log errors over several scales (Li and Snavely 2018): [B, H, W] -> [B].

    It does not penalize sharp depth edges where the target has them, and it keeps smooth surfaces smooth.
    """
    total = log_error.new_zeros(len(log_error))
    for level in range(scales):
        step = 2**level
        error, known = log_error[:, ::step, ::step], valid[:, ::step, ::step]
        total = total + masked_mean((error[:, :, 1:] - error[:, :, :-1]).abs(), known[:, :, 1:] & known[:, :, :-1])
        total = total + masked_mean((error[:, 1:] - error[:, :-1]).abs(), known[:, 1:] & known[:, :-1])
    return total / (2 * scales)


def class_weights_by_frequency(labels: Tensor, valid: Tensor, num_classes: int, exponent: float) -> Tensor:
    """Class weights per image from the frequency of its valid labels: ``frequency ** -exponent``; 0 if absent.

    The mean weight over the labels of an image is 1. With ``exponent`` 0, all labels have the same weight. With 1, all
    classes that occur have the same total weight.

    Args:
        labels: int64 [B, H, W].
        valid: bool [B, H, W].
        num_classes: C.
        exponent: strength of the weighting.

    Returns:
        [B, C].
    """
    known = valid.flatten(1).float()
    counts = known.new_zeros(len(labels), num_classes).scatter_add_(1, labels.flatten(1), known)
    weights = torch.where(counts > 0, counts.clamp(min=1).pow(-exponent), 0.0)
    return weights * counts.sum(1, keepdim=True) / (weights * counts).sum(1, keepdim=True).clamp(min=1e-9)


def merge_classes(log_probabilities: Tensor, class_sets: Sequence[tuple[int, ...]], labels: Tensor) -> Tensor:
    """Log-probability of each set of classes: the log-sum-exp over the set. A set of one class keeps its value exactly.

    If sets overlap, consider a pixel with label j and another set k. The probability of k is then summed over the
    classes that are in k but not in j, so classes allowed by the label are never penalized.

    Args:
        log_probabilities: [B, C, H, W].
        class_sets: K non-empty sets of class indices.
        labels: int64 [B, H, W], values below K.

    Returns:
        [B, K, H, W].
    """
    if sum(map(len, class_sets)) == len(set().union(*class_sets)):
        return torch.stack([log_probabilities[:, list(each)].logsumexp(1) for each in class_sets], 1)
    members = log_probabilities.new_zeros(len(class_sets), log_probabilities.shape[1], dtype=torch.bool)
    for k, each in enumerate(class_sets):
        members[k, list(each)] = True
    merged = []
    for k in range(len(class_sets)):
        allowed = members[k] & ~members
        allowed[k] = members[k]
        outside = ~allowed[labels].movedim(-1, 1)
        merged.append(log_probabilities.masked_fill(outside, LOG_ZERO).logsumexp(1))
    return torch.stack(merged, 1)


def expected_class_pixels(
    log_probabilities: Tensor, class_sets: Sequence[tuple[int, ...]], labels: Tensor, weights: Tensor
) -> Tensor:
    """Expected number of pixels per class if labels are sets of classes: the E-step of expectation-maximization.

    Each pixel is divided within its set according to the predicted probabilities. A set of one class counts fully.

    Args:
        log_probabilities: [B, C, H, W].
        class_sets: classes of each label.
        labels: int64 [B, H, W].
        weights: [N, B, H, W], N weights per pixel.

    Returns:
        [N, C].
    """
    counts = weights.new_zeros(len(weights), log_probabilities.shape[1])
    for k, each in enumerate(class_sets):
        within = log_probabilities[:, list(each)].softmax(1)
        counts[:, list(each)] += torch.einsum("nbhw,bchw->nc", weights * (labels == k), within)
    return counts


def dice_loss(log_probabilities: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """1 - soft Dice (Milletari et al. 2016), summed over images and the classes that occur in each.

    Only classes that occur in some image contribute.

    Args:
        log_probabilities: [B, C, H, W].
        labels: int64 [B, H, W].
        valid: bool [B, H, W].

    Returns:
        The sum, and the number of pairs (image, class).
    """
    counts = torch.zeros(log_probabilities.shape[1], dtype=torch.int64, device=labels.device)
    counts.scatter_add_(0, torch.where(valid, labels, 0).flatten(), valid.flatten().long())
    present = counts.nonzero()[:, 0]  # the only point where the host waits for the device
    probabilities = log_probabilities[:, present].exp()
    inside = (labels[:, None] == present[:, None, None]) & valid[:, None]
    overlap, own = (probabilities * inside).sum((2, 3)), inside.sum((2, 3))
    score = (2 * overlap + 1) / ((probabilities * valid[:, None]).sum((2, 3)) + own + 1)
    occurs = own > 0
    return ((1 - score) * occurs).sum(), occurs.sum().to(score.dtype)


def lovasz_softmax(probabilities: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Lovasz-Softmax (Berman et al. 2018), summed over images and the classes that occur in each.

    A smooth extension of 1 - IoU: small classes and thin objects have the same influence as in IoU.

    Args:
        probabilities: [B, C, H, W].
        labels: int64 [B, H, W].
        valid: bool [B, H, W].

    Returns:
        The sum, and the number of pairs (image, class).
    """
    total, count = probabilities.sum() * 0.0, 0
    for scores, truth, known in zip(probabilities.flatten(2), labels.flatten(1), valid.flatten(1), strict=True):
        scores, truth = scores[:, known], truth[known]
        for k in truth.unique().tolist():
            inside = (truth == k).to(scores.dtype)
            error, order = (inside - scores[k]).abs().sort(descending=True)
            total = total + error @ _lovasz_gradient(inside[order])
            count += 1
    return total, total.new_tensor(float(count))


def _lovasz_gradient(inside: Tensor) -> Tensor:
    """Increase of 1 - IoU for each further wrong pixel [N]; 1 inside the class, 0 outside."""
    intersection = inside.sum() - inside.cumsum(0)
    union = inside.sum() + (1 - inside).cumsum(0)
    return torch.diff(1 - intersection / union, prepend=inside.new_zeros(1))


def border_mask(labels: Tensor, valid: Tensor, distance: int) -> Tensor:
    """Return the pixels with another class within ``distance`` pixels (square window): bool [B, H, W].

    ``labels`` is int64 [B, H, W]. Invalid pixels do not create borders.
    """
    known = valid[:, None]
    ids = labels[:, None].to(torch.float32)
    window = 2 * distance + 1
    highest = F.max_pool2d(ids.masked_fill(~known, -torch.inf), window, 1, distance)
    lowest = -F.max_pool2d((-ids).masked_fill(~known, -torch.inf), window, 1, distance)
    return ((highest > lowest) & known)[:, 0]


def laplace_nll(log_error: Tensor, log_scale: Tensor) -> Tensor:
    """Negative log-likelihood of Laplace-distributed errors, element-wise, without the constant log 2."""
    return log_error.abs() * (-log_scale).exp() + log_scale


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax of logits over dimension 1: [B, C, ...] -> [B, ...]."""
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)


def binary_kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the sigmoid of each logit."""
    entropy = F.binary_cross_entropy_with_logits(teacher, teacher.sigmoid(), reduction="none")
    return F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none") - entropy
