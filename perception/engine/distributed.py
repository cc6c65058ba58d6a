"""Collective operations that training and evaluation need, for one process or many (torchrun).

Without a process group the functions do nothing. The group exists only if torchrun set ``WORLD_SIZE`` above 1.
"""

from __future__ import annotations

import gc
import math
import os
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from perception.engine import interrupt, rank_monitor
from perception.model import LossOutput
from perception.nn import norm
from perception.types import Batch, ConfigError, PerceptionError

T = TypeVar("T")


@contextmanager
def process_group(device: str = "auto") -> Iterator[torch.device]:
    """Yield the device of this process; under torchrun inside a process group (nccl on CUDA, gloo on the CPU).

    Args:
        device: "auto" (CUDA if available), "cpu", "cuda" or "cuda:1".

    Yields:
        The device.
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
    store, number, count = next(rendezvous("env://"))
    watch, reason = rank_monitor.start_monitor(store, number, count), ""
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", store=store, rank=number, world_size=count)
    try:
        yield chosen
    except BaseException as error:
        found = watch.explain_failure(error) if isinstance(error, RuntimeError) else None
        reason = f"{type(found or error).__name__}: {found or error}" if isinstance(error, Exception) else ""
        _forget_locals(error)
        if found is None:
            raise
        raise found from error
    finally:
        rank_monitor.stop_monitor(watch, reason)
        gc.collect()  # see `_forget_locals`; modules contain reference cycles
        dist.destroy_process_group()


def _forget_locals(error: BaseException) -> None:
    """Release the local variables of an error's frames, especially DistributedDataParallel.

    If it outlives the process group, its reducer joins the group's threads while holding the GIL. These threads may
    wait for the GIL, so the process would hang.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            left += [one.__cause__, one.__context__]


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process writes files and messages."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def gather(value: T) -> list[T]:
    """Collect every rank's picklable object on rank 0, in rank order; an empty list on the others."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if is_main_process() else None
    dist.gather_object(value, gathered)
    return gathered or []


def all_gather(value: T) -> list[T]:
    """Collect every rank's picklable object on every rank, in rank order."""
    return broadcast(gather(value))


def broadcast(value: T) -> T:
    """Send rank 0's picklable object to every rank."""
    if world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def sum_over_ranks(numbers: Mapping[str, int]) -> dict[str, int]:
    """Sum each number over the ranks; the result is on every rank."""
    found = all_gather(dict(numbers))
    return {name: sum(own[name] for own in found) for name in numbers}


def is_stop_requested() -> bool:
    """Whether this rank, or another that has reported it, received a stop signal.

    Always False in a single process, where signals act at once.
    """
    watch = rank_monitor.active_monitor()
    if watch is None:
        return False
    if interrupt.is_signal_received():
        watch.request_stop()
        return True
    return watch.is_stop_requested()


def run_on_main(function: Callable[[], T]) -> T | None:
    """Run ``function`` on rank 0 and return its result there, None elsewhere; re-raise its PerceptionError everywhere.

    Other exceptions are raised on rank 0 only.
    """
    found, error = None, None
    if is_main_process():
        try:
            found = function()
        except PerceptionError as caught:
            error = caught
    if (shared := broadcast(error)) is not None:
        raise shared
    return found


class LossFunction:
    """Maps a batch to the model's `LossOutput`; with several ranks, backward averages the gradients over them.

    Args:
        model: a `perception.model.MultiTaskModel`.
        partial_tasks: some steps run only some tasks; parameters of the others then get no gradient on any rank.
    """

    def __init__(self, model: nn.Module, partial_tasks: bool = False) -> None:
        self._loss_module = _LossModule(model)
        self._wrapped_module: nn.Module = self._loss_module
        if world_size() > 1:
            self._wrapped_module = DistributedDataParallel(
                self._loss_module,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=partial_tasks,
            )

    def __call__(self, batch: Batch, tasks: Collection[str] | None = None) -> LossOutput:
        """Run the forward pass for ``tasks`` (None: all)."""
        self._wrapped_module(batch, tasks)
        return (
            self._loss_module.outputs.pop()
        )  # with find_unused_parameters, the wrapper returns copies of the features


class _LossModule(nn.Module):
    """Makes ``model.compute_loss_terms`` the forward pass, because DistributedDataParallel wraps the forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.outputs: list[LossOutput] = []

    def forward(self, batch: Batch, tasks: Collection[str] | None) -> LossOutput:
        self.outputs.append(self.model.compute_loss_terms(batch, tasks, cut_graph=True))  # type: ignore[operator]
        return self.outputs[-1]


class JointLosses(NamedTuple):
    """The losses of the joint batch of all ranks.

    Attributes:
        losses: task -> scalar. Its **value** is that of the joint batch. Its **gradient** is this rank's share times
            the number of ranks, so the average over ranks is the gradient of any balancer's total on the joint batch.
        penalties: name -> scalar, the mean over the ranks, with gradients in the same sense.
        numbers: "loss of <task>", "penalty <name>" -> value.
        terms: "<task>/<part>" -> value.
        num_labeled: task -> number of labeled images.
        flags: name -> sum over the ranks.
    """

    losses: dict[str, Tensor]
    penalties: dict[str, Tensor]
    numbers: dict[str, float]
    terms: dict[str, float]
    num_labeled: dict[str, int]
    flags: dict[str, int]

    @property
    def present(self) -> tuple[str, ...]:
        """The tasks that at least one image labels."""
        return tuple(name for name, count in self.num_labeled.items() if count)


def reduce_losses(
    local_losses: LossOutput, num_labeled: Mapping[str, int], flags: Mapping[str, int | Tensor]
) -> JointLosses:
    """Reduce each rank's losses to those of the joint batch, with one all-reduce. All ranks get the same values.

    A loss term is the sum of all totals over the sum of all counts. A loss thus equals that of one process on the
    joint batch, however the labels are distributed over ranks. A non-finite value on one rank is non-finite on all.

    Args:
        local_losses: this rank's losses.
        num_labeled: task -> number of this rank's labeled images.
        flags: name -> number to sum. Tensors stay on their device, so the host waits for the device only once.
    """
    parts = {f"{task}/{name}": part for task, own in local_losses.terms.items() for name, part in own.items()}
    totals = [part.total for part in parts.values()]
    scalars = [*totals, *(part.count for part in parts.values()), *local_losses.penalties.values()]
    there = [flag for flag in flags.values() if isinstance(flag, Tensor)]
    here = [flag for flag in flags.values() if not isinstance(flag, Tensor)]
    table = torch.stack([scalar.detach().double() for scalar in (*scalars, *there)])
    table = torch.cat([table, table.new_tensor([*here, *num_labeled.values()])])
    if world_size() > 1:
        dist.all_reduce(table)
    n = len(parts)
    counts = table[n : 2 * n].clamp(min=1)
    values = table[:n] / counts
    shares = {
        key: part.total * world_size() / count.to(part.total.dtype)
        for (key, part), count in zip(parts.items(), counts, strict=True)
    }
    joined = {key: _replace_value(share, value) for (key, share), value in zip(shares.items(), values, strict=True)}
    losses = {
        task: torch.stack([joined[f"{task}/{name}"] for name in own]).sum() for task, own in local_losses.terms.items()
    }
    sums = dict(zip(local_losses.penalties, table[2 * n :], strict=False))
    penalties = {name: _replace_value(own, sums[name] / world_size()) for name, own in local_losses.penalties.items()}
    scalars = torch.stack([scalar.detach().double() for scalar in (*losses.values(), *penalties.values())])
    names = [*(f"loss of {name}" for name in losses), *(f"penalty {name}" for name in penalties)]
    numbers = torch.cat([scalars, values, table[2 * n + len(sums) :]]).tolist()  # the host waits here
    whole = [round(number) if math.isfinite(number) else 1 for number in numbers[len(names) + n :]]
    flagged = [name for name, flag in flags.items() if isinstance(flag, Tensor)]
    flagged += [name for name in flags if name not in flagged]
    return JointLosses(
        losses,
        penalties,
        dict(zip(names, numbers, strict=False)),
        dict(zip(parts, numbers[len(names) :], strict=False)),
        dict(zip(num_labeled, whole[len(flags) :], strict=True)),
        dict(zip(flagged, whole, strict=False)),
    )


def _replace_value(share: Tensor, value: Tensor) -> Tensor:
    """A scalar with the gradient of ``share`` and exactly the given value, so that all ranks decide alike."""
    return _ReplaceValue.apply(share, value) if world_size() > 1 else share  # type: ignore[return-value]


class _ReplaceValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, value: Tensor) -> Tensor:
        return value.to(share.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> object:
        return gradients[0], None


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over the ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Average tensors of one dtype and device over the ranks, with one all-reduce."""
    if world_size() == 1:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def synchronize_batchnorm(model: nn.Module, enabled: bool = True) -> None:
    """Let every training BatchNorm of ``model`` normalize over the images of all ranks, if ``enabled``.

    Raises:
        ConfigError: the network requires synchronization, but it is disabled.
    """
    if world_size() == 1:
        return
    if enabled:
        norm.synchronize_batchnorm(model)
    elif any(isinstance(module, norm.JointBatchNorm) and module.num_sources for module in model.modules()):
        raise ConfigError(
            "train.sync_batchnorm is false, but model.norm.name 'per_source' needs it with several processes: a source "
            "may be absent from a rank. Set it to true, or use another norm."
        )


def average_statistics(model: nn.Module) -> None:
    """Average running statistics over the ranks, so that they stay equal.

    These are the statistics of unsynchronized BatchNorms and the buffers that a module names in
    ``running_statistics`` (see `Task.running_statistics`).
    """
    if world_size() == 1:
        return
    learning = [module for module in model.modules() if module.training]
    norms = [one for one in learning if isinstance(one, _BatchNorm) and not getattr(one, "synchronized", False)]
    found = [buffer for one in norms for buffer in (one.running_mean, one.running_var)]
    found += [getattr(module, name) for module in learning for name in getattr(module, "running_statistics", ())]
    buffers = [buffer for buffer in found if buffer is not None]
    for buffer, average in zip(buffers, all_reduce_mean(buffers) if buffers else (), strict=True):
        buffer.copy_(average)
