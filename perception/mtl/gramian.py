"""Balancers that weigh the tasks' gradients by their inner products, against conflict.

The weights act where the gradients meet and below, on what tasks share; each head learns by its own loss, as in most
of the papers (`Balancer.has_head_weights`). Methods see the Gramian scaled to a mean diagonal of 1 and without the
rows of
tasks whose gradient is zero, which would stop all others in MGDA and CAGrad. For gradients whose lengths differ by up
to 1e5 and whose Gramian may be of float32, whatever their directions, every method keeps to this:

* weights are finite and do not depend on the unit of the gradients; but for PCGrad and GradVac, which draw an order,
  nor on the order of the tasks;
* the update is zero only where a convex combination of the unit gradients is
  (`perception.mtl.solvers.is_pareto_stationary`):
  there no update lowers all losses (a Pareto-stationary point), and gradients that balance each other cancel;
* where the method promises to raise no loss, a gradient's product with the update is not below -2e-6 times its length
  times the sum of the weighted gradients' lengths.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.mtl import solvers
from perception.mtl.balancer import Balancer, GradientSpace, Gramian, TaskWeightsConfig, derive_seed, split_zero_losses
from perception.mtl.gramian_average import GramianAverage
from perception.mtl.loss_balancers import sum_scaled_losses

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
HeadWeighting = Literal["plain", "weighted"]
"""Whether heads descend their own loss, or their loss times the weight that the shared part gives the task."""


@config_dataclass
class GramianConfig(TaskWeightsConfig):
    """space: where gradients are compared, see `perception.mtl.balancer.Space`.
    update_every: steps for which weights are kept before they are computed anew.
    gramian_decay: how much of a moving average of the Gramian is kept from one Gramian to the next, [0, 1); 0 = none.
    Weights
    are then solved from the average, for any set of tasks that have all been seen, and ``update_every`` counts
    whatever tasks
    are present.
    log_losses: the method works on the logarithms of the losses, that is, on gradients divided by their loss;
    ``weights`` then
    multiply the logarithms. A loss of exactly zero is left out.
    """

    space: GradientSpace = "late"
    update_every: PositiveInt = 1
    gramian_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    log_losses: bool = False


class GramianBalancer(Balancer):
    """Keeps weights for each set of tasks that were present together, because they hold for that set only."""

    has_shared_weights = True

    def __init__(self, config: Any, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.space = config.space
        self._cached_weights: dict[str, tuple[int, list[float]]] = {}
        self._gramian_average = GramianAverage(len(self.tasks), config.gramian_decay) if config.gramian_decay else None
        self._last_solved_step = 0

    @abstractmethod
    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """Weights [T] from inner products of non-zero gradients, their mean square 1."""

    def forward(self, losses: Mapping[str, Tensor], present: Collection[str], step: int) -> Tensor:
        if self.config.log_losses:
            here = {name: loss for name, loss in losses.items() if name in present}
            present = split_zero_losses(here)[0] if here else here
            losses = {name: loss.log() if name in present else loss for name, loss in losses.items()}
        return super().forward(losses, present, step)

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        return torch.stack(list(losses.values())).sum()

    def needs_gramian(self, present: tuple[str, ...], step: int) -> bool:
        found = self._cached_weights.get(_cache_key(present))
        if self._gramian_average is None or found is not None:
            return found is None or step - found[0] >= self.config.update_every
        return (
            not self._gramian_average.has_all(self._weighted_task_indices(present))
            or step - self._last_solved_step >= self.config.update_every
        )

    def observe_gramian(self, gramian: Gramian, losses: Mapping[str, Tensor], step: int) -> None:
        names, diagonal = list(losses), gramian.diagonal()
        moving = diagonal.gt(_ZERO_GRADIENT_RATIO * diagonal.max()).nonzero()[:, 0].tolist()
        weights = torch.ones(len(gramian), dtype=torch.float64)
        if moving:
            some, kept = gramian[moving][:, moving].double(), [names[i] for i in moving]
            if self._gramian_average is not None:
                self._gramian_average.update(self._task_indices(kept), some)
                some = self._gramian_average.compute_average(self._task_indices(kept))
            weights[moving] = self._solve_scaled(some, kept, step)
        if self._gramian_average is not None:
            self._cached_weights, self._last_solved_step = (
                {},
                step,
            )  # what other sets of tasks had is of an older average
        self._cached_weights[_cache_key(losses)] = (step, weights.tolist())

    def _solve_scaled(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        return self.solve(gramian / gramian.diagonal().mean(), names, step).double()

    def shared_weights(self, present: tuple[str, ...]) -> Tensor | None:
        key, places = _cache_key(present), self._weighted_task_indices(present)
        if (
            key not in self._cached_weights
            and self._gramian_average is not None
            and places
            and self._gramian_average.has_all(places)
        ):
            names = [self.tasks[place] for place in places]
            solved = dict(
                zip(
                    names,
                    self._solve_scaled(self._gramian_average.compute_average(places), names, self._last_solved_step),
                    strict=True,
                )
            )
            self._cached_weights[key] = (self._last_solved_step, [float(solved.get(name, 1.0)) for name in present])
        found = self._cached_weights.get(key)  # none where all that tasks share is frozen
        return None if found is None else torch.tensor(found[1], dtype=torch.float64)

    def _task_indices(self, names: Sequence[str]) -> list[int]:
        return [self.tasks.index(name) for name in names]

    def _weighted_task_indices(self, names: Sequence[str]) -> list[int]:
        """Places of the tasks that have a say, and so a gradient."""
        return self._task_indices([name for name in names if self.loss_weights[name]])

    def get_extra_state(self) -> dict[str, Any]:
        memory = (
            {}
            if self._gramian_average is None
            else {"gramian_average": self._gramian_average.state_dict(), "last_solved_step": self._last_solved_step}
        )
        return {"cached_weights": dict(self._cached_weights), **memory}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self._cached_weights = dict(state["cached_weights"])
        if self._gramian_average is not None:
            self._gramian_average.load_state_dict(state["gramian_average"])
            self._last_solved_step = state["last_solved_step"]


_ZERO_GRADIENT_RATIO = 1e-30
"""Squared length, against the greatest, at which a gradient counts as zero."""


def _cache_key(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ",".join(names)


@config_dataclass
class PCGradConfig(GramianConfig):
    name: Literal["pcgrad"] = "pcgrad"


class PCGrad(GramianBalancer):
    """Gradient surgery (Yu et al. 2020): each gradient is projected off those that it conflicts with, in an order that
    is a function of seed and step.

    For two tasks the update raises no loss; for more it may. It is dominated by the longest gradients.
    """

    Config = PCGradConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        return solvers.solve_pcgrad(gramian, torch.Generator().manual_seed(derive_seed(self.seed, step)))


@config_dataclass
class GradVacConfig(GramianConfig):
    """beta: how fast the targets of the cosines follow them."""

    name: Literal["gradvac"] = "gradvac"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5


class GradVac(GramianBalancer):
    """Gradient vaccine (Wang et al. 2021): gradients whose cosine is below its moving target are turned up to it, in an
    order that is a function of seed and step. The target of a pair rests while one of the two is absent.

    It promises nothing: a target may be a conflict. It is dominated by the longest gradients.
    """

    Config = GradVacConfig

    def __init__(self, config: GradVacConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.targets = torch.zeros(len(self.tasks), len(self.tasks), dtype=torch.float64)

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        places = torch.tensor(self._task_indices(names))
        pairs, generator = (places[:, None], places), torch.Generator().manual_seed(derive_seed(self.seed, step))
        weights, self.targets[pairs] = solvers.solve_gradvac(gramian, self.targets[pairs], self.config.beta, generator)
        return weights

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "targets": self.targets.clone()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        super().set_extra_state(state)
        self.targets = state["targets"].clone()


@config_dataclass
class CAGradConfig(GramianConfig):
    """c: how far the update may be from the mean gradient, in units of its length; 0 = the mean."""

    name: Literal["cagrad"] = "cagrad"
    c: NonNegativeFloat = 0.4


class CAGrad(GramianBalancer):
    """Conflict-averse gradient descent (Liu et al. 2021): near the mean gradient, the update that helps the worst-off
    task most.

    For c >= 1 the update raises no loss. For c < 1 it is zero only where the mean gradient is, even where the paper's
    own formula divides by zero (balanced gradients): of the best updates it is the one nearest to the mean. The task
    that gains least is mostly the one with the shortest gradient.
    """

    Config = CAGradConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        return solvers.solve_cagrad(gramian, self.config.c)


@config_dataclass
class MGDAConfig(GramianConfig):
    name: Literal["mgda"] = "mgda"


class MGDA(GramianBalancer):
    """Multiple-gradient descent (Desideri 2012, solved as Sener and Koltun 2018): the shortest convex combination of
    the gradients. It follows the shortest gradient, so a task that has converged slows all others.

    The update raises no loss, and lowers each by at least its own squared length; it is zero where the gradients are
    balanced. The solution is exact, at any ratio of lengths.
    """

    Config = MGDAConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        return solvers.solve_mgda(gramian)


@config_dataclass
class NashMTLConfig(GramianConfig):
    """heads: "plain" = heads descend their own loss; "weighted" = their loss times the task's weight, as the authors'
    code has it (github.com/AvivNavon/nash-mtl minimizes the weighted sum of the losses, heads and all).
    """

    name: Literal["nash_mtl"] = "nash_mtl"
    heads: HeadWeighting = "plain"


class NashMTL(GramianBalancer):
    """The bargaining solution of Nash-MTL (Navon et al. 2022): weights a > 0 with (G a) a = 1, G in units of its norm.

    It is proportional fairness, FairGrad at alpha 1 (Ban and Ji 2024), and is solved as such. All losses fall, and all
    tasks' shares of the update, (G a) a, are the same whatever the scales of the losses: a task with a short gradient
    gets a large weight, its head too where heads are weighted. Where gradients are balanced there is no bargain: these
    cancel, the others go on.
    """

    Config = NashMTLConfig

    def __init__(self, config: NashMTLConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.has_head_weights = config.heads == "weighted"

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        return solvers.solve_fairgrad(gramian / gramian.norm(), 1.0)


@config_dataclass
class FairGradConfig(GramianConfig):
    """alpha: 0 = the mean, 1 = proportional fairness, the larger the more the worst-off task counts.
    heads: "plain" = heads descend their own loss, as in the authors' code (github.com/OptMN-Lab/fairgrad overwrites the
    gradients of what is shared alone); "weighted" = their loss times the task's weight, as LibMTL has it.
    """

    name: Literal["fairgrad"] = "fairgrad"
    alpha: NonNegativeFloat = 1.0
    heads: HeadWeighting = "plain"


class FairGrad(GramianBalancer):
    """Fair resource allocation (Ban and Ji 2024): weights x with G x = x^(-1 / alpha).

    For alpha > 0 all losses fall; where gradients are balanced, these cancel and the others go on. At alpha 1 the
    scales of the losses do not matter; below, long gradients count more, above it short ones.
    """

    Config = FairGradConfig

    def __init__(self, config: FairGradConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.has_head_weights = config.heads == "weighted"

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        return solvers.solve_fairgrad(gramian, self.config.alpha)


@config_dataclass
class AlignedMTLConfig(GramianConfig):
    """scale: the singular value that all are set to: the least, the median or the root mean square."""

    name: Literal["aligned_mtl"] = "aligned_mtl"
    scale: Literal["min", "median", "rmse"] = "min"


class AlignedMTL(GramianBalancer):
    """Independent component alignment (Senushkin et al. 2023): the principal components of the gradients are made
    equally long, then the mean is taken.

    It promises nothing to any one task: where gradients are collinear the update is their mean. It is zero only where
    the mean gradient is. With ``scale: min`` it is as long as the shortest component, at large ratios of lengths tiny.
    Weights may be negative.
    """

    Config = AlignedMTLConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        return solvers.solve_aligned_mtl(gramian, self.config.scale)


@config_dataclass
class UPGradConfig(GramianConfig):
    name: Literal["upgrad"] = "upgrad"


class UPGrad(GramianBalancer):
    """Unconflicting projection (Quinton and Rey 2024): the mean of the gradients, each projected to where it raises no
    loss.

    The update raises no loss, at any ratio of lengths. Long gradients count more: a factor on a loss scales its
    projection.
    """

    Config = UPGradConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        mean = torch.eye(len(gramian), dtype=gramian.dtype) / len(gramian)
        return solvers.project_onto_dual_cone(mean, gramian).sum(0)


@config_dataclass
class IMTLGConfig(GramianConfig):
    name: Literal["imtl_g"] = "imtl_g"


class IMTLG(GramianBalancer):
    """The gradient balance of IMTL (Liu et al. 2021): the update has equal projections onto all gradients.

    The projections are positive, so where there are equal ones (gradients that are linearly independent) all losses
    fall. Weights may be negative. Their sum is 1 as in the paper, unless negative ones nearly outweigh the others
    (short gradients between long ones): there the paper's update may be of any length and go against all tasks.
    """

    Config = IMTLGConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        return solvers.solve_imtl_g(gramian)


@config_dataclass
class IMTLConfig(GramianConfig):
    """log: no; its scales are for the losses themselves."""

    name: Literal["imtl"] = "imtl"
    log_losses: Literal[False] = False


class IMTL(IMTLG):
    """IMTL whole: heads learn by losses scaled to 1 (-L), what is shared by equal projections of gradients (-G)."""

    Config = IMTLConfig

    def __init__(self, config: IMTLConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.log_scales = nn.ParameterDict({name: torch.tensor(0.0) for name in tasks})

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        return sum_scaled_losses(losses, self.log_scales)
