"""A recipe describes a complete run in one YAML file. This module also builds its components."""

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
from perception.data import DataConfig, ReaderConfig, open_sources
from perception.data.dataset import DataSource
from perception.data.joint_labels import explain_incomparable_gradients
from perception.data.mixture import Mixture
from perception.engine.train_config import TrainConfig
from perception.files.safe_names import TASK_NAME, check_file_name
from perception.model import ModelConfig, MultiTaskModel
from perception.mtl.balancers import BALANCERS, BalanceConfig, StaticConfig
from perception.mtl.schedule import TaskScheduleConfig
from perception.tasks import TASKS
from perception.types import ConfigError, PerceptionError


def _build_task_configs(value: object) -> object:
    """Validate the ``tasks`` section. The config class is selected by ``type``; the default type is the task name."""
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"tasks: expected a mapping with at least one of {', '.join(TASKS)}, found {value!r}.")
    return {name: _build_task_config(name, {} if given is None else given) for name, given in value.items()}


def _build_task_config(name: object, given: object) -> object:
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise ConfigError(f"tasks: invalid task name {name!r}. Expected lower-case letters, digits and '_'.")
    kind = given.get("type", name) if isinstance(given, dict) else name
    if not isinstance(kind, str) or kind not in TASKS:
        raise ConfigError(
            f"tasks.{name}: unknown task {kind!r}. Known: {', '.join(TASKS)}. A task with another name needs a type, "
            f"for example {name}: {{type: segmentation, ...}}."
        )
    path = f"tasks.{name}"
    try:
        return config.validate_config(TASKS[kind].Config, given, path=path)
    except ConfigError as error:  # raised by the config's own check, which does not have the task name
        raise ConfigError(str(error) if path in str(error) else f"{path}.{error}") from None


def _default_to_static(value: object) -> object:
    return {"name": "static", **value} if isinstance(value, dict) else value


@config_dataclass
class Recipe:
    """All settings of a run.

    Attributes:
        version: version of the recipe format.
        name: name of the folder below runs/; a valid file name.
        seed: seed of all random numbers.
        data: sources, image size and augmentation.
        tasks: name -> config of the task.
        model: architecture.
        train: optimizer, number of steps, evaluation.
        schedule: which tasks and parts are trained when.
        balance: how the task losses or gradients are weighted.
    """

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
            raise ConfigError(
                f"tasks.{auxiliary[0]}.auxiliary: all tasks are auxiliary, so none is scored and exported. "
                "Set it to false."
            )
        if auxiliary and self.model.fusion.name != "none":
            raise ConfigError(
                f"tasks.{auxiliary[0]}.auxiliary with model.fusion.name={self.model.fusion.name}: the other tasks read "
                "its features, so removing it would change their outputs. Remove one of the two settings."
            )

    def _check_labels(self, reader: ReaderConfig, where: str) -> None:
        for name in reader.tasks if getattr(reader, "multi_label", False) else ():
            if not getattr(self.tasks.get(name), "multi_label", True):
                raise ConfigError(
                    f"{where}.multi_label is true, but tasks.{name} allows one class per image. Set tasks.{name}."
                    "multi_label: true, or remove it from the reader."
                )

    @property
    def scored_tasks(self) -> tuple[str, ...]:
        """The tasks that are scored, compared and exported: all except the auxiliary ones."""
        return tuple(name for name, task in self.tasks.items() if not task.auxiliary)

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Task -> its class names; empty if the task predicts a quantity."""
        return {name: getattr(task, "classes", ()) for name, task in self.tasks.items()}


def parse(text: str, overrides: Sequence[str] = (), where: str = "") -> Recipe:
    """Parse and validate YAML text, for example the resolved recipe of a run. Raises ConfigError."""
    return _validate(config.apply_overrides(config.parse_yaml(text, where), overrides), where)


def _validate(mapping: dict[str, Any], where: str) -> Recipe:
    """Validate twice: the defaults then have the same types as after reading them back from YAML."""
    return config.validate_config(
        Recipe, config.to_plain(config.validate_config(Recipe, mapping, where=where)), where=where
    )


def load(path: str | Path, overrides: Sequence[str] = (), tasks: Collection[str] | None = None) -> Recipe:
    """Read and validate a recipe file.

    Args:
        path: YAML file.
        overrides: ``key=value`` assignments with dotted keys.
        tasks: keep only these tasks; None = all.

    Raises:
        ConfigError: the file or an override is not valid, or a task is unknown.
    """
    mapping = config.apply_overrides(config.load_yaml(path), overrides)
    mapping.pop("tune", None)  # search space of `perception tune`; training does not use it
    return _validate(mapping if tasks is None else _select_from_mapping(mapping, tasks, str(path)), str(path))


def select_tasks(recipe: Recipe, tasks: Collection[str]) -> Recipe:
    """Return the recipe reduced to a subset of its tasks, as `load` does for a file."""
    return _validate(_select_from_mapping(config.to_plain(recipe), tasks, f"The recipe '{recipe.name}'"), recipe.name)


def _select_from_mapping(mapping: dict[str, Any], tasks: Collection[str], where: str) -> dict[str, Any]:
    """Remove the other tasks from a recipe mapping, and all references to them."""
    mine = mapping.get("tasks") or {}
    if not isinstance(mine, dict):
        return mapping  # not a valid recipe; validation reports it
    if unknown := [name for name in tasks if name not in mine]:
        raise ConfigError(f"{where} has no task '{unknown[0]}'. It has: {', '.join(map(str, mine))}.")
    reduced = {**mapping, "tasks": {name: value for name, value in mine.items() if name in tasks}}
    balance = mapping.get("balance")
    if isinstance(balance, dict) and isinstance(balance.get("weights"), dict):
        kept = {name: weight for name, weight in balance["weights"].items() if name in tasks or name not in mine}
        reduced["balance"] = {**balance, "weights": kept}
    dropped = [name for name in mine if name not in tasks]  # a list: the values that are looked up may not be hashable
    if isinstance(mapping.get("schedule"), dict):
        reduced["schedule"] = _drop_from_schedule(mapping["schedule"], dropped)
    model = mapping.get("model")
    if isinstance(model, dict) and isinstance(model.get("sharing"), dict):
        reduced["model"] = {**model, "sharing": _drop_from_sharing(model["sharing"], dropped)}
    return reduced


def _drop_from_schedule(schedule: dict[str, Any], dropped: Collection[str]) -> dict[str, Any]:
    """Remove tasks from the ``schedule`` section. Invalid values are kept for validation to report."""
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
    """Remove tasks from ``model.sharing``. Empty groups stay: trunks are numbered by group."""
    groups = sharing.get("groups")
    return {**sharing, "groups": _drop_from_groups(groups, dropped)} if isinstance(groups, list) else sharing


def _drop_from_groups(groups: list[Any], dropped: Collection[str]) -> list[Any]:
    """Remove tasks from lists of tasks. Values that are not lists stay unchanged."""
    return [[t for t in group if t not in dropped] if isinstance(group, list) else group for group in groups]


def build_model(recipe: Recipe, pretrained: bool = True) -> MultiTaskModel:
    """Build the network. New layers are initialized with the recipe's seed.

    Args:
        recipe: the recipe.
        pretrained: load pretrained backbone weights. Not needed before loading a checkpoint; the weight file may be
            unavailable then.
    """
    torch.manual_seed(recipe.seed)
    return MultiTaskModel(recipe.model, recipe.tasks, pretrained, [source.name for source in recipe.data.train])


def collect_warnings(recipe: Recipe) -> list[str]:
    """Return warnings to print before training with this recipe."""
    compares = BALANCERS[recipe.balance.name].has_shared_weights
    space = getattr(recipe.balance, "space", None) if compares else None
    found = explain_incomparable_gradients(space, [source.labels for source in recipe.data.train], tuple(recipe.tasks))
    return [found] if found else []


def open_training_sources(recipe: Recipe) -> list[DataSource]:
    """Open the training sources. Together they must label all classes."""
    return open_sources(recipe.data.train, recipe.data.root, recipe.classes, require_all_classes=True)


def build_mixture(recipe: Recipe, sources: Sequence[DataSource] | None = None) -> Mixture:
    """Build the training mixture from the recipe's sources, or from ``sources`` that are already open."""
    data = recipe.data
    sources = open_training_sources(recipe) if sources is None else sources
    return Mixture(sources, data.size, data.augment, recipe.seed, data.max_damaged, data.mix, recipe.train.batch_size)


def open_validation_sources(recipe: Recipe) -> list[DataSource]:
    """Open the validation sources."""
    return open_sources(recipe.data.validation, recipe.data.root, recipe.classes)


def subsample_sources(sources: Sequence[DataSource], max_images: int) -> list[DataSource]:
    """Reduce the sources to at most ``max_images`` images in total, but at least one per source.

    The budget is divided evenly between the sources. The images are spread evenly over each source.
    """
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
    """Return the recipe with the validation sources of another YAML file: a recipe or only its ``data`` section.

    ``root`` and ``size`` of the recipe are kept unless the file sets them. Raises ConfigError.
    """
    mapping = config.apply_overrides(config.load_yaml(path), overrides)
    section = mapping.get("data", mapping)
    if not isinstance(section, dict) or not section.get("validation"):
        raise ConfigError(
            f"{path} has no validation source. Expected data.validation: a list of sources as in a recipe."
        )
    mine = config.to_plain(recipe.data)
    merged = {**mine, "train": [], **{key: value for key, value in section.items() if key != "train"}}
    data = config.validate_config(DataConfig, merged, where=str(path), path="data")
    plain = config.to_plain(recipe)
    return config.validate_config(Recipe, {**plain, "data": config.to_plain(data)}, where=str(path))
