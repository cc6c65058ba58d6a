"""A recipe: everything that a run is made of, in one YAML file; and the builders of its parts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field

from perception import config
from perception.config import config_dataclass
from perception.data import DataConfig, open_sources
from perception.data.dataset import DataSource
from perception.data.joint_labels import explain_incomparable_gradients
from perception.data.mixture import Mixture
from perception.engine.train import TrainConfig
from perception.files.safe_names import TASK_NAME, check_file_name
from perception.model import ModelConfig, MultiTaskModel
from perception.mtl.balancers import BALANCERS, BalanceConfig, StaticConfig
from perception.mtl.schedule import TaskScheduleConfig
from perception.tasks import TASKS
from perception.types import ConfigError, PerceptionError


def _build_task_configs(value: Any) -> Any:
    """The ``tasks`` section: each task's settings as the Config of its ``type``, by default its name."""
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"tasks: expected a mapping with at least one of {', '.join(TASKS)}, found {value!r}.")
    return {name: _build_task_config(name, {} if given is None else given) for name, given in value.items()}


def _build_task_config(name: Any, given: Any) -> Any:
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise ConfigError(f"tasks: a task is called {name!r}. Expected lower-case letters, digits and '_'.")
    kind = given.get("type", name) if isinstance(given, dict) else name
    if not isinstance(kind, str) or kind not in TASKS:
        raise ConfigError(
            f"tasks.{name}: unknown task {kind!r}. Known: {', '.join(TASKS)}. A task of another name says its type, "
            f"for example {name}: {{type: segmentation, ...}}."
        )
    path = f"tasks.{name}"
    try:
        return config.validate_config(TASKS[kind].Config, given, path=path)
    except ConfigError as error:  # of a check of the config's own, which does not know how the task is called
        raise ConfigError(str(error) if path in str(error) else f"{path}.{error}") from None


def _default_to_static(value: Any) -> Any:
    return {"name": "static", **value} if isinstance(value, dict) else value


@config_dataclass
class Recipe:
    """version: of this format. name: of the run's folder under runs/, a file name. seed: of all that is random."""

    version: Literal[1] = 1
    name: str = "run"
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    data: DataConfig
    tasks: Annotated[dict[str, Any], BeforeValidator(_build_task_configs)]
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    schedule: TaskScheduleConfig = TaskScheduleConfig()
    balance: Annotated[BalanceConfig, BeforeValidator(_default_to_static)] = dataclasses.field(
        default_factory=StaticConfig
    )

    def __post_init__(self) -> None:
        try:
            check_file_name(self.name, "name")
        except PerceptionError as error:
            raise ConfigError(str(error)) from None
        for part in ("train", "validation"):
            for i, source in enumerate(getattr(self.data, part)):
                for k, reader in enumerate(source.labels):
                    self._check_labels(reader, f"data.{part}.{i}.labels.{k}")
        self._check_auxiliary()

    def _check_auxiliary(self) -> None:
        auxiliary = [name for name in self.tasks if name not in self.scored_tasks]
        if not self.scored_tasks:
            raise ConfigError(f"tasks.{auxiliary[0]}.auxiliary: no task is left to score and export. Set it to false.")
        if auxiliary and self.model.fusion.name != "none":
            raise ConfigError(
                f"tasks.{auxiliary[0]}.auxiliary with model.fusion.name={self.model.fusion.name}: the other tasks read "
                "its features, so without it they would say something else. Take one of the two out."
            )

    def _check_labels(self, reader: Any, where: str) -> None:
        for name in reader.tasks if getattr(reader, "multi_label", False) else ():
            if not getattr(self.tasks.get(name), "multi_label", True):
                raise ConfigError(
                    f"{where}.multi_label is true, but tasks.{name} gives an image one class. Set tasks.{name}."
                    "multi_label: true, or leave it out of the reader."
                )

    @property
    def scored_tasks(self) -> tuple[str, ...]:
        """The tasks that are scored, compared and exported: all but the auxiliary ones."""
        return tuple(name for name, task in self.tasks.items() if not task.auxiliary)

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Task -> its class names; empty for a quantity."""
        return {name: getattr(task, "classes", ()) for name, task in self.tasks.items()}


def parse(text: str, overrides: Sequence[str] = (), where: str = "") -> Recipe:
    """The recipe in YAML text, for example the resolved one that a run keeps."""
    return _validate(config.apply_overrides(config.parse_yaml(text, where), overrides), where)


def _validate(mapping: dict[str, Any], where: str) -> Recipe:
    """The validated recipe. Validated twice, so that its defaults too have the kind that reading them back gives."""
    return config.validate_config(
        Recipe, config.to_plain(config.validate_config(Recipe, mapping, where=where)), where=where
    )


def load(path: str | Path, overrides: Sequence[str] = (), tasks: Collection[str] | None = None) -> Recipe:
    """The recipe in a YAML file with ``key=value`` overrides, reduced to a subset of its tasks where asked."""
    mapping = config.apply_overrides(config.load_yaml(path), overrides)
    mapping.pop("tune", None)  # what `perception tune` searches: no part of a training
    return _validate(mapping if tasks is None else _select_from_mapping(mapping, tasks, str(path)), str(path))


def select_tasks(recipe: Recipe, tasks: Collection[str]) -> Recipe:
    """The recipe reduced to a subset of its tasks, as `load` reduces a file's."""
    return _validate(_select_from_mapping(config.to_plain(recipe), tasks, f"The recipe '{recipe.name}'"), recipe.name)


def _select_from_mapping(mapping: dict[str, Any], tasks: Collection[str], where: str) -> dict[str, Any]:
    """A recipe's mapping without the other tasks, nor what it says of them elsewhere."""
    mine = mapping.get("tasks") or {}
    if not isinstance(mine, dict):
        return mapping  # which is no recipe, as its validation tells
    if unknown := [name for name in tasks if name not in mine]:
        raise ConfigError(f"{where} has no task '{unknown[0]}'. It has: {', '.join(map(str, mine))}.")
    reduced = {**mapping, "tasks": {name: value for name, value in mine.items() if name in tasks}}
    balance = mapping.get("balance")
    if isinstance(balance, dict) and isinstance(balance.get("weights"), dict):
        kept = {name: weight for name, weight in balance["weights"].items() if name in tasks or name not in mine}
        reduced["balance"] = {**balance, "weights": kept}
    dropped = [name for name in mine if name not in tasks]  # a list: what is looked up may be no key
    if isinstance(mapping.get("schedule"), dict):
        reduced["schedule"] = _drop_from_schedule(mapping["schedule"], dropped)
    model = mapping.get("model")
    if isinstance(model, dict) and isinstance(model.get("sharing"), dict):
        reduced["model"] = {**model, "sharing": _drop_from_sharing(model["sharing"], dropped)}
    return reduced


def _drop_from_schedule(schedule: dict[str, Any], dropped: Collection[str]) -> dict[str, Any]:
    """A recipe's ``schedule`` section that says nothing of some tasks; what is not as it should be stays so."""
    reduced = dict(schedule)
    if isinstance(groups := schedule.get("groups"), list):
        kept = _drop_from_groups(groups, dropped)
        reduced["groups"] = [new for new, old in zip(kept, groups, strict=True) if new or not old]
    if isinstance(join := schedule.get("start_steps"), dict):
        reduced["start_steps"] = {task: step for task, step in join.items() if task not in dropped}
    if isinstance(freeze := schedule.get("freeze"), list):
        reduced["freeze"] = [item for item in freeze if not (isinstance(item, dict) and item.get("part") in dropped)]
    return reduced


def _drop_from_sharing(sharing: dict[str, Any], dropped: Collection[str]) -> dict[str, Any]:
    """A recipe's ``model.sharing`` section without some tasks; a group stays where none is left, for trunks go by the
    numbers of their groups."""
    groups = sharing.get("groups")
    return {**sharing, "groups": _drop_from_groups(groups, dropped)} if isinstance(groups, list) else sharing


def _drop_from_groups(groups: list[Any], dropped: Collection[str]) -> list[Any]:
    """Lists of tasks without some of these; what is no list stays."""
    return [[t for t in group if t not in dropped] if isinstance(group, list) else group for group in groups]


def build_model(recipe: Recipe, pretrained: bool = True) -> MultiTaskModel:
    """The network, its new layers initialized by the recipe's seed.

    pretrained: load the backbone's; not needed where a checkpoint brings them, whose origin may not be at hand.
    """
    torch.manual_seed(recipe.seed)
    return MultiTaskModel(recipe.model, recipe.tasks, pretrained, [source.name for source in recipe.data.train])


def collect_warnings(recipe: Recipe) -> list[str]:
    """What a training by this recipe should say before it begins."""
    compares = BALANCERS[recipe.balance.name].has_shared_weights
    space = getattr(recipe.balance, "space", None) if compares else None
    found = explain_incomparable_gradients(space, [source.labels for source in recipe.data.train], tuple(recipe.tasks))
    return [found] if found else []


def open_training_sources(recipe: Recipe) -> list[DataSource]:
    return open_sources(recipe.data.train, recipe.data.root, recipe.classes, require_all_classes=True)


def build_mixture(recipe: Recipe, sources: Sequence[DataSource] | None = None) -> Mixture:
    """The training samples of a recipe, or of other sources that are open already."""
    data = recipe.data
    sources = open_training_sources(recipe) if sources is None else sources
    return Mixture(sources, data.size, data.augment, recipe.seed, data.max_damaged, data.mix, recipe.train.batch_size)


def open_validation_sources(recipe: Recipe) -> list[DataSource]:
    return open_sources(recipe.data.validation, recipe.data.root, recipe.classes)


def subsample_sources(sources: Sequence[DataSource], max_images: int) -> list[DataSource]:
    """The sources with at most ``max_images`` images, at least one each: as many of each as there are, shared evenly,
    and
    spread evenly over it."""
    lengths = [len(source) for source in sources]
    left, found = max_images, [0] * len(sources)
    for place, i in enumerate(sorted(range(len(sources)), key=lengths.__getitem__)):
        found[i] = min(lengths[i], max(1, left // (len(sources) - place)))
        left -= found[i]
    return [_subsample_source(source, count) for source, count in zip(sources, found, strict=True)]


def _subsample_source(source: DataSource, count: int) -> DataSource:
    thin = copy.copy(source)
    thin.records = [source.records[i * len(source) // count] for i in range(count)]
    return thin


def replace_validation_data(recipe: Recipe, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with the validation sources of another YAML file: a recipe, or its ``data`` section alone.

    ``root`` and ``size`` stay the recipe's where the file gives none.
    """
    mapping = config.apply_overrides(config.load_yaml(path), overrides)
    section = mapping.get("data", mapping)
    if not isinstance(section, dict) or not section.get("validation"):
        raise ConfigError(f"{path} names no validation source. Give data.validation: a list of sources as in a recipe.")
    mine = config.to_plain(recipe.data)
    merged = {**mine, "train": [], **{key: value for key, value in section.items() if key != "train"}}
    data = config.validate_config(DataConfig, merged, where=str(path), path="data")
    plain = config.to_plain(recipe)
    return config.validate_config(Recipe, {**plain, "data": config.to_plain(data)}, where=str(path))
