"""The backward pass of a step: from the losses of the joint batch to the gradients of the update.

Symbols: tasks t with losses L_t; the balancer's scalar S(L_1, ..., L_T); its weights w_t; the features z_t that the
head of task t reads; h_t, the parameters of that head; p, any parameter below the heads.

1. Heads.    One pass through all heads, which read detached copies of their features, yields
                 dS/dh_t = dS/dL_t * dL_t/dh_t        and        g_t = dS/dL_t * dL_t/dz_t.
2. Compare.  Where the balancer compares gradients (`GradientSpace`), at x:
                 J_t = g_t * dz_t/dx                  Gramian  G_st = <J_s, J_t>         w = balancer(G).
             At x = the shared features, J_t is known from 1 and costs nothing. At parameters, each task costs one more
             pass down to x.
3. Rest.     One pass from the features down propagates the weighted sum:
                 dS/dp = sum_t w_t * g_t * dz_t/dp.
             Without weights (w_t = 1) this is the plain gradient of S, to the last bit, whether 2 was computed or not.

Parameters below the heads that belong to one task get w_t = 1 by default: a common direction is needed only where the
tasks meet. With ``heads: weighted``, w_t applies to everything of task t, its head included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from perception.engine import distributed
from perception.engine.distributed import JointLosses
from perception.model import LossOutput, MultiTaskModel
from perception.mtl.balancer import Balancer, GradientSpace
from perception.mtl.task_gradients import compute_gramian, describe_gradients
from perception.nn.gradient_cut import BackwardPass
from perception.types import ConfigError

LOG_SPACE: GradientSpace = "late"
"""Where gradients are measured for the log if the balancer does not define a gradient space."""
_SPACE_NAMES = {"features": "features", "last_shared": "last layers", "late": "late layers", "all_shared": "parameters"}


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
    model: MultiTaskModel,
    local: LossOutput,
    joint: JointLosses,
    step: int,
    *,
    with_weights: bool = False,
    log_gradients: bool = False,
) -> BackwardResult:
    """Balance the tasks and add the gradients of the joint batch to ``.grad`` of model and balancer.

    Args:
        balancer: combines the losses and weights the gradients.
        model: the network.
        local: output of this rank's forward pass with a cut graph.
        joint: the same losses, reduced over the ranks.
        step: index of the step, from 0.
        with_weights: fill `BackwardResult.weights`.
        log_gradients: measure the tasks' gradients even if the balancer does not need them.

    Raises:
        ConfigError: the balancer compares gradients of tasks that share nothing, or it would weight the distillation
            losses of old tasks together with their heads.
    """
    assert local.graph_cuts is not None, "expected a cut graph: compute_loss_terms(..., cut_graph=True)"
    _require_no_weighted_penalties(balancer, local, joint)
    present = joint.present
    # A loss whose parameters are all frozen still contributes to the balancer's scalar.
    every = {name: loss if loss.requires_grad else loss.requires_grad_() for name, loss in joint.losses.items()}
    losses = {name: every[name] for name in present}
    if present:
        balancer.observe(losses, step)
    total = balancer(every, present, step)
    result = BackwardResult(torch.stack([total.detach(), *map(torch.detach, joint.penalties.values())]).sum())
    compares = bool(present) and balancer.needs_gramian(present, step)
    space: GradientSpace = balancer.space or LOG_SPACE
    measures = compares or (bool(present) and log_gradients)
    places = _select_gradient_inputs(model, local, space, required=compares) if measures else []
    factors = torch.ones(len(present), dtype=torch.float64)
    if places or balancer.has_shared_weights or with_weights:
        factors = _compute_loss_factors(total, losses)
    backward = BackwardPass(local.graph_cuts, total, joint.penalties)
    if places:
        gramian = _compute_joint_gramian([backward.task_gradient(name, places) for name in present], places, space)
        broken = [name for name, square in zip(present, gramian.diagonal(), strict=True) if not square.isfinite()]
        result.problem = f"gradient of {', '.join(broken)} is not finite" if broken else ""
        result.gradient_stats = describe_gradients(gramian, present, factors)
        if compares and not broken:
            balancer.observe_gramian(gramian, losses, step)
    weighs = balancer.has_shared_weights and present and not result.problem
    weights = balancer.shared_weights(present) if weighs else None
    _run_rest(backward, model, balancer, {} if weights is None else dict(zip(present, weights.tolist(), strict=True)))
    if with_weights:
        effective = factors if weights is None else factors * weights
        result.weights = {f"weight/{name}": float(weight) for name, weight in zip(present, effective, strict=True)}
    return result


def _run_rest(backward: BackwardPass, model: MultiTaskModel, balancer: Balancer, weights: Mapping[str, float]) -> None:
    """Run the rest of the backward pass with the balancer's weights; none (``weights`` is empty) is the plain sum."""
    if not weights:
        backward.run_rest({})
    elif balancer.has_head_weights:  # w_t applies to all parameters of task t
        backward.run_rest(weights)
        for name, weight in weights.items():
            for parameter in model.tasks[name].parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(weight)
    else:  # w_t applies where the tasks meet
        own = list(model.task_specific_parameters())
        backward.run_rest(weights, own, list(model.shared_parameters()) if own else ())


def _require_no_weighted_penalties(balancer: Balancer, local: LossOutput, joint: JointLosses) -> None:
    assert local.graph_cuts is not None
    if balancer.has_head_weights and set(joint.penalties) - local.graph_cuts.trunk_penalties:
        raise ConfigError(
            "balance.heads is 'weighted', but this training distills old tasks through their heads, so their "
            "losses would be weighted too. Use heads: plain."
        )


def _select_gradient_inputs(
    model: MultiTaskModel, local: LossOutput, space: GradientSpace, required: bool
) -> list[Tensor]:
    """The tensors at which gradients are compared; empty if frozen, or if nothing is shared and it is optional."""
    shared: list[Tensor] = []
    match space:
        case "features":
            shared += local.shared_features
        case "last_shared":
            shared += model.last_shared_parameters()
        case "late":
            shared += model.late_shared_parameters()
        case "all_shared":
            shared += model.shared_parameters()
    if not shared and required:
        raise ConfigError(
            f"balance.space is '{space}', but the tasks of this network share no {_SPACE_NAMES[space]}, so their "
            "gradients cannot be compared there. Use space 'all_shared', a loss balancer (uncertainty, famo, ...) or a "
            "network with shared parts."
        )
    return [place for place in shared if place.requires_grad]


def _compute_loss_factors(total: Tensor, losses: Mapping[str, Tensor]) -> Tensor:
    """dS/dL_t of each present task, float64 on the CPU."""
    found = torch.autograd.grad(total, list(losses.values()), retain_graph=True, allow_unused=True)
    return torch.stack([total.new_zeros(()) if factor is None else factor for factor in found]).detach().double().cpu()


def _compute_joint_gramian(
    gradients: list[tuple[Tensor | None, ...]], places: Sequence[Tensor], space: GradientSpace
) -> Tensor:
    """Inner products of the joint batch's task gradients at ``places``, on the CPU, equal on all ranks.

    Ranks hold features of different images, so their Gramians add up. At parameters, gradients are averaged first.
    """
    if space == "features":
        local = compute_gramian(gradients).to(places[0].device)
        return distributed.all_reduce_sum(local).cpu() / distributed.world_size() ** 2
    if distributed.world_size() > 1:
        dense = [
            [torch.zeros_like(x) if g is None else g for g, x in zip(own, places, strict=True)] for own in gradients
        ]
        gradients = [tuple(distributed.all_reduce_mean(own)) for own in dense]
    return compute_gramian(gradients).cpu()
