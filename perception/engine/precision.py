"""How a network computes: number format, device, determinism."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, TypeAlias

import torch

from perception.engine.depthwise import FastDepthwise
from perception.ops.denormals import flush_denormals
from perception.types import Annotation, Batch, PerceptionError

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Context in which the network runs; "auto" means bfloat16 if the device supports it in hardware."""
    enabled = precision == "bfloat16" or (precision == "auto" and has_bfloat16(device))
    depthwise = FastDepthwise() if enabled and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled), depthwise:
        yield


@contextmanager
def deterministic_mode(device: torch.device, threads: int | None) -> Iterator[None]:
    """Context with bit-identical results on the CPU for a given number of threads.

    Sums are split over the threads, so another number of threads changes the last bits. Denormal numbers are flushed to
    zero, because they make CPUs an order of magnitude slower. On CUDA, kernels are not forced to be deterministic.
    """
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if threads:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with flush_denormals():
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]


def move_to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch to ``device``; numpy arrays (targets of an evaluation) stay."""
    images = batch.images.to(device, non_blocking=True)
    if device.type == "cpu":
        return dataclasses.replace(batch, images=images)
    annotations = {
        name: [_move_annotation(item, device) for item in items] for name, items in batch.annotations.items()
    }
    return dataclasses.replace(batch, images=images, annotations=annotations)


def _move_annotation(annotation: Annotation | None, device: torch.device) -> Annotation | None:
    if annotation is None:
        return None
    fields = {field.name: getattr(annotation, field.name) for field in dataclasses.fields(annotation)}
    tensors = {
        name: value.to(device, non_blocking=True) for name, value in fields.items() if isinstance(value, torch.Tensor)
    }
    return dataclasses.replace(annotation, **tensors)


@contextmanager
def explain_out_of_memory(batch_size: int, image_shape: tuple[int, ...] | None = None) -> Iterator[None]:
    """Convert out-of-memory errors to a PerceptionError that names the setting to reduce."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not memory and "not enough memory" not in text and "can't allocate memory" not in text:
            raise
        size = f" for images of {tuple(image_shape)}" if image_shape else ""
        reason = text.splitlines()[0] if text else type(error).__name__
        half = max(1, batch_size // 2)
        raise PerceptionError(
            f"Out of memory with batch_size {batch_size}{size}: {reason}. "
            f"Try train.batch_size={half}, or a smaller data.size."
        ) from error
