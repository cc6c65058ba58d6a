"""The backward pass of a step: from the losses of the joint batch to the gradients of the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from perception.engine import distributed
from perception.engine.distributed import JointLosses
from perception.model import Losses
from perception.mtl.balancer import Balancer, Space, effective_weights
from perception.mtl.task_gradients import Gradients, describe, gramian, task_gradients, weighted
from perception.types import ConfigError


@dataclass(slots=True)
class Differentiated:
    """What the backward pass came to.

    total:   the scalar that was differentiated, penalties included
    weights: "weight/<task>": what each task's gradient was multiplied with; empty unless asked for
    looks:   of the tasks' gradients, see `perception.mtl.task_gradients.describe`; empty where they were not taken
    problem: the gradient that is not finite, and then nothing was differentiated; "" if all were
    """

    total: float = 0.0
    weights: dict[str, float] = field(default_factory=dict)
    looks: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def differentiate(
    balancer: Balancer,
    model: Any,
    found: Losses,
    joint: JointLosses,
    step: int,
    *,
    with_weights: bool = False,
    look: bool = False,
) -> Differentiated:
    """Let the balancer decide and add the gradients of the joint batch to ``.grad`` of model and balancer.

    Where the balancer weighs gradients, each passes on its weight from the features that tasks share downwards; heads
    get their own gradient unweighted. This takes one backward pass through the trunk, and nothing of it is stored.

    found: of this rank's pass, with its graph. joint: the same, joined. look: take the tasks' gradients for the log
    though the balancer does not ask for them

    Raises ConfigError where the balancer compares gradients of tasks that share nothing.
    """
    present = tuple(name for name, count in joint.labelled.items() if count)
    losses = {name: joint.losses[name] for name in present}
    result, gradients, products = Differentiated(), None, None
    wants = bool(present) and balancer.space is not None and balancer.wants_gramian(present, step)
    space: Space = (balancer.space if wants else None) or "features"
    if present and (wants or look):
        places = _places(model, found, space, required=wants)
        if places:
            gradients = task_gradients(losses.values(), places)
            products = _joint_gramian(gradients, places, space)
            broken = [name for name, own in zip(present, products.diagonal(), strict=True) if not own.isfinite()]
            if broken:
                return Differentiated(problem=f"gradient of {', '.join(broken)} is not finite")
            result.looks = describe(products, present)
    moving = products is not None or not wants  # nothing that tasks share is trained where it is frozen
    if present:
        balancer.observe(losses, step, products if wants else None)
    total = balancer(joint.losses, present, step)
    weights = balancer.shared_weights(present) if present and moving else None
    if with_weights and present:
        shares = (
            effective_weights(total, losses) if weights is None else dict(zip(present, weights.tolist(), strict=True))
        )
        result.weights = {f"weight/{name}": weight for name, weight in shares.items()}
    whole = torch.stack([total, *joint.penalties.values()]).sum()
    if weights is None:
        whole.backward()
    else:
        at_features = gradients if space == "features" else None
        _backward_weighted(model, found, whole, losses, joint.penalties, weights, at_features)
    result.total = float(whole.detach())
    return result


def _places(model: Any, found: Losses, space: Space, required: bool) -> list[Tensor]:
    """What the gradients are taken at; empty where it is frozen, or where nothing is shared and it is not required."""
    if space == "features":
        shared = list(found.shared)
    else:
        shared = list(model.last_shared_parameters() if space == "last_shared" else model.shared_parameters())
    if not shared and required:
        raise ConfigError(
            f"balance.space is '{space}', but this network's tasks share no {_NAMES[space]}: their gradients never "
            "meet there. Take space 'params', a balancer of losses (uncertainty, famo, ...), or a network that shares."
        )
    return [place for place in shared if place.requires_grad]


_NAMES = {"features": "features", "last_shared": "last layers", "params": "parameters"}


def _joint_gramian(gradients: Gradients, places: Sequence[Tensor], space: Space) -> Tensor:
    """The Gramian of the joint batch, on the CPU and the same on all ranks.

    Ranks hold different pictures' features, so their Gramians add up; of parameters they hold parts of one gradient.
    """
    if space != "features" and distributed.world() > 1:
        whole = [
            [torch.zeros_like(p) if g is None else g for g, p in zip(own, places, strict=True)] for own in gradients
        ]
        return gramian([tuple(distributed.mean(own)) for own in whole]).cpu()
    return distributed.total(gramian(gradients).to(places[0].device)).cpu() / distributed.world() ** 2


def _backward_weighted(
    model: Any,
    found: Losses,
    whole: Tensor,
    losses: Mapping[str, Tensor],
    penalties: Mapping[str, Tensor],
    weights: Tensor,
    gradients: Gradients | None,
) -> None:
    """Differentiate ``whole``, but give what is shared the weighted sum of the tasks' gradients, and the penalties'."""
    features = [tensor for tensor in found.shared if tensor.requires_grad]
    shared = [parameter for parameter in model.shared_parameters() if parameter.requires_grad]
    places: Sequence[Tensor] = features or shared
    terms = [loss * weight for loss, weight in zip(losses.values(), weights.to(whole).unbind(), strict=True)]
    if features and gradients is not None:
        wanted = _plus(weighted(gradients, weights), _gradient([*penalties.values()], places))
    else:
        wanted = _gradient([*terms, *penalties.values()], places)
    if features:
        for tensor, gradient in zip(features, wanted, strict=True):
            if gradient is not None:
                tensor.register_hook(lambda old, new=gradient: new.to(old.dtype))
        whole.backward()
        return
    whole.backward()
    joined = distributed.mean([torch.zeros_like(p) if g is None else g for g, p in zip(wanted, shared, strict=True)])
    for parameter, gradient in zip(shared, joined, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(gradient)


def _gradient(scalars: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor | None]:
    scalars = [scalar for scalar in scalars if scalar.requires_grad]
    if not scalars:
        return [None] * len(places)
    return list(torch.autograd.grad(torch.stack(scalars).sum(), places, retain_graph=True, allow_unused=True))


def _plus(ones: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [
        other if one is None else one if other is None else one + other for one, other in zip(ones, others, strict=True)
    ]
