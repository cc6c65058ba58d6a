"""Cut the graph of a training pass, so that each task's gradient is available before they are summed.

A cut pass has three parts. **Lower**: from the images to the features where the tasks' gradients meet. **Middle**: from
there to the features that each head reads (fusion, experts, a neck per task; empty in the simplest network). **Heads**.
At both cuts the part above reads detached copies. A copy receives only the gradient of its direct readers. If one
feature is computed from another (PAN, BiFPN), that path lies in the part below and is traversed once. The backward pass
runs part by part, see `perception.engine.backward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
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


class BackwardPass:
    """The backward pass of one step, in two stages; the constructor runs the stage through the heads.

    Every parameter gets its gradient in exactly one stage, as DistributedDataParallel requires.

    Args:
        cuts: where the graph is cut.
        total: the balancer's scalar.
        penalties: name -> scalar.
    """

    def __init__(self, cuts: GraphCuts, total: Tensor, penalties: Mapping[str, Tensor]) -> None:
        self._cuts = cuts
        self._trunk_penalties = [p for name, p in penalties.items() if name in cuts.trunk_penalties and p.requires_grad]
        above = [p for name, p in penalties.items() if name not in cuts.trunk_penalties and p.requires_grad]
        reads = [read for pairs in cuts.upper.values() for _, read in pairs]
        penalty_gradients: Sequence[Tensor | None] = [None] * len(reads)
        if above and reads:  # the gradient of a penalty belongs to no task
            penalty_gradients = torch.autograd.grad(
                torch.stack(above).sum(), reads, retain_graph=True, allow_unused=True
            )
        torch.stack([total, *above]).sum().backward()
        self._penalty_gradients = {id(read): gradient for read, gradient in zip(reads, penalty_gradients, strict=True)}
        self._head_gradients = {
            name: [self._pop_gradient(read) for _, read in pairs] for name, pairs in cuts.upper.items()
        }

    def _pop_gradient(self, read: Tensor) -> Tensor | None:
        """The task's gradient at a feature that its head read."""
        gradient, extra = read.grad, self._penalty_gradients[id(read)]
        read.grad = None
        return gradient if gradient is None or extra is None else gradient - extra

    def task_gradient(self, name: str, places: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Gradient of one task's term of the scalar at shared features or parameters. Keeps the graph."""
        made = [source for source, _ in self._cuts.upper.get(name, [])]
        reads = [read for _, read in self._cuts.lower]
        if {id(place) for place in places} <= {id(read) for read in reads}:
            return _propagate_gradients(made, self._head_gradients.get(name, []), places)
        found = _propagate_gradients(made, self._head_gradients.get(name, []), [*reads, *places])
        further = _propagate_gradients([source for source, _ in self._cuts.lower], found[: len(reads)], places)
        pairs = zip(found[len(reads) :], further, strict=True)
        return tuple(a if b is None else b if a is None else a + b for a, b in pairs)

    def run_rest(
        self,
        weights: Mapping[str, float],
        own_parameters: Sequence[Tensor] = (),
        shared_parameters: Sequence[Tensor] = (),
    ) -> None:
        """Run the second stage, from the features down to the images.

        Args:
            weights: task -> factor on its gradient at shared parameters; 1 if missing.
            own_parameters: task-specific parameters, which get unweighted gradients.
            shared_parameters: parameters that get weighted gradients. Without ``own_parameters`` all parameters do.
        """
        reads = [read for _, read in self._cuts.lower]
        own_parameters, shared_parameters = (
            [place for place in some if place.requires_grad] for some in (own_parameters, shared_parameters)
        )
        if own_parameters:
            _accumulate_gradients(*self._collect_roots({}), inputs=own_parameters, retain_graph=True)
            if reads or shared_parameters:  # otherwise all shared parameters are frozen
                _accumulate_gradients(*self._collect_roots(weights), inputs=[*reads, *shared_parameters])
        else:
            _accumulate_gradients(*self._collect_roots(weights))
        reached = [(made, read.grad) for made, read in self._cuts.lower if read.grad is not None]
        _accumulate_gradients([made for made, _ in reached], [gradient for _, gradient in reached])

    def _collect_roots(self, weights: Mapping[str, float]) -> tuple[list[Tensor], list[Tensor | None]]:
        """The features that heads read, with their gradients summed in float32 or better; trunk penalties last."""
        sums: dict[int, tuple[Tensor, Tensor]] = {}
        for name, pairs in self._cuts.upper.items():
            for (made, read), gradient in zip(pairs, self._head_gradients[name], strict=True):
                for term, weight in ((gradient, weights.get(name, 1.0)), (self._penalty_gradients[id(read)], 1.0)):
                    if term is not None:
                        term = term.to(torch.promote_types(term.dtype, torch.float32)) * weight
                        sums[id(made)] = (made, sums[id(made)][1] + term if id(made) in sums else term)
        roots = [(made, gradient.to(made.dtype)) for made, gradient in sums.values()]
        ends: list[Tensor | None] = [None] * len(self._trunk_penalties)
        return [*(made for made, _ in roots), *self._trunk_penalties], [*(gradient for _, gradient in roots), *ends]


def _propagate_gradients(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Propagate ``gradients`` from ``outputs`` to ``inputs``. Leaves ``.grad`` unchanged and keeps the graph."""
    pairs = [(output, g) for output, g in zip(outputs, gradients, strict=True) if g is not None]
    if not pairs or not inputs:
        return (None,) * len(inputs)
    found, given = zip(*pairs, strict=True)
    return torch.autograd.grad(found, inputs, given, retain_graph=True, allow_unused=True)


def _accumulate_gradients(
    roots: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    inputs: Sequence[Tensor] | None = None,
    retain_graph: bool = False,
) -> None:
    """Backpropagate from the roots, if any, into ``.grad``."""
    if roots:
        torch.autograd.backward(roots, gradients, retain_graph=retain_graph, inputs=inputs)
