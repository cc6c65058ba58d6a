"""Collation of samples to a batch, in two steps: a worker packs, the training process unpacks.

Every tensor that is sent between processes needs a file descriptor. Therefore only a few large tensors in shared memory
are sent (the images, the stacked maps of a task), and small arrays are copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from perception.types import Annotation, Batch, DataError, DenseMap, ImageLabel, Instances, LabelSpace, Sample


@dataclass
class PackedBatch:
    """A batch in the form that a worker sends.

    Attributes:
        images: uint8 RGB [B, 3, H, W].
        samples: the samples without images and maps.
        dense_maps: task -> (indices of the labeled samples, their stacked values, their stacked valid masks, their
            label spaces).
        skipped: id -> reason, for all images that the worker's mixture has skipped so far.
    """

    images: Tensor
    samples: list[Sample]
    dense_maps: dict[str, tuple[list[int], Tensor, Tensor, list[LabelSpace | None]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def collate(samples: Sequence[Sample], tasks: Sequence[str]) -> Batch:
    """Join samples of one image size to a batch. Annotations become tensors if the sample has no ``transform``."""
    return unpack_batch(pack_batch(samples, tasks), tasks)


def pack_batch(samples: Sequence[Sample], tasks: Sequence[str]) -> PackedBatch:
    """Run the worker's step of `collate`."""
    height, width = samples[0].image.shape[:2]
    if any(sample.image.shape != (height, width, 3) for sample in samples):
        raise ValueError(f"Images of {', '.join(str(sample.image.shape) for sample in samples)} cannot make one batch.")
    images = _allocate_shared((len(samples), 3, height, width), torch.uint8)
    for target, sample in zip(images.numpy(), samples, strict=True):
        cv2.split(sample.image, list(target))
    packed = PackedBatch(images, [])
    for sample in samples:
        kept = {task: sample.annotations.get(task) for task in tasks}
        packed.samples.append(Sample(None, kept, sample.camera, sample.transform, sample.id, sample.source))
    for task in tasks:
        maps = {
            i: annotation
            for i, sample in enumerate(packed.samples)
            if sample.transform is None and isinstance(annotation := sample.annotations[task], DenseMap)
        }
        if maps:
            values, valid = (_stack_shared([getattr(m, part) for m in maps.values()]) for part in ("values", "valid"))
            packed.dense_maps[task] = list(maps), values, valid, [m.label_space for m in maps.values()]
            for i in maps:
                packed.samples[i].annotations[task] = None
    return packed


def _stack_shared(maps: Sequence[NDArray]) -> Tensor:
    kind = np.result_type(*(m.dtype for m in maps))
    stacked = _allocate_shared((len(maps), *maps[0].shape), torch.from_numpy(np.empty(0, kind)).dtype)
    np.stack(maps, out=stacked.numpy())
    return stacked


def _allocate_shared(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor, in a worker in shared memory: sending other tensors copies them to it."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = torch.UntypedStorage._new_shared(size)
    except RuntimeError as error:
        raise DataError(
            f"No {size} bytes of shared memory (/dev/shm) for a batch: {error}. Enlarge it (docker run --shm-size=8g), "
            "or lower train.batch_size or data.workers."
        ) from error
    return torch.empty(0, dtype=dtype).set_(memory).view(shape)  # type: ignore[arg-type]


def unpack_batch(packed: PackedBatch, tasks: Sequence[str]) -> Batch:
    """Run the training process's step of `collate`. Masks stay uint8: the device converts them faster."""
    samples = packed.samples
    annotations = {task: [_to_tensors(sample, task) for sample in samples] for task in tasks}
    for task, (numbers, values, valid, spaces) in packed.dense_maps.items():
        for place, i in enumerate(numbers):
            annotations[task][i] = DenseMap(values[place], valid[place], label_space=spaces[place])
    return Batch(
        images=packed.images,
        annotations=annotations,
        cameras=[sample.camera for sample in samples],
        transforms=[sample.transform for sample in samples],
        ids=[sample.id for sample in samples],
        sources=[sample.source for sample in samples],
    )


def _to_tensors(sample: Sample, task: str) -> Annotation | None:
    annotation = sample.annotations[task]
    if sample.transform is not None:
        return annotation
    match annotation:
        case Instances(boxes, labels, scores, ignore, classes, tracks, partial):
            parts = (boxes, labels, scores, ignore, classes, tracks, partial)
            return Instances(*(None if part is None else torch.tensor(part) for part in parts))
        case ImageLabel(values, classes):
            return ImageLabel(torch.tensor(values), None if classes is None else torch.tensor(classes))
        case _:
            return annotation
