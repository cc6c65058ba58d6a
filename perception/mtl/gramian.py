"""Balancers that weigh the tasks' gradients by their inner products, against conflict.

The weights act where the gradients meet and below, on what tasks share; each head learns by its own loss, as in the
papers. The solvers are torchjd's wherever it needs nothing but scipy. They see the Gramian scaled to a mean diagonal of
1 (gradients at features are tiny numbers, and some solvers take tiny for zero) and without the rows of tasks whose
gradient is exactly zero, which would stop all others in MGDA and CAGrad.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import configuration
from perception.mtl import solvers
from perception.mtl.balancer import Balancer, Gramian, Space, seeded
from perception.mtl.losses_only import scaled_losses

Count = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@configuration
class GramianConfig:
    """space: where gradients are compared: at the "features" that tasks share (for one more backward pass through the
    heads), in the "last_shared" layers, or in all shared "params" (exact, for one more backward pass for each task).
    every: steps for which weights are kept before they are computed anew.
    """

    space: Space = "features"
    every: Count = 1


class GramianBalancer(Balancer):
    """Keeps weights for each set of tasks that were present together, because they hold for that set only."""

    weighs = True

    def __init__(self, config: Any, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        self.config, self.tasks, self.seed = config, tuple(tasks), seed
        self.space = config.space
        self._found: dict[str, tuple[int, list[float]]] = {}

    @abstractmethod
    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """Weights [T] from inner products of non-zero gradients, their mean square 1."""

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        return torch.stack(list(losses.values())).sum()

    def wants_gramian(self, present: tuple[str, ...], step: int) -> bool:
        found = self._found.get(_key(present))
        return found is None or step - found[0] >= self.config.every

    def compare(self, gramian: Gramian, losses: Mapping[str, Tensor], step: int) -> None:
        weights = torch.ones(len(gramian), dtype=gramian.dtype)
        moving = gramian.diagonal().gt(0).nonzero()[:, 0]
        if len(moving):
            some = gramian[moving][:, moving]
            names = [list(losses)[i] for i in moving.tolist()]
            weights[moving] = self.solve(some / some.diagonal().mean(), names, step).to(weights)
        self._found[_key(losses)] = (step, weights.tolist())

    def shared_weights(self, present: tuple[str, ...]) -> Tensor | None:
        found = self._found.get(_key(present))  # none where all that tasks share is frozen
        return None if found is None else torch.tensor(found[1], dtype=torch.float64)

    def get_extra_state(self) -> dict[str, Any]:
        return {"found": dict(self._found)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self._found = dict(state["found"])


def _key(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ",".join(names)


@configuration
class PCGradConfig(GramianConfig):
    name: Literal["pcgrad"] = "pcgrad"


class PCGrad(GramianBalancer):
    """Gradient surgery (Yu et al. 2020): each gradient is projected off those that it conflicts with, in an order that
    is a function of seed and step."""

    Config = PCGradConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        from torchjd.aggregation import PCGradWeighting

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(self.seed, step))
            return PCGradWeighting()(gramian)


@configuration
class GradVacConfig(GramianConfig):
    """beta: how fast the targets of the cosines follow them."""

    name: Literal["gradvac"] = "gradvac"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5


class GradVac(GramianBalancer):
    """Gradient vaccine (Wang et al. 2021): gradients whose cosine is below its moving target are turned up to it, in an
    order that is a function of seed and step. The target of a pair rests while one of the two is absent."""

    Config = GradVacConfig

    def __init__(self, config: GradVacConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.targets = torch.zeros(len(self.tasks), len(self.tasks), dtype=torch.float64)

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        from torchjd.aggregation import GradVacWeighting

        places = torch.tensor([self.tasks.index(name) for name in names])
        weighting = GradVacWeighting(self.config.beta)
        # torchjd keeps the targets of one fixed set of tasks; ours come and go.
        weighting._phi_t = self.targets[places[:, None], places].clone()
        weighting._state_key = (len(names), gramian.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(self.seed, step))
            weights = weighting(gramian)
        self.targets[places[:, None], places] = weighting._phi_t
        return weights

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "targets": self.targets.clone()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        super().set_extra_state(state)
        self.targets = state["targets"].clone()


@configuration
class CAGradConfig(GramianConfig):
    """c: how far the update may be from the mean gradient, in units of its length; 0 = the mean."""

    name: Literal["cagrad"] = "cagrad"
    c: Amount = 0.4


class CAGrad(GramianBalancer):
    """Conflict-averse gradient descent (Liu et al. 2021): near the mean gradient, the update that helps the worst-off
    task most."""

    Config = CAGradConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        return solvers.cagrad(gramian, self.config.c)


@configuration
class MGDAConfig(GramianConfig):
    name: Literal["mgda"] = "mgda"


class MGDA(GramianBalancer):
    """Multiple-gradient descent (Desideri 2012, solved as Sener and Koltun 2018): the shortest convex combination of
    the gradients. It follows the shortest gradient, so a task that has converged slows all others."""

    Config = MGDAConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        from torchjd.aggregation import MGDAWeighting

        return MGDAWeighting()(gramian)


@configuration
class NashMTLConfig(GramianConfig):
    name: Literal["nash_mtl"] = "nash_mtl"


class NashMTL(GramianBalancer):
    """The bargaining solution of Nash-MTL (Navon et al. 2022): weights a > 0 with (G a) a = 1, G in units of its norm.

    It is proportional fairness, FairGrad at alpha 1 (Ban and Ji 2024), and is solved as such.
    """

    Config = NashMTLConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        from torchjd.aggregation import FairGradWeighting

        return FairGradWeighting(1.0)(gramian / gramian.norm())


@configuration
class FairGradConfig(GramianConfig):
    """alpha: 0 = the mean, 1 = proportional fairness, the larger the more the worst-off task counts."""

    name: Literal["fairgrad"] = "fairgrad"
    alpha: Amount = 1.0


class FairGrad(GramianBalancer):
    """Fair resource allocation (Ban and Ji 2024): weights x with G x = x^(-1 / alpha)."""

    Config = FairGradConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        from torchjd.aggregation import FairGradWeighting

        return FairGradWeighting(self.config.alpha)(gramian)


@configuration
class AlignedMTLConfig(GramianConfig):
    """scale: the singular value that all are set to: the least, the median or the root mean square."""

    name: Literal["aligned_mtl"] = "aligned_mtl"
    scale: Literal["min", "median", "rmse"] = "min"


class AlignedMTL(GramianBalancer):
    """Independent component alignment (Senushkin et al. 2023): the principal components of the gradients are made
    equally long, then the mean is taken."""

    Config = AlignedMTLConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        from torchjd.aggregation import AlignedMTLWeighting

        return AlignedMTLWeighting(scale_mode=self.config.scale)(gramian)


@configuration
class UPGradConfig(GramianConfig):
    name: Literal["upgrad"] = "upgrad"


class UPGrad(GramianBalancer):
    """Unconflicting projection (Quinton and Rey 2024): the mean of the gradients, each projected to where it raises no
    loss."""

    Config = UPGradConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        mean = torch.eye(len(gramian), dtype=gramian.dtype) / len(gramian)
        return solvers.project_onto_dual_cone(mean, gramian).sum(0)


@configuration
class IMTLGConfig(GramianConfig):
    name: Literal["imtl_g"] = "imtl_g"


class IMTLG(GramianBalancer):
    """The gradient balance of IMTL (Liu et al. 2021): the update has equal projections onto all gradients."""

    Config = IMTLGConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        from torchjd.aggregation import IMTLGWeighting

        return IMTLGWeighting()(gramian)


@configuration
class IMTLConfig(GramianConfig):
    name: Literal["imtl"] = "imtl"


class IMTL(IMTLG):
    """IMTL whole: heads learn by losses scaled to 1 (-L), what is shared by equal projections of gradients (-G)."""

    Config = IMTLConfig

    def __init__(self, config: IMTLConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.log_scales = nn.ParameterDict({name: torch.tensor(0.0) for name in tasks})

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        return scaled_losses(losses, self.log_scales)
