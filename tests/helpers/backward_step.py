"""One step of the engine's backward pass."""

from __future__ import annotations

from typing import Any

import torch

from perception.engine.backward import compute_gradients
from perception.engine.distributed import reduce_losses
from perception.mtl.balancers import BALANCERS, build_balancer


def step(name: str, model: Any, given: Any = None, step: int = 0, balancer: Any = None, **options: Any):
    """The engine's backward pass: what it did, the gradients by name, and the balancer."""
    look = {key: options.pop(key) for key in ("with_weights", "log_gradients") if key in options}
    model.zero_grad()
    torch.manual_seed(0)
    found = model.compute_loss_terms(given, cut_graph=True)
    joint = reduce_losses(found, options.pop("labeled", None) or dict.fromkeys(found.terms, 2), {})
    balancer = balancer or build_balancer(BALANCERS[name].Config(**options), tuple(found.terms))
    done = compute_gradients(balancer, model, found, joint, step, **look)
    assert not done.problem
    return done, {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}, balancer
