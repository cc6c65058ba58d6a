"""Balancers that weight the tasks' gradients by their inner products, against conflict.

The weights apply to the shared parameters, where the gradients meet and below. Each head learns from its own loss, as
in most of the papers (`Balancer.has_head_weights`). Methods receive the Gramian scaled to a mean diagonal of 1, without
the rows of tasks whose gradient is zero, which would stop all others in MGDA and CAGrad. For gradients whose lengths
differ by up to 1e5 and whose Gramian may be of float32, in any directions, every method guarantees:

* Weights are finite and do not depend on the unit of the gradients, nor on the order of the tasks (except for PCGrad
  and GradVac, which draw a random order).
* The update is zero only if a convex combination of the unit gradients is zero
  (`perception.mtl.solvers.is_pareto_stationary`). There no update lowers all losses (a Pareto-stationary point), and
  gradients that balance each other cancel.
* If the method guarantees to raise no loss, a gradient's product with the update is not below -2e-6 times its length
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
"""Whether heads descend their own loss, or their loss times the task's weight on the shared part."""


@config_dataclass
class GramianConfig(TaskWeightsConfig):
    """Settings of all Gramian-based balancers.

    Attributes:
        space: where gradients are compared, see `perception.mtl.balancer.GradientSpace`.
        update_every: number of steps between two computations of the weights.
        gramian_decay: decay of a moving average of the Gramian, [0, 1); 0 = no average. Weights are then solved from
            the average, for any set of tasks that all had a gradient, and ``update_every`` counts steps with any tasks.
        log_losses: the method uses the logarithms of the losses, that is, gradients divided by their loss; ``weights``
            then multiply the logarithms. A loss of exactly zero is skipped.
    """

    space: GradientSpace = "late"
    update_every: PositiveInt = 1
    gramian_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    log_losses: bool = False


class GramianBalancer(Balancer):
    """Caches weights for each set of tasks that were present together, because they are valid for that set only."""

    has_shared_weights = True

    def __init__(self, config: Any, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.space = config.space
        self._cached_weights: dict[str, tuple[int, list[float]]] = {}
        self._gramian_average = GramianAverage(len(self.tasks), config.gramian_decay) if config.gramian_decay else None
        self._last_solved_step = 0

    @abstractmethod
    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """Return weights [T] from inner products of non-zero gradients, scaled to mean square 1."""

    def forward(self, losses: Mapping[str, Tensor], present: Collection[str], step: int) -> Tensor:
        """Return the scalar to differentiate, see `Balancer.forward`."""
        if self.config.log_losses:
            here = {name: loss for name, loss in losses.items() if name in present}
            present = split_zero_losses(here)[0] if here else here
            losses = {name: loss.log() if name in present else loss for name, loss in losses.items()}
        return super().forward(losses, present, step)

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the sum of the losses."""
        return torch.stack(list(losses.values())).sum()

    def needs_gramian(self, present: tuple[str, ...], step: int) -> bool:
        """Return whether the weights of these tasks are missing or too old."""
        found = self._cached_weights.get(_cache_key(present))
        if self._gramian_average is None or found is not None:
            return found is None or step - found[0] >= self.config.update_every
        return (
            not self._gramian_average.has_all(self._weighted_task_indices(present))
            or step - self._last_solved_step >= self.config.update_every
        )

    def observe_gramian(self, gramian: Gramian, losses: Mapping[str, Tensor], step: int) -> None:
        """Compute and cache the weights of these tasks."""
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
            self._cached_weights, self._last_solved_step = {}, step  # weights of other sets use an older average
        self._cached_weights[_cache_key(losses)] = (step, weights.tolist())

    def _solve_scaled(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        return self.solve(gramian / gramian.diagonal().mean(), names, step).double()

    def shared_weights(self, present: tuple[str, ...]) -> Tensor | None:
        """Return the cached weights of these tasks [T], or None."""
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
        found = self._cached_weights.get(key)  # None if all shared parameters are frozen
        return None if found is None else torch.tensor(found[1], dtype=torch.float64)

    def _task_indices(self, names: Sequence[str]) -> list[int]:
        return [self.tasks.index(name) for name in names]

    def _weighted_task_indices(self, names: Sequence[str]) -> list[int]:
        """Return the indices of the tasks with a positive weight, and so a gradient."""
        return self._task_indices([name for name in names if self.loss_weights[name]])

    def get_extra_state(self) -> dict[str, Any]:
        """Return the cached weights and the average."""
        memory = (
            {}
            if self._gramian_average is None
            else {"gramian_average": self._gramian_average.state_dict(), "last_solved_step": self._last_solved_step}
        )
        return {"cached_weights": dict(self._cached_weights), **memory}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the cached weights and the average."""
        self._cached_weights = dict(state["cached_weights"])
        if self._gramian_average is not None:
            self._gramian_average.load_state_dict(state["gramian_average"])
            self._last_solved_step = state["last_solved_step"]


_ZERO_GRADIENT_RATIO = 1e-30
"""Squared length, relative to the largest, below which a gradient counts as zero."""


def _cache_key(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ",".join(names)


@config_dataclass
class PCGradConfig(GramianConfig):
    """Config of `PCGrad`."""

    name: Literal["pcgrad"] = "pcgrad"


class PCGrad(GramianBalancer):
    """Gradient surgery (Yu et al. 2020): each gradient is projected off those that it conflicts with.

    The order is a function of seed and step. For two tasks the update raises no loss; for more it may. It is dominated
    by the longest gradients.
    """

    Config = PCGradConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """See `perception.mtl.solvers.solve_pcgrad`."""
        return solvers.solve_pcgrad(gramian, torch.Generator().manual_seed(derive_seed(self.seed, step)))


@config_dataclass
class GradVacConfig(GramianConfig):
    """Config of `GradVac`.

    Attributes:
        beta: update rate of the cosine targets.
    """

    name: Literal["gradvac"] = "gradvac"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5


class GradVac(GramianBalancer):
    """Gradient vaccine (Wang et al. 2021): rotates gradients so that their cosine reaches a moving target.

    Only gradients with a cosine below the target are rotated, in an order that is a function of seed and step. The
    target of a pair does not change while one of the two is absent. There is no guarantee: a target may be a conflict.
    The update is dominated by the longest gradients.
    """

    Config = GradVacConfig

    def __init__(self, config: GradVacConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.targets = torch.zeros(len(self.tasks), len(self.tasks), dtype=torch.float64)

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """See `perception.mtl.solvers.solve_gradvac`."""
        places = torch.tensor(self._task_indices(names))
        pairs, generator = (places[:, None], places), torch.Generator().manual_seed(derive_seed(self.seed, step))
        weights, self.targets[pairs] = solvers.solve_gradvac(gramian, self.targets[pairs], self.config.beta, generator)
        return weights

    def get_extra_state(self) -> dict[str, Any]:
        """Return the cached weights, the average and the targets."""
        return {**super().get_extra_state(), "targets": self.targets.clone()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the cached weights, the average and the targets."""
        super().set_extra_state(state)
        self.targets = state["targets"].clone()


@config_dataclass
class CAGradConfig(GramianConfig):
    """Config of `CAGrad`.

    Attributes:
        c: maximum distance of the update from the mean gradient, in units of its length; 0 = the mean.
    """

    name: Literal["cagrad"] = "cagrad"
    c: NonNegativeFloat = 0.4


class CAGrad(GramianBalancer):
    """Conflict-averse gradient descent (Liu et al. 2021): near the mean gradient, the best update for the worst task.

    For c >= 1 the update raises no loss. For c < 1 it is zero only if the mean gradient is zero, even where the paper's
    own formula divides by zero (balanced gradients): of the best updates it is the one nearest to the mean. The task
    with the smallest gain is usually the one with the shortest gradient.
    """

    Config = CAGradConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """See `perception.mtl.solvers.solve_cagrad`."""
        return solvers.solve_cagrad(gramian, self.config.c)


@config_dataclass
class MGDAConfig(GramianConfig):
    """Config of `MGDA`."""

    name: Literal["mgda"] = "mgda"


class MGDA(GramianBalancer):
    """Multiple-gradient descent (Desideri 2012, solved as Sener and Koltun 2018): the shortest convex combination.

    It follows the shortest gradient, so a task that has converged slows all others. The update raises no loss, and
    lowers each by at least its own squared length. It is zero if the gradients are balanced. The solution is exact, at
    any ratio of lengths.
    """

    Config = MGDAConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """See `perception.mtl.solvers.solve_mgda`."""
        return solvers.solve_mgda(gramian)


@config_dataclass
class NashMTLConfig(GramianConfig):
    """Config of `NashMTL`.

    Attributes:
        heads: "plain" = heads descend their own loss; "weighted" = their loss times the task's weight, as in the
            authors' code (github.com/AvivNavon/nash-mtl minimizes the weighted sum of the losses, including heads).
    """

    name: Literal["nash_mtl"] = "nash_mtl"
    heads: HeadWeighting = "plain"


class NashMTL(GramianBalancer):
    """The bargaining solution of Nash-MTL (Navon et al. 2022): weights a > 0 with (G a) a = 1, G in units of its norm.

    It is proportional fairness, FairGrad at alpha 1 (Ban and Ji 2024), and uses the same solver. All losses fall, and
    all tasks' shares of the update, (G a) a, are equal for any scales of the losses: a task with a short gradient gets
    a large weight, also for its head if heads are weighted. Balanced gradients have no bargaining solution: they
    cancel, and the others continue.
    """

    Config = NashMTLConfig

    def __init__(self, config: NashMTLConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.has_head_weights = config.heads == "weighted"

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """See `perception.mtl.solvers.solve_fairgrad`."""
        return solvers.solve_fairgrad(gramian / gramian.norm(), 1.0)


@config_dataclass
class FairGradConfig(GramianConfig):
    """Config of `FairGrad`.

    Attributes:
        alpha: 0 = the mean, 1 = proportional fairness; larger values give more weight to the worst task.
        heads: "plain" = heads descend their own loss, as in the authors' code (github.com/OptMN-Lab/fairgrad overwrites
            only the shared gradients); "weighted" = their loss times the task's weight, as in LibMTL.
    """

    name: Literal["fairgrad"] = "fairgrad"
    alpha: NonNegativeFloat = 1.0
    heads: HeadWeighting = "plain"


class FairGrad(GramianBalancer):
    """Fair resource allocation (Ban and Ji 2024): weights x with G x = x^(-1 / alpha).

    For alpha > 0 all losses fall. Balanced gradients cancel, and the others continue. At alpha 1 the scales of the
    losses do not matter. Below 1, long gradients count more; above 1, short ones.
    """

    Config = FairGradConfig

    def __init__(self, config: FairGradConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.has_head_weights = config.heads == "weighted"

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """See `perception.mtl.solvers.solve_fairgrad`."""
        return solvers.solve_fairgrad(gramian, self.config.alpha)


@config_dataclass
class AlignedMTLConfig(GramianConfig):
    """Config of `AlignedMTL`.

    Attributes:
        scale: the common singular value: the minimum, the median or the root mean square.
    """

    name: Literal["aligned_mtl"] = "aligned_mtl"
    scale: Literal["min", "median", "rmse"] = "min"


class AlignedMTL(GramianBalancer):
    """Independent component alignment (Senushkin et al. 2023): the mean of gradients with equal principal components.

    It has no guarantee for a single task: if gradients are collinear, the update is their mean. It is zero only if the
    mean gradient is zero. With ``scale: min`` it is as long as the shortest component, which is tiny at large ratios of
    lengths. Weights may be negative.
    """

    Config = AlignedMTLConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """See `perception.mtl.solvers.solve_aligned_mtl`."""
        return solvers.solve_aligned_mtl(gramian, self.config.scale)


@config_dataclass
class UPGradConfig(GramianConfig):
    """Config of `UPGrad`."""

    name: Literal["upgrad"] = "upgrad"


class UPGrad(GramianBalancer):
    """Unconflicting projection (Quinton and Rey 2024): the mean of the gradients, each projected to raise no loss.

    The update raises no loss, at any ratio of lengths. Long gradients count more: a factor on a loss scales its
    projection.
    """

    Config = UPGradConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """See `perception.mtl.solvers.project_onto_dual_cone`."""
        mean = torch.eye(len(gramian), dtype=gramian.dtype) / len(gramian)
        return solvers.project_onto_dual_cone(mean, gramian).sum(0)


@config_dataclass
class IMTLGConfig(GramianConfig):
    """Config of `IMTLG`."""

    name: Literal["imtl_g"] = "imtl_g"


class IMTLG(GramianBalancer):
    """The gradient balance of IMTL (Liu et al. 2021): the update has equal projections onto all gradients.

    The projections are positive, so if equal ones exist (linearly independent gradients), all losses fall. Weights may
    be negative. Their sum is 1 as in the paper, unless negative weights nearly cancel the others (short gradients
    between long ones). There the paper's update may have any length and go against all tasks.
    """

    Config = IMTLGConfig

    def solve(self, gramian: Gramian, names: Sequence[str], step: int) -> Tensor:
        """See `perception.mtl.solvers.solve_imtl_g`."""
        return solvers.solve_imtl_g(gramian)


@config_dataclass
class IMTLConfig(GramianConfig):
    """Config of `IMTL`. Logarithms are not supported, because its scales apply to the losses themselves."""

    name: Literal["imtl"] = "imtl"
    log_losses: Literal[False] = False


class IMTL(IMTLG):
    """Full IMTL: heads learn from losses scaled to 1 (-L), shared layers from equal gradient projections (-G)."""

    Config = IMTLConfig

    def __init__(self, config: IMTLConfig, tasks: Sequence[str], seed: int = 0) -> None:
        super().__init__(config, tasks, seed)
        self.log_scales = nn.ParameterDict({name: torch.tensor(0.0) for name in tasks})

    def combine(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the sum of exp(s) L - s."""
        return sum_scaled_losses(losses, self.log_scales)
