"""The backward pass of a step: from the losses of the joint batch to the gradients of the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from perception.engine import distributed
from perception.engine.distributed import JointLosses
from perception.model import Losses
from perception.mtl.balancer import Balancer, Space
from perception.mtl.task_gradients import Gradients, describe, gramian, own_leaves, task_gradients, weighted
from perception.types import ConfigError


@dataclass(slots=True)
class Differentiated:
    """What the backward pass came to.

    total:   the scalar that heads descend, penalties included
    weights: "weight/<task>": what each task's gradient was multiplied with where tasks share; empty unless asked for
    looks:   of the tasks' gradients, see `perception.mtl.task_gradients.describe`; empty where they were not taken
    problem: the gradient that is not finite; "" if all are
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

    Heads always descend the balancer's scalar. Where the balancer weighs gradients against each other, their weights
    act from the features that tasks share downwards.

    found: of this rank's pass, with its graph. joint: the same, joined. look: take the tasks' gradients in the last
    shared layers, for the log, where the balancer does not ask for them itself

    Raises ConfigError where the balancer compares gradients of tasks that share nothing.
    """
    present = tuple(name for name, count in joint.labelled.items() if count)
    # Where all that a loss depends on rests, it still has its say in the scalar.
    learning = {name: loss if loss.requires_grad else loss.requires_grad_() for name, loss in joint.losses.items()}
    joint = joint._replace(losses=learning)
    losses = {name: joint.losses[name] for name in present}
    if present:
        balancer.observe(losses, step)
    total = balancer(joint.losses, present, step)
    result = Differentiated(float(torch.stack([total.detach(), *map(torch.detach, joint.penalties.values())]).sum()))
    wants = bool(present) and balancer.wants_gramian(present, step)
    space: Space = (balancer.space if wants else None) or "last_shared"
    places = _places(model, found, space, required=wants) if present and (wants or look) else []
    if not present or not (places or balancer.weighs or with_weights):
        _sum(total, joint.penalties).backward()
        return result
    factors = _factors(total, losses)
    backward = _Backward(model, balancer, found, total, factors, joint, present)
    if places:
        products = backward.gramian(places, space)
        result.problem = _not_finite(products, present)
        result.looks = describe(products, present, factors)
        if wants and not result.problem:
            balancer.compare(products, losses, step)
    weights = balancer.shared_weights(present) if balancer.weighs and not result.problem else None
    backward.finish(weights)
    if with_weights:
        effective = factors if weights is None else factors * weights
        result.weights = {f"weight/{name}": float(weight) for name, weight in zip(present, effective, strict=True)}
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


def _factors(total: Tensor, losses: Mapping[str, Tensor]) -> Tensor:
    """What the scalar multiplies each present task's gradient with, float64 on the CPU."""
    found = torch.autograd.grad(total, list(losses.values()), retain_graph=True, allow_unused=True)
    return torch.stack([total.new_zeros(()) if factor is None else factor for factor in found]).detach().double().cpu()


def _not_finite(products: Tensor, present: Sequence[str]) -> str:
    broken = [name for name, square in zip(present, products.diagonal(), strict=True) if not square.isfinite()]
    return f"gradient of {', '.join(broken)} is not finite" if broken else ""


class _Backward:
    """One step's backward pass, with a stop between heads and trunk.

    Where every parameter above the shared features belongs to one task, each head is differentiated by itself, once,
    which leaves the tasks' gradients at the features; the trunk follows in one pass. Where tasks also share layers
    above the features (fusion) or no features at all, the tasks' gradients are taken beside the one pass through all.
    """

    def __init__(
        self,
        model: Any,
        balancer: Balancer,
        found: Losses,
        total: Tensor,
        factors: Tensor,
        joint: JointLosses,
        present: Sequence[str],
    ) -> None:
        self.model, self.total, self.penalties = model, total, joint.penalties
        self.features = [tensor for tensor in found.shared if tensor.requires_grad]
        scales = factors.to(total).unbind()
        self.terms = [joint.losses[name] * scale for name, scale in zip(present, scales, strict=True)]
        absent = [loss * 0.0 for name, loss in joint.losses.items() if name not in present]
        own = own_leaves([*self.terms, *absent], self.features) if self.features else None
        self.at_features: Gradients | None = None
        if own is not None:
            _learn(balancer.parameters(), total)
            self.at_features = [self._head(*pair) for pair in zip([*self.terms, *absent], own, strict=True)]
            self.at_features = self.at_features[: len(self.terms)]

    def _head(self, term: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Differentiate one task down to the features; its own parameters get their gradient on the way."""
        torch.autograd.backward(term, inputs=[*leaves, *self.features], retain_graph=True)
        found = tuple(feature.grad for feature in self.features)
        for feature in self.features:
            feature.grad = None
        return found

    def gramian(self, places: Sequence[Tensor], space: Space) -> Tensor:
        """Inner products of the gradients of the joint batch at ``places``, on the CPU and the same on all ranks.

        Ranks hold different pictures' features, so their Gramians add up; of parameters, parts of one gradient.
        """
        if self.at_features is None:
            gradients = task_gradients(self.terms, places)
        elif space == "features":
            gradients = self.at_features
        else:
            gradients = [self._further(own, places) for own in self.at_features]
        if space == "features":
            return distributed.total(gramian(gradients).to(places[0].device)).cpu() / distributed.world() ** 2
        if distributed.world() > 1:
            gradients = [tuple(distributed.mean(_dense(own, places))) for own in gradients]
        return gramian(gradients).cpu()

    def _further(self, own: Sequence[Tensor | None], places: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """From a task's gradient at the features to that in the layers below."""
        pairs = [
            (feature, gradient) for feature, gradient in zip(self.features, own, strict=True) if gradient is not None
        ]
        if not pairs:
            return (None,) * len(places)
        features, gradients = zip(*pairs, strict=True)
        return torch.autograd.grad(features, places, gradients, retain_graph=True, allow_unused=True)

    def finish(self, weights: Tensor | None) -> None:
        """Give all parameters their gradients; what tasks share gets their sum by ``weights`` (None: 1)."""
        if self.at_features is not None:
            ones = torch.ones(len(self.terms)) if weights is None else weights
            pairs = zip(self.features, weighted(self.at_features, ones), strict=True)
            pairs = [(feature, gradient.to(feature.dtype)) for feature, gradient in pairs if gradient is not None]
            rest = [penalty for penalty in self.penalties.values() if penalty.requires_grad]
            roots, gradients = (
                [*(feature for feature, _ in pairs), *rest],
                [*(g for _, g in pairs), *[None] * len(rest)],
            )
            torch.autograd.backward(roots, gradients)
        elif weights is None:
            _sum(self.total, self.penalties).backward()
        else:
            self._finish_whole(weights)

    def _finish_whole(self, weights: Tensor) -> None:
        shared = [parameter for parameter in self.model.shared_parameters() if parameter.requires_grad]
        places: Sequence[Tensor] = self.features or shared
        if not places:
            return _sum(self.total, self.penalties).backward()
        terms = [term * weight for term, weight in zip(self.terms, weights.to(self.total).unbind(), strict=True)]
        combined = torch.stack([*terms, *self.penalties.values()]).sum()
        wanted = torch.autograd.grad(combined, places, retain_graph=True, allow_unused=True)
        for tensor, gradient in zip(self.features, wanted, strict=False):
            if gradient is not None:
                tensor.register_hook(lambda _, new=gradient: new)
        _sum(self.total, self.penalties).backward()
        if not self.features:
            for parameter, gradient in zip(shared, distributed.mean(_dense(wanted, shared)), strict=True):
                parameter.grad = gradient
        return None


def _learn(parameters: Any, total: Tensor) -> None:
    """Give the balancer's own parameters their gradients. The graph is kept."""
    own: list[nn.Parameter] = [parameter for parameter in parameters if parameter.requires_grad]
    if own:
        torch.autograd.backward(total, inputs=own, retain_graph=True)


def _sum(total: Tensor, penalties: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([total, *penalties.values()]).sum()


def _dense(gradients: Sequence[Tensor | None], places: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(place) if g is None else g for g, place in zip(gradients, places, strict=True)]
