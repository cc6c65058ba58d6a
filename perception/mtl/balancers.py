"""All balancers by name. To add one, write its class and list it here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import Field

from perception.mtl.adaptive import DWA, FAMO, DWAConfig, FAMOConfig, GradNorm, GradNormConfig
from perception.mtl.balancer import Balancer, effective_weights
from perception.mtl.gramian import (
    IMTL,
    IMTLG,
    MGDA,
    AlignedMTL,
    AlignedMTLConfig,
    CAGrad,
    CAGradConfig,
    FairGrad,
    FairGradConfig,
    GradVac,
    GradVacConfig,
    IMTLConfig,
    IMTLGConfig,
    MGDAConfig,
    NashMTL,
    NashMTLConfig,
    PCGrad,
    PCGradConfig,
    UPGrad,
    UPGradConfig,
)  # fmt: skip
from perception.mtl.loss_balancers import (  # fmt: skip
    IMTLL,
    RLW,
    GeometricMean,
    GeometricMeanConfig,
    IMTLLConfig,
    LogSum,
    LogSumConfig,
    RLWConfig,
    Static,
    StaticConfig,
    Uncertainty,
    UncertaintyConfig,
)

__all__ = ["BALANCERS", "BalanceConfig", "Balancer", "StaticConfig", "build_balancer", "effective_weights"]

BALANCERS: dict[str, Any] = {
    "static": Static,
    "uncertainty": Uncertainty,
    "geometric_mean": GeometricMean,  # GLS
    "log_sum": LogSum,
    "rlw": RLW,
    "imtl_l": IMTLL,
    "dwa": DWA,
    "famo": FAMO,
    "gradnorm": GradNorm,
    "imtl": IMTL,
    "imtl_g": IMTLG,
    "pcgrad": PCGrad,
    "gradvac": GradVac,
    "cagrad": CAGrad,
    "mgda": MGDA,
    "nash_mtl": NashMTL,
    "fairgrad": FairGrad,
    "aligned_mtl": AlignedMTL,
    "upgrad": UPGrad,
}

BalanceConfig: TypeAlias = Annotated[
    StaticConfig | UncertaintyConfig | GeometricMeanConfig | LogSumConfig | RLWConfig | IMTLLConfig
    | DWAConfig | FAMOConfig | GradNormConfig
    | IMTLConfig | IMTLGConfig | PCGradConfig | GradVacConfig | CAGradConfig | MGDAConfig | NashMTLConfig
    | FairGradConfig | AlignedMTLConfig | UPGradConfig,
    Field(discriminator="name"),
]  # fmt: skip


def build_balancer(config: Any, tasks: Sequence[str], seed: int = 0) -> Balancer:
    """Build the balancer that a config names.

    Args:
        config: one of the configs in `BalanceConfig`.
        tasks: the recipe's tasks.
        seed: random seed, combined with the step.

    Raises:
        ConfigError: the config names a task that is not in ``tasks``.
    """
    return BALANCERS[config.name](config, tasks, seed)
