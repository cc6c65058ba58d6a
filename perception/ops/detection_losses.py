"""Losses of detectors as pure functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def quality_focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Quality focal loss, element-wise; soft targets in [0, 1] with the shape of the logits (Li et al. 2020, GFL)."""
    weight = (logits.detach().sigmoid() - targets).abs().pow(gamma)
    return weight * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Distribution focal loss (Li et al. 2020, GFL): cross-entropy with the two bins next to the target.

    Args:
        logits: [..., bins].
        targets: [...], in bins, clamped to 0 .. bins - 1.

    Returns:
        [...]. The minimum is the entropy of the two bin weights; 0 if the target is an integer.
    """
    targets = targets.clamp(0, logits.shape[-1] - 1)
    low = targets.floor().long().clamp(max=logits.shape[-1] - 2)
    share = targets - low
    log = logits.log_softmax(-1)
    below, above = (log.gather(-1, (low + step)[..., None])[..., 0] for step in (0, 1))
    return -(1 - share) * below - share * above


def expected_bin(logits: Tensor) -> Tensor:
    """Mean of the distributions over bins, logits [..., bins] to [...] in [0, bins - 1]."""
    bins = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return logits.softmax(-1) @ bins
