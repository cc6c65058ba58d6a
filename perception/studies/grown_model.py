"""A trained network that learns a further task and keeps the old ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from perception.model import LossOutput, MultiTaskModel
from perception.mtl.distillation import distillation_loss
from perception.recipe import Recipe
from perception.types import Batch, ConfigError

GrowMethod = Literal["frozen", "distill"]


class GrownModel(MultiTaskModel):
    """The grown recipe's network with the old one's weights; what is new begins as the recipe's seed says.

    frozen: all that the old network had is fixed, statistics included: its tasks' outputs stay, bit for bit
    distil: all learns, and the old heads are held to what the old network says of the same images; the statistics of
            BatchNorm stay, for the new images may look different

    Raises ConfigError where the old weights do not fit, or where, frozen, the new task would change the old outputs.
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
        for name in self._old_tasks:  # their scores are as sure as they were
            self.tasks[name].calibrate = _skip_calibration  # type: ignore[assignment]
        self.train()

    def train(self, mode: bool = True) -> GrownModel:
        super().train(mode)
        for module in self._frozen_modules:
            module.eval()
        return self

    def compute_loss_terms(
        self, batch: Batch, tasks: Collection[str] | None = None, cut_graph: bool = False
    ) -> LossOutput:
        """The losses, and for each old task how far it has come from what it said."""
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
        specs = self.specs
        penalties = {
            f"distill_{name}": self._distillation_weight * distillation_loss(specs[name], raws[name], taught[name])
            for name in self._old_tasks
        }
        parts = {name: own for name, own in found.terms.items() if tasks is None or name in tasks}
        return found._replace(terms=parts, penalties={**found.penalties, **penalties})

    def _require_equal_outputs(self, teacher: MultiTaskModel, size: Sequence[int]) -> None:
        self.eval()
        changed = find_differing_tasks(teacher, self, size)
        if changed:
            raise ConfigError(
                f"The new task would change what {', '.join(changed)} say even with all old weights fixed: this "
                "network lets its tasks look at each other. Grow it with --method distill."
            )


def find_differing_tasks(one: MultiTaskModel, other: MultiTaskModel, size: Sequence[int]) -> list[str]:
    """The tasks of both networks, in evaluation mode, that say something else, be it by a bit, of two made images."""
    picture = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        left, right = one.predict(picture), other.predict(picture)
    return sorted(
        {key.partition(".")[0] for key in left.keys() & right.keys() if not torch.equal(left[key], right[key])}
    )


class _UnregisteredModule:
    """A network that is no part of the one that holds it: not in its weights, not copied with it."""

    def __init__(self, network: MultiTaskModel) -> None:
        self.network = network.requires_grad_(False)

    def __deepcopy__(self, memo: Any) -> _UnregisteredModule:
        return self


def _skip_calibration(metric: Any) -> None:
    """Calibrates nothing."""


def _load_old_weights(network: nn.Module, old: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    lost = [name for name, value in old.items() if name not in own or own[name].shape != value.shape]
    if lost:
        raise ConfigError(
            f"The new task changes parts of the network that the old tasks use: {', '.join(lost[:3])}"
            f"{f' and {len(lost) - 3} more' if len(lost) > 3 else ''}. Give it the strides that they have."
        )
    network.load_state_dict({**own, **old})


def _initialize_backbones(network: MultiTaskModel, teacher: MultiTaskModel, old: Mapping[str, Tensor]) -> None:
    """Let backbones that are wholly new, for they are the new task's own, begin as the old network's first one."""
    known = {id(parameter) for name, parameter in network.named_parameters() if name in old}
    for backbone in network.sharing.backbones():
        if not any(id(parameter) in known for parameter in backbone.parameters()):
            backbone.load_state_dict(teacher.backbone.state_dict())


def _find_old_modules(network: nn.Module, old: Mapping[str, Tensor]) -> list[nn.Module]:
    """The largest modules that hold nothing new."""
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
