"""The tasks. One file = one task; to add one, write its file and name it here."""

from typing import Any

from perception.tasks.classification import ClassificationTask
from perception.tasks.depth import DepthTask
from perception.tasks.detection import DetectionTask
from perception.tasks.segmentation import SegmentationTask
from perception.tasks.task import LossTerm, Task, sum_loss_terms
from perception.types import ConfigError

TASKS: dict[str, type[Task]] = {
    "detection": DetectionTask,
    "segmentation": SegmentationTask,
    "depth": DepthTask,
    "classification": ClassificationTask,
}
"""Type of a task in a recipe -> class. A task is called like its type, or says it: ``lanes: {type: segmentation}``."""


def find_task_class(name: str, config: Any) -> type[Task]:
    """The class of a task by its config's ``type``, or else its name. Raises ConfigError where there is none such."""
    kind = getattr(config, "type", name)
    if kind not in TASKS:
        raise ConfigError(f"tasks.{name}: unknown type of task '{kind}'. Known: {', '.join(TASKS)}.")
    return TASKS[kind]


__all__ = ["TASKS", "LossTerm", "Task", "find_task_class", "sum_loss_terms"]
