"""Where the graph of a training pass is divided, so that each task's gradient is known before they are added up.

A divided pass has three parts. **Lower**: from the images to the features where the tasks' gradients meet. **Middle**:
from there to the features that each head reads (fusion, experts, a neck for each task; nothing at all in the simplest
network). **Heads**. At both divisions the part above reads detached copies. A copy receives the derivative of what
reads it, and of nothing else: where one feature is computed from another (PAN, BiFPN), the way from the one to the
other lies in the part below and is traveled once. The backward pass goes part by part, see
`perception.engine.backward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

CutPairs: TypeAlias = list[tuple[Tensor, Tensor]]
"""A tensor as the part below made it, and its copy, which the part above reads."""

CutFunction: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class GraphCuts:
    """The divisions of one pass.

    lower:   between the lower part and the middle
    upper:   task -> between the middle and the head of that task; each task reads copies of its own
    trunk_penalties: names of the penalties that the lower part and the middle ask for; all others come from the heads
    """

    lower: CutPairs = field(default_factory=list)
    upper: dict[str, CutPairs] = field(default_factory=dict)
    trunk_penalties: frozenset[str] = frozenset()

    def cut_trunk(self, tensor: Tensor) -> Tensor:
        """The copy of a tensor that the middle reads."""
        return cut_tensor(tensor, self.lower)

    def cut_pyramids(self, pyramids: Mapping[str, Mapping[int, Tensor]]) -> dict[str, dict[int, Tensor]]:
        """The copies of pyramids that the heads read: task -> {stride: features}."""
        return {
            name: {stride: cut_tensor(tensor, self.upper.setdefault(name, [])) for stride, tensor in pyramid.items()}
            for name, pyramid in pyramids.items()
        }


def cut_tensor(tensor: Tensor, pairs: CutPairs) -> Tensor:
    """A detached copy (of the same memory) that collects its own gradient; the tensor itself where it needs none."""
    if not tensor.requires_grad:
        return tensor
    pairs.append((tensor, tensor.detach().requires_grad_()))
    return pairs[-1][1]


def no_cut(tensor: Tensor) -> Tensor:
    """Divides nothing: one graph from the losses to the images."""
    return tensor
