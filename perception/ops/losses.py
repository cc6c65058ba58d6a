"""Losses as pure functions of tensors: no task, no annotation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_ZERO = -1e4
"""The log-probability of what cannot be: its exponential is 0 in float32."""


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of the valid values of each image: [B, H, W] -> [B], 0 where none is. All values must be finite."""
    return (values * valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)


def silog(log_error: Tensor, valid: Tensor, variance_focus: float = 0.85) -> Tensor:
    """Scale-invariant log loss (Eigen et al. 2014; the root form of Lee et al. 2019) of each image: [B, H, W] -> [B].

    The mean of what is valid; about 0 where nothing is.
    """
    variance = masked_mean(log_error.square(), valid) - variance_focus * masked_mean(log_error, valid).square()
    return variance.clamp(min=1e-8).sqrt()


def gradient_matching(log_error: Tensor, valid: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of neighboring log errors over several scales (Li and Snavely 2018), of each image:
    [B, H, W] -> [B].

    Sharp depth edges cost nothing where the truth has them, and smooth surfaces stay smooth.
    """
    total = log_error.new_zeros(len(log_error))
    for level in range(scales):
        step = 2**level
        error, known = log_error[:, ::step, ::step], valid[:, ::step, ::step]
        total = total + masked_mean((error[:, :, 1:] - error[:, :, :-1]).abs(), known[:, :, 1:] & known[:, :, :-1])
        total = total + masked_mean((error[:, 1:] - error[:, :-1]).abs(), known[:, 1:] & known[:, :-1])
    return total / (2 * scales)


def class_weights_by_frequency(labels: Tensor, valid: Tensor, num_classes: int, exponent: float) -> Tensor:
    """Weight of each class in each image from how often it occurs among its valid labels: ``frequency ** -balance``,
    0 if absent. labels int64 and valid bool [B, H, W] -> [B, C].

    Scaled so that the mean weight of an image's labels is 1. With ``exponent`` 0 all weigh the same, with 1 every class
    that occurs has the same share of the whole.
    """
    known = valid.flatten(1).float()
    counts = known.new_zeros(len(labels), num_classes).scatter_add_(1, labels.flatten(1), known)
    weights = torch.where(counts > 0, counts.clamp(min=1).pow(-exponent), 0.0)
    return weights * counts.sum(1, keepdim=True) / (weights * counts).sum(1, keepdim=True).clamp(min=1e-9)


def merge_classes(log_probabilities: Tensor, class_sets: Sequence[tuple[int, ...]], labels: Tensor) -> Tensor:
    """Log-probabilities that a pixel is of each set of classes, the log-sum-exp over the set: [B, C, H, W] ->
    [B, K, H, W]. A set of one class keeps its log-probability exactly.

    Where sets overlap, a pixel labeled j is of another set k with the probability of what is in k but not in j: what
    its own label allows is never wrong. class_sets: of classes, K of them, none empty; labels: int64 [B, H, W], below
    K.
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
    """Expected pixels of each class, where a label is a set of classes: the E-step of expectation-maximisation, each
    pixel shared out within its set as the network sees it. A set of one class is counted whole.

    log_probabilities [B, C, H, W], labels int64 [B, H, W], pixels [N, B, H, W]: N weights of each -> [N, C].
    """
    counts = weights.new_zeros(len(weights), log_probabilities.shape[1])
    for k, each in enumerate(class_sets):
        within = log_probabilities[:, list(each)].softmax(1)
        counts[:, list(each)] += torch.einsum("nbhw,bchw->nc", weights * (labels == k), within)
    return counts


def dice_loss(log_probabilities: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """1 - soft Dice (Milletari et al. 2016), summed over the images and the classes that occur in each, and the
    number of these pairs. Only classes that occur in some image cost anything.

    log_probabilities [B, C, H, W], labels int64 [B, H, W], valid [B, H, W].
    """
    counts = torch.zeros(log_probabilities.shape[1], dtype=torch.int64, device=labels.device)
    counts.scatter_add_(0, torch.where(valid, labels, 0).flatten(), valid.flatten().long())
    present = counts.nonzero()[:, 0]  # the one thing that the host waits for
    probabilities = log_probabilities[:, present].exp()
    inside = (labels[:, None] == present[:, None, None]) & valid[:, None]
    overlap, own = (probabilities * inside).sum((2, 3)), inside.sum((2, 3))
    score = (2 * overlap + 1) / ((probabilities * valid[:, None]).sum((2, 3)) + own + 1)
    occurs = own > 0
    return ((1 - score) * occurs).sum(), occurs.sum().to(score.dtype)


def lovasz_softmax(probabilities: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Lovasz-Softmax (Berman et al. 2018), summed over the images and the classes that occur in each, and the number
    of these pairs. It is a smooth extension of 1 - IoU: small classes and thin things count as IoU counts them.

    probabilities [B, C, H, W], labels int64 [B, H, W], valid [B, H, W].
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
    """How much each further wrong pixel [N], 1 inside the class and 0 outside, adds to 1 - IoU."""
    intersection = inside.sum() - inside.cumsum(0)
    union = inside.sum() + (1 - inside).cumsum(0)
    return torch.diff(1 - intersection / union, prepend=inside.new_zeros(1))


def border_mask(labels: Tensor, valid: Tensor, distance: int) -> Tensor:
    """Which pixels have another class within ``distance`` pixels (a square window): bool [B, H, W].

    labels: int64 [B, H, W]; pixels that are not valid make no border.
    """
    known = valid[:, None]
    ids = labels[:, None].to(torch.float32)
    window = 2 * distance + 1
    highest = F.max_pool2d(ids.masked_fill(~known, -torch.inf), window, 1, distance)
    lowest = -F.max_pool2d((-ids).masked_fill(~known, -torch.inf), window, 1, distance)
    return ((highest > lowest) & known)[:, 0]


def laplace_nll(log_error: Tensor, log_scale: Tensor) -> Tensor:
    """Negative log-likelihood of Laplace-distributed errors, element-wise, without its constant log 2."""
    return log_error.abs() * (-log_scale).exp() + log_scale
