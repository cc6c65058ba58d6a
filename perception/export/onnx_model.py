"""An exported graph in the place of a network, for whoever measures networks."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from perception.model import MultiTaskModel
from perception.runtime.session import ModelRunner


class OnnxModel:
    """Predicts by ``run``; its tasks, their metrics and their specs are those of ``model``, which it was made from."""

    training = False

    def __init__(self, model: MultiTaskModel | SimpleNamespace, run: ModelRunner) -> None:
        self.tasks, self.specs = model.tasks, model.specs
        self._run_graph, self._parameters = run, model.parameters

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the model: they say on which device it is."""
        return self._parameters()

    def predict(self, images: Tensor, label_spaces: object = None) -> dict[str, Tensor]:
        """As `perception.model.Perception.predict`; segmentation masks as they are, whatever classes a source knows."""
        found = self._run_graph(images.numpy())
        return {name: torch.from_numpy(value) for name, value in found.items() if ".raw." not in name}

    def eval(self) -> OnnxModel:
        """Itself: it never trains."""
        return self

    def train(self, mode: bool = True) -> OnnxModel:
        """Itself: it never trains."""
        return self
