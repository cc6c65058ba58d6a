"""Losses and balancers for the tests of balancing."""

from __future__ import annotations

from typing import Any

import torch

from perception import config
from perception.mtl.balancers import BALANCERS, BalanceConfig, build_balancer, effective_weights
from perception.mtl.gramian import GramianBalancer

TASKS = ("detection", "depth", "classification")


def make(name: str, tasks=TASKS, **settings: Any):
    return build_balancer(config.validate_config(BalanceConfig, {"name": name, **settings}), tasks, seed=5)


def losses(*values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in zip(TASKS, values, strict=False)}


def gramian(seed: int, tasks: int = 3, scale: float = 1.0) -> torch.Tensor:
    gradients = scale * torch.randn(tasks, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return gradients @ gradients.T


def decide(balancer, here, present=TASKS, step: int = 0, products=None) -> torch.Tensor:
    """A step as the engine takes it. products: Gramian of the gradients of the losses themselves"""
    names = tuple(name for name in here if name in present)
    chosen = {name: here[name] for name in names}
    balancer.observe(chosen, step)
    total = balancer(here, present, step)
    if balancer.space and balancer.needs_gramian(names, step):
        factors = torch.tensor(list(effective_weights(total, chosen).values())).double()
        balancer.observe_gramian(products * torch.outer(factors, factors), chosen, step)
    return total


def weights_of(balancer, here, present=TASKS, step: int = 0, products=None) -> list[float]:
    """What each present task's gradient is multiplied with."""
    names = tuple(name for name in here if name in present)
    total = decide(balancer, here, present, step, products)
    factors = list(effective_weights(total, {name: here[name] for name in names}).values())
    shared = balancer.shared_weights(names)
    return factors if shared is None else (torch.tensor(factors).double() * shared).tolist()


CONFLICT = [name for name, kind in BALANCERS.items() if issubclass(kind, GramianBalancer)]
