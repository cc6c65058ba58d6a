"""One process or many (torchrun): the few collective operations that training and evaluation need.

Every function works without a process group, where it does nothing. The group exists only where torchrun set
``WORLD_SIZE`` above 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from perception.types import Batch

T = TypeVar("T")


@contextmanager
def session(device: str = "auto") -> Iterator[torch.device]:
    """The device of this process, with a process group around it under torchrun (nccl on CUDA, gloo on the CPU).

    device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1"
    """
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if chosen.type == "cuda":
        if many or chosen.index is None:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    if not many:
        yield chosen
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and talks."""
    return rank() == 0


def barrier() -> None:
    if world() > 1:
        dist.barrier()


def gather(value: T) -> list[T]:
    """Every rank's picklable object, in rank order, on rank 0; an empty list on the others."""
    if world() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world() if is_main() else None
    dist.gather_object(value, gathered)
    return gathered or []


def everywhere(value: T) -> list[T]:
    """Every rank's picklable object, in rank order, on every rank."""
    return from_main(gather(value))


def from_main(value: T) -> T:
    """Rank 0's picklable object, on every rank."""
    if world() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


class Losses(nn.Module):
    """Makes ``model.losses(batch)`` the forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.model.losses(batch)  # type: ignore[operator]


def losses_of(model: nn.Module) -> nn.Module:
    """A module from a Batch to the model's losses; while it lives, backward averages the gradients over the ranks."""
    losses = Losses(model)
    if world() == 1:
        return losses
    return DistributedDataParallel(losses, broadcast_buffers=False, gradient_as_bucket_view=True)


def joint_losses(
    losses: Mapping[str, Tensor], labelled: Mapping[str, int], flags: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, int], dict[str, int]]:
    """The losses of the joint batch of all ranks, where ranks hold unlike numbers of labelled pictures.

    losses:   task -> mean over this rank's labelled pictures (a connected zero where there is none)
    labelled: task -> number of this rank's labelled pictures
    flags:    name -> number, summed over the ranks on the way

    Returns the losses, the numbers of labelled pictures and the flags, equal on all ranks. Each loss has the **value**
    of the joint mean, sum_r n_r L_r / sum_r n_r, and the **gradient** of this rank's share times the number of ranks:
    the average that DistributedDataParallel takes is then the gradient of any balancer's total over the joint batch.
    A loss that is not finite on one rank is not finite on any.
    """
    if world() == 1:
        return dict(losses), dict(labelled), dict(flags)
    names, count = list(losses), len(losses)
    own = torch.stack([losses[name].detach().double() * (labelled[name] or 1) for name in names])
    numbers = own.new_tensor([labelled[name] for name in names] + list(flags.values()))
    table = torch.cat([own, numbers])
    dist.all_reduce(table)
    sums, totals, summed = table[:count], table[count : 2 * count], table[2 * count :]
    joint: dict[str, Tensor] = {}
    for i, name in enumerate(names):
        total = totals[i].clamp(min=1)
        share = losses[name] * (world() * labelled[name] / float(total))
        joint[name] = share + ((sums[i] / total).to(share.dtype) - share.detach())
    return joint, dict(zip(names, map(int, totals), strict=True)), dict(zip(flags, map(int, summed), strict=True))


def average_batch_norm(model: nn.Module) -> None:
    """Set BatchNorm's running statistics to their mean over the ranks, so that the ranks stay equal."""
    if world() == 1:
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    for buffer, mean in zip(buffers, (flat / world()).split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
