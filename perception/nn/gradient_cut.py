"""Cut the graph of a training pass, so that each task's gradient is available before they are summed.

A cut pass has three parts. **Lower**: from the images to the features where the tasks' gradients meet. **Middle**: from
there to the features that each head reads (fusion, experts, a neck per task; empty in the simplest network). **Heads**.
At both cuts the part above reads detached copies. A copy receives only the gradient of its direct readers. If one
feature is computed from another (PAN, BiFPN), that path lies in the part below and is traversed once. The backward pass
runs part by part, see `perception.engine.backward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

CutPairs: TypeAlias = list[tuple[Tensor, Tensor]]
"""Pairs of a tensor in the part below, and its detached copy, which the part above reads."""

CutFunction: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class GraphCuts:
    """The cuts of one pass.

    Attributes:
        lower: cuts between the lower part and the middle.
        upper: task -> cuts between the middle and the head of that task. Each task reads its own copies.
        trunk_penalties: names of the penalties of the lower part and the middle. All others come from the heads.
    """

    lower: CutPairs = field(default_factory=list)
    upper: dict[str, CutPairs] = field(default_factory=dict)
    trunk_penalties: frozenset[str] = frozenset()

    def cut_trunk(self, tensor: Tensor) -> Tensor:
        """Cut a tensor below the middle and return the copy that the middle reads."""
        return cut_tensor(tensor, self.lower)

    def cut_pyramids(self, pyramids: Mapping[str, Mapping[int, Tensor]]) -> dict[str, dict[int, Tensor]]:
        """Cut pyramids below the heads and return the copies: task -> {stride: features}."""
        return {
            name: {stride: cut_tensor(tensor, self.upper.setdefault(name, [])) for stride, tensor in pyramid.items()}
            for name, pyramid in pyramids.items()
        }


def cut_tensor(tensor: Tensor, pairs: CutPairs) -> Tensor:
    """Return a detached copy (same memory) that collects its own gradient, or the tensor itself if it needs none."""
    if not tensor.requires_grad:
        return tensor
    pairs.append((tensor, tensor.detach().requires_grad_()))
    return pairs[-1][1]


def no_cut(tensor: Tensor) -> Tensor:
    """Return the tensor unchanged: one graph from the losses to the images."""
    return tensor
