"""Copy and restore the buffers of a network, such as BatchNorm's running statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def copy_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copy tensors; on a GPU with one kernel launch per dtype."""
    tensors = list(tensors)
    copies = [torch.empty_like(tensor) for tensor in tensors]
    for kind in {tensor.dtype for tensor in tensors}:
        pairs = [pair for pair in zip(copies, tensors, strict=True) if pair[1].dtype == kind]
        torch._foreach_copy_([copy for copy, _ in pairs], [tensor for _, tensor in pairs])
    return copies


def restore_buffers(model: nn.Module, copies: Sequence[Tensor]) -> None:
    """Restore the buffers of a network from `copy_tensors`."""
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), copies, strict=True):
            buffer.copy_(before)
