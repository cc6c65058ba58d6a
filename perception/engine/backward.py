"""The backward pass of a step: from the losses of the joint batch to the gradients of the update.

With tasks t, losses L_t, the balancer's scalar S(L_1, ...) and its weights w_t, the gradient is

    heads and other task-specific parameters:          dS/dL_t * dL_t/dp
    all other parameters (`shared_parameters`):        sum_t  w_t * dS/dL_t * dL_t/dp      (w_t = 1: the gradient of S)

The graph is cut (`perception.nn.gradient_cut`). One pass through the heads yields each task's gradient at the features
that its head reads. One pass through the rest propagates their weighted sum. The per-task gradients at the features
therefore cost nothing extra, and logging them does not change the update by a single bit. Comparing gradients at
parameters costs one extra backward pass per task down to these parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from perception.engine import distributed
from perception.engine.distributed import JointLosses
from perception.model import LossOutput
from perception.mtl.balancer import Balancer, GradientSpace
from perception.mtl.task_gradients import compute_gramian, describe_gradients
from perception.nn.gradient_cut import GraphCuts
from perception.types import ConfigError

LOG_SPACE: GradientSpace = "late"
"""Where gradients are measured for the log if the balancer does not define a gradient space."""


@dataclass(slots=True)
class BackwardResult:
    """Result of the backward pass.

    Attributes:
        total_loss: the scalar that the heads minimize, penalties included; on the device.
        weights: "weight/<task>" -> factor on the task's gradient at shared parameters; empty unless requested.
        gradient_stats: see `perception.mtl.task_gradients.describe_gradients`; empty if not measured.
        problem: names the gradient that is not finite; "" if all are finite.
    """

    total_loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    weights: dict[str, float] = field(default_factory=dict)
    gradient_stats: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def compute_gradients(
    balancer: Balancer,
    model: Any,
    local_losses: LossOutput,
    joint_losses: JointLosses,
    step: int,
    *,
    with_weights: bool = False,
    log_gradients: bool = False,
) -> BackwardResult:
    """Balance the tasks and add the gradients of the joint batch to ``.grad`` of model and balancer.

    Args:
        balancer: combines the losses and weights the gradients.
        model: a `perception.model.MultiTaskModel`.
        local_losses: output of this rank's forward pass with a cut graph.
        joint_losses: the same losses, reduced over the ranks.
        step: index of the step, from 0.
        with_weights: fill `BackwardResult.weights`.
        log_gradients: measure the tasks' gradients even if the balancer does not need them.

    Returns:
        Total loss, weights, gradient statistics, and the problem if a gradient is not finite.

    Raises:
        ConfigError: the balancer compares gradients of tasks that share nothing, or it would weight the distillation
            losses of old tasks together with their heads.
    """
    assert local_losses.graph_cuts is not None, "expected a cut graph: compute_loss_terms(..., cut_graph=True)"
    present = tuple(name for name, count in joint_losses.num_labeled.items() if count)
    # A loss whose parameters are all frozen still contributes to the balancer's scalar.
    learning = {
        name: loss if loss.requires_grad else loss.requires_grad_() for name, loss in joint_losses.losses.items()
    }
    losses = {name: learning[name] for name in present}
    if present:
        balancer.observe(losses, step)
    total = balancer(learning, present, step)
    result = BackwardResult(torch.stack([total.detach(), *map(torch.detach, joint_losses.penalties.values())]).sum())
    wants = bool(present) and balancer.needs_gramian(present, step)
    space: GradientSpace = balancer.space or LOG_SPACE
    places = (
        _select_gradient_inputs(model, local_losses, space, required=wants)
        if present and (wants or log_gradients)
        else []
    )
    factors = (
        _compute_loss_factors(total, losses)
        if places or balancer.has_shared_weights or with_weights
        else torch.ones(len(present))
    )
    if balancer.has_head_weights and set(joint_losses.penalties) - local_losses.graph_cuts.trunk_penalties:
        raise ConfigError(
            "balance.heads is 'weighted', but this training distills old tasks through their heads, so their "
            "losses would be weighted too. Use heads: plain."
        )
    backward = BackwardPass(local_losses.graph_cuts, total, joint_losses.penalties)
    if places:
        products = _compute_joint_gramian([backward.gradient(name, places) for name in present], places, space)
        result.problem = _describe_non_finite(products, present)
        result.gradient_stats = describe_gradients(products, present, factors)
        if wants and not result.problem:
            balancer.observe_gramian(products, losses, step)
    weights = (
        balancer.shared_weights(present) if balancer.has_shared_weights and present and not result.problem else None
    )
    if weights is None:
        backward.finish({})
    else:
        named = dict(zip(present, weights.tolist(), strict=True))
        own = () if balancer.has_head_weights else list(model.task_specific_parameters())
        backward.finish(named, own, list(model.shared_parameters()) if own else ())
        if balancer.has_head_weights:
            _scale_head_gradients(model, named)
    if with_weights:
        effective = factors if weights is None else factors * weights
        result.weights = {f"weight/{name}": float(weight) for name, weight in zip(present, effective, strict=True)}
    return result


def _select_gradient_inputs(model: Any, local_losses: LossOutput, space: GradientSpace, required: bool) -> list[Tensor]:
    """The tensors at which gradients are compared; empty if frozen, or if nothing is shared and it is optional."""
    if space == "features":
        shared = list(local_losses.shared_features)
    else:
        shared = list(getattr(model, _SPACE_PARAMETERS[space])())
    if not shared and required:
        raise ConfigError(
            f"balance.space is '{space}', but the tasks of this network share no {_SPACE_NAMES[space]}, so their "
            "gradients cannot be compared there. Use space 'all_shared', a loss balancer (uncertainty, famo, ...) or a "
            "network with shared parts."
        )
    return [place for place in shared if place.requires_grad]


_SPACE_PARAMETERS = {
    "last_shared": "last_shared_parameters",
    "late": "late_shared_parameters",
    "all_shared": "shared_parameters",
}
_SPACE_NAMES = {"features": "features", "last_shared": "last layers", "late": "late layers", "all_shared": "parameters"}


def _compute_loss_factors(total: Tensor, losses: Mapping[str, Tensor]) -> Tensor:
    """dS/dL_t of each present task, float64 on the CPU."""
    found = torch.autograd.grad(total, list(losses.values()), retain_graph=True, allow_unused=True)
    return torch.stack([total.new_zeros(()) if factor is None else factor for factor in found]).detach().double().cpu()


def _describe_non_finite(products: Tensor, present: Sequence[str]) -> str:
    broken = [name for name, square in zip(present, products.diagonal(), strict=True) if not square.isfinite()]
    return f"gradient of {', '.join(broken)} is not finite" if broken else ""


def _compute_joint_gramian(
    gradients: list[tuple[Tensor | None, ...]], inputs: Sequence[Tensor], space: GradientSpace
) -> Tensor:
    """Inner products of the joint batch's task gradients at ``inputs``, on the CPU, equal on all ranks.

    Ranks hold features of different images, so their Gramians add up. At parameters, gradients are averaged first.
    """
    if space == "features":
        return (
            distributed.all_reduce_sum(compute_gramian(gradients).to(inputs[0].device)).cpu()
            / distributed.world_size() ** 2
        )
    if distributed.world_size() > 1:
        gradients = [tuple(distributed.all_reduce_mean(_fill_missing_gradients(own, inputs))) for own in gradients]
    return compute_gramian(gradients).cpu()


def _fill_missing_gradients(gradients: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(place) if g is None else g for g, place in zip(gradients, inputs, strict=True)]


def _scale_head_gradients(model: Any, weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        for parameter in model.tasks[name].parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(weight)


class BackwardPass:
    """The backward pass of one step, in two stages; the constructor runs the stage through the heads.

    Every parameter gets its gradient in exactly one stage, as DistributedDataParallel requires.

    Args:
        cuts: where the graph is cut.
        total: the balancer's scalar.
        penalties: name -> scalar.
    """

    def __init__(self, cuts: GraphCuts, total: Tensor, penalties: Mapping[str, Tensor]) -> None:
        self.cuts = cuts
        self.trunk_penalties = [p for name, p in penalties.items() if name in cuts.trunk_penalties and p.requires_grad]
        above = [p for name, p in penalties.items() if name not in cuts.trunk_penalties and p.requires_grad]
        reads = [read for pairs in cuts.upper.values() for _, read in pairs]
        penalty_gradients: Sequence[Tensor | None] = [None] * len(reads)
        if above and reads:  # the gradient of a penalty belongs to no task
            penalty_gradients = torch.autograd.grad(
                torch.stack(above).sum(), reads, retain_graph=True, allow_unused=True
            )
        torch.stack([total, *above]).sum().backward()
        self.extra = {id(read): gradient for read, gradient in zip(reads, penalty_gradients, strict=True)}
        self.head_gradients = {
            name: [self._pop_gradient(read) for _, read in pairs] for name, pairs in cuts.upper.items()
        }

    def _pop_gradient(self, read: Tensor) -> Tensor | None:
        """The task's gradient at a feature that its head read."""
        compute_task_gradient, extra = read.grad, self.extra[id(read)]
        read.grad = None
        return (
            compute_task_gradient if compute_task_gradient is None or extra is None else compute_task_gradient - extra
        )

    def gradient(self, name: str, places: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Gradient of one task's term of the scalar at shared features or parameters. Keeps the graph."""
        made = [source for source, _ in self.cuts.upper.get(name, [])]
        reads = [read for _, read in self.cuts.lower]
        if {id(place) for place in places} <= {id(read) for read in reads}:
            return _propagate_gradients(made, self.head_gradients.get(name, []), places)
        found = _propagate_gradients(made, self.head_gradients.get(name, []), [*reads, *places])
        further = _propagate_gradients([source for source, _ in self.cuts.lower], found[: len(reads)], places)
        pairs = zip(found[len(reads) :], further, strict=True)
        return tuple(a if b is None else b if a is None else a + b for a, b in pairs)

    def finish(
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
        reads = [read for _, read in self.cuts.lower]
        own_parameters, shared_parameters = (
            [place for place in some if place.requires_grad] for some in (own_parameters, shared_parameters)
        )
        if own_parameters:
            _accumulate_gradients(*self._collect_roots({}), inputs=own_parameters, retain_graph=True)
            if reads or shared_parameters:  # otherwise all shared parameters are frozen
                _accumulate_gradients(*self._collect_roots(weights), inputs=[*reads, *shared_parameters])
        else:
            _accumulate_gradients(*self._collect_roots(weights))
        reached = [(made, read.grad) for made, read in self.cuts.lower if read.grad is not None]
        _accumulate_gradients([made for made, _ in reached], [gradient for _, gradient in reached])

    def _collect_roots(self, weights: Mapping[str, float]) -> tuple[list[Tensor], list[Tensor | None]]:
        """The features that heads read, with their gradients summed in float32 or better; trunk penalties last."""
        sums: dict[int, tuple[Tensor, Tensor]] = {}
        for name, pairs in self.cuts.upper.items():
            for (made, read), gradient in zip(pairs, self.head_gradients[name], strict=True):
                for term, weight in ((gradient, weights.get(name, 1.0)), (self.extra[id(read)], 1.0)):
                    if term is not None:
                        term = term.to(torch.promote_types(term.dtype, torch.float32)) * weight
                        sums[id(made)] = (made, sums[id(made)][1] + term if id(made) in sums else term)
        roots = [(made, gradient.to(made.dtype)) for made, gradient in sums.values()]
        ends: list[Tensor | None] = [None] * len(self.trunk_penalties)
        return [*(made for made, _ in roots), *self.trunk_penalties], [*(gradient for _, gradient in roots), *ends]


def _propagate_gradients(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Propagate ``gradients`` from ``outputs`` to ``inputs``. Leaves ``.grad`` unchanged and keeps the graph."""
    pairs = [(output, g) for output, g in zip(outputs, gradients, strict=True) if g is not None]
    if not pairs or not inputs:
        return (None,) * len(inputs)
    found, given = zip(*pairs, strict=True)
    return torch.autograd.grad(found, inputs, given, retain_graph=True, allow_unused=True)


def _accumulate_gradients(roots: Sequence[Tensor], gradients: Sequence[Tensor | None], **options: Any) -> None:
    """Backpropagate from the roots, if any, into ``.grad``."""
    if roots:
        torch.autograd.backward(roots, gradients, **options)
