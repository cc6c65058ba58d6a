"""A trained network that learns new tasks and keeps the old ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from perception.model import LossOutput, MultiTaskModel
from perception.recipe import Recipe
from perception.types import Batch, ConfigError

GrowMethod = Literal["frozen", "distill"]


class GrownModel(MultiTaskModel):
    """The network of the merged recipe with the old weights; new parts are initialized from the recipe's seed.

    Args:
        recipe: the merged recipe.
        teacher: the old network.
        method: "frozen" fixes all old weights and statistics, so the old outputs stay bit-identical. "distill" trains
            all weights and distills the outputs of the old network on the same images; BatchNorm statistics stay fixed,
            because the new images may look different.
        distillation_weight: weight of the distillation loss.

    Raises:
        ConfigError: the old weights do not fit, or, with "frozen", the new task would change the old outputs.
    """

    _frozen_modules: Sequence[nn.Module] = ()

    def __init__(
        self, recipe: Recipe, teacher: MultiTaskModel, method: GrowMethod, distillation_weight: float = 1.0
    ) -> None:
        torch.manual_seed(recipe.seed)
        super().__init__(recipe.model, recipe.tasks, False, [source.name for source in recipe.data.train])
        old = teacher.state_dict()
        _load_old_weights(self, old)
        _initialize_backbones(self, teacher, old)
        self._teacher, self._old_tasks, self._distillation_weight = (
            _UnregisteredModule(teacher.eval()),
            tuple(teacher.tasks),
            distillation_weight,
        )
        self._distills = method == "distill"
        if method == "frozen":
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name not in old)
            self._frozen_modules = _find_old_modules(self, old)
            self._require_equal_outputs(teacher, recipe.data.size)
        else:
            self._frozen_modules = [
                m for name, m in self.named_modules() if isinstance(m, _BatchNorm) and f"{name}.weight" in old
            ]
        for name in self._old_tasks:  # the calibration of their scores is still valid
            self.tasks[name].calibrate = _skip_calibration  # type: ignore[assignment]
        self.train()

    def train(self, mode: bool = True) -> GrownModel:
        """Set the training mode, but keep the frozen modules in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules:
            module.eval()
        return self

    def compute_loss_terms(
        self, batch: Batch, tasks: Collection[str] | None = None, cut_graph: bool = False
    ) -> LossOutput:
        """Compute the losses and, with "distill", a distillation penalty for each old task."""
        if not self._distills:
            return super().compute_loss_terms(batch, tasks, cut_graph)
        raws: dict[str, Any] = {}
        hooks = [
            self.tasks[name].register_forward_hook(lambda _, __, raw, name=name: raws.update({name: raw}))
            for name in self._old_tasks
        ]
        try:
            found = super().compute_loss_terms(batch, tasks and {*tasks, *self._old_tasks}, cut_graph)
        finally:
            for hook in hooks:
                hook.remove()
        with torch.no_grad():
            taught = self._teacher.network.to(batch.images.device)(batch.images)
        penalties = {
            f"distill_{name}": self._distillation_weight * self.tasks[name].distill(raws[name], taught[name])
            for name in self._old_tasks
        }
        parts = {name: own for name, own in found.terms.items() if tasks is None or name in tasks}
        return found._replace(terms=parts, penalties={**found.penalties, **penalties})

    def _require_equal_outputs(self, teacher: MultiTaskModel, size: Sequence[int]) -> None:
        self.eval()
        changed = find_differing_tasks(teacher, self, size)
        if changed:
            raise ConfigError(
                f"The new task changes the outputs of {', '.join(changed)} even with all old weights fixed, because "
                "this model has cross-task connections. Use --method distill."
            )


def find_differing_tasks(one: MultiTaskModel, other: MultiTaskModel, size: Sequence[int]) -> list[str]:
    """Find the common tasks whose outputs on two random images differ by at least one bit, in evaluation mode."""
    picture = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        left, right = one.predict(picture), other.predict(picture)
    return sorted(
        {key.partition(".")[0] for key in left.keys() & right.keys() if not torch.equal(left[key], right[key])}
    )


class _UnregisteredModule:
    """Holds a network without registering it as a submodule: not in the state dict, not copied."""

    def __init__(self, network: MultiTaskModel) -> None:
        self.network = network.requires_grad_(False)

    def __deepcopy__(self, memo: object) -> _UnregisteredModule:
        return self


def _skip_calibration(metric: object) -> None:
    """Replaces `Task.calibrate` for old tasks."""


def _load_old_weights(network: nn.Module, old: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    lost = [name for name, value in old.items() if name not in own or own[name].shape != value.shape]
    if lost:
        raise ConfigError(
            f"The new task changes parts of the network that the old tasks use: {', '.join(lost[:3])}"
            f"{f' and {len(lost) - 3} more' if len(lost) > 3 else ''}. Use the strides of the old tasks."
        )
    network.load_state_dict({**own, **old})


def _initialize_backbones(network: MultiTaskModel, teacher: MultiTaskModel, old: Mapping[str, Tensor]) -> None:
    """Initialize new task-specific backbones with the weights of the old network's first backbone."""
    known = {id(parameter) for name, parameter in network.named_parameters() if name in old}
    for backbone in network.sharing.backbones():
        if not any(id(parameter) in known for parameter in backbone.parameters()):
            backbone.load_state_dict(teacher.backbone.state_dict())


def _find_old_modules(network: nn.Module, old: Mapping[str, Tensor]) -> list[nn.Module]:
    """The largest modules without new weights."""
    kept: list[nn.Module] = []

    def visit(module: nn.Module, name: str) -> None:
        prefix = f"{name}." if name else ""
        mine = [prefix + key for key in module.state_dict()]
        if mine and all(key in old for key in mine):
            kept.append(module)
            return
        for child, part in module.named_children():
            visit(part, prefix + child)

    visit(network, "")
    return kept
