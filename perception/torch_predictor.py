"""Run a torch network through the interface of the torch-free `perception.runtime.predictor.Predictor`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from perception.model import MultiTaskModel
from perception.runtime.predictor import (
    ImagePredictor,
    Outputs,
    check_input_size,
    check_threads,
    select_specs,
    warm_up,
)


class TorchPredictor(ImagePredictor):
    """Predicts images with a `perception.model.MultiTaskModel`. Puts the model into evaluation mode.

    Args:
        model: the network.
        size: (height, width) of the network input, as in training.
        device: where to run the network; None = where its parameters are.
        tasks: the tasks to compute; None = all.
        threads: torch CPU threads of the whole process; None = unchanged.
    """

    size_divisor = 32

    def __init__(
        self,
        model: MultiTaskModel,
        size: tuple[int, int],
        device: torch.device | str | None = None,
        tasks: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        check_threads(threads)
        if threads is not None:
            torch.set_num_threads(threads)
        self.specs = select_specs(model.specs, tasks)
        self.size = size
        self.model = model.eval() if device is None else model.to(device).eval()
        self._device = next(self.model.parameters()).device

    def letterbox_size(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """As `Predictor.letterbox_size`."""
        check_input_size(size or self.size, self.size_divisor)
        return size or self.size

    def warm_up(self, batch_size: int = 1, size: tuple[int, int] | None = None) -> TorchPredictor:
        """As `Predictor.warm_up`."""
        warm_up(self.run, self.letterbox_size(size), batch_size)
        return self

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Return the decoded outputs, in input pixels, of a letterboxed batch: uint8 RGB [B, 3, H, W]."""
        with torch.inference_mode():
            found = self.model.predict(torch.from_numpy(images).to(self._device), list(self.specs))
        return {name: value.cpu().numpy() for name, value in found.items()}


def hash_weights(model: torch.nn.Module) -> str:
    """Return the SHA-256 of the names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
