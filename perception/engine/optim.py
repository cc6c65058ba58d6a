"""The optimizer, its parameter groups, and the learning rate schedule."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from perception.types import ConfigError


def lr_factor(step: int, total_steps: int, warmup_steps: int, floor: float) -> float:
    """Factor on the learning rate at ``step`` (from 0).

    Linear warm-up, then half a cosine (SGDR, Loshchilov and Hutter 2017) from 1 to ``floor`` at the last step.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


OPTIMIZERS = tuple(
    name for name in map(str, list_optimizers()) if not name.startswith(("fused", "bnb", "adahessian", "kron"))
)
"""Names of timm's optimizers, without those that need other packages or second derivatives."""


def require_known_optimizer(name: str) -> None:
    """Raise ConfigError if there is no optimizer of that name."""
    if name not in OPTIMIZERS:
        near = difflib.get_close_matches(name, OPTIMIZERS, n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else f"Known: {', '.join(OPTIMIZERS)}."
        raise ConfigError(f"train.optimizer: no optimizer '{name}'. {hint}")


def build_optimizer(
    name: str,
    model: nn.Module,
    extra_parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    backbone_lr_scale: float,
    extra_lr_scale: float = 1.0,
    backbone_name: str = "backbone",
) -> torch.optim.Optimizer:
    """Build an optimizer over the trainable parameters.

    Biases, norms and other one-dimensional parameters get no weight decay. Each group keeps its learning rate factor as
    "scale"; `set_learning_rate` applies it.

    Args:
        name: "adamw" is torch's fused AdamW (Loshchilov and Hutter 2019); other names are timm's.
        model: the network.
        extra_parameters: parameters of the balancer, without weight decay.
        lr: learning rate.
        weight_decay: weight decay.
        backbone_lr_scale: factor on the learning rate of the backbone.
        extra_lr_scale: factor on the learning rate of ``extra_parameters``.
        backbone_name: parameters with this part in their dotted name belong to the backbone.

    Raises:
        ConfigError: there is no optimizer of that name.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = backbone_lr_scale if backbone_name in path.split(".") else 1.0
            groups.setdefault((scale, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    own = [parameter for parameter in extra_parameters if parameter.requires_grad]
    plain = [{"params": items, "scale": scale, "weight_decay": decay} for (scale, decay), items in groups.items()]
    if own:
        plain.append({"params": own, "scale": extra_lr_scale, "weight_decay": 0.0})
    if name == "adamw":
        return torch.optim.AdamW(plain, lr=lr, fused=True)
    require_known_optimizer(name)
    return create_optimizer_v2(plain, opt=name, lr=lr, weight_decay=0.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to ``lr`` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
