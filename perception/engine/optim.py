"""The optimizer, its parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from perception.types import ConfigError


def lr_factor(step: int, total_steps: int, warmup_steps: int, floor: float) -> float:
    """The factor on the learning rate at ``step`` (from 0): linear warm-up, then half a cosine (SGDR, Loshchilov and
    Hutter 2017) from 1 down to ``floor``, which the last step reaches."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


OPTIMIZERS = tuple(
    name for name in map(str, list_optimizers()) if not name.startswith(("fused", "bnb", "adahessian", "kron"))
)
"""timm's optimizers by name, without those that need other packages or second derivatives."""


def require_known_optimizer(name: str) -> None:
    """Raise ConfigError where there is no optimizer of that name."""
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
    """An optimizer over the trainable parameters: torch's fused AdamW (Loshchilov and Hutter 2019), or by its name one
    of timm's. Raises ConfigError where there is none such.

    Biases, norms and other parameters of one dimension are not decayed, nor are ``extra_parameters`` ones (a
    balancer's).
    Parameters whose dotted name has ``backbone_name`` as a part learn at ``backbone_lr_scale`` times the rate,
    ``extra_parameters``
    ones at ``extra_lr_scale`` times. Each group keeps its factor as "scale"; `set_learning_rate` applies it.
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
    """Give every group its share of ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
