"""The tasks. One file = one task; to add one, write its file and name it here."""

from typing import Any

from perception.tasks.classification import Classification
from perception.tasks.depth import Depth
from perception.tasks.detection import Detection
from perception.tasks.segmentation import Segmentation
from perception.tasks.task import Part, Task, join
from perception.types import ConfigError

TASKS: dict[str, type[Task]] = {
    "detection": Detection,
    "segmentation": Segmentation,
    "depth": Depth,
    "classification": Classification,
}
"""Type of a task in a recipe -> class. A task is called like its type, or says it: ``lanes: {type: segmentation}``."""


def task_class(name: str, config: Any) -> type[Task]:
    """The class of a task by its config's ``type``, or else its name. Raises ConfigError where there is none such."""
    kind = getattr(config, "type", name)
    if kind not in TASKS:
        raise ConfigError(f"tasks.{name}: unknown type of task '{kind}'. Known: {', '.join(TASKS)}.")
    return TASKS[kind]


__all__ = ["TASKS", "Part", "Task", "join", "task_class"]
