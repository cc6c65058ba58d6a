"""The tasks, one file per task. To add one, write its file and list it here."""

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
"""Task type in a recipe -> class. A task's type is its name, or is given explicitly: ``lanes: {type: segmentation}``.
"""


def find_task_class(name: str, config: object) -> type[Task]:
    """Return the class of a task by its config's ``type``, or else by its name.

    Raises:
        ConfigError: there is no such type.
    """
    kind = getattr(config, "type", name)
    if kind not in TASKS:
        raise ConfigError(f"tasks.{name}: unknown task type '{kind}'. Expected one of: {', '.join(TASKS)}.")
    return TASKS[kind]


__all__ = ["TASKS", "LossTerm", "Task", "find_task_class", "sum_loss_terms"]
