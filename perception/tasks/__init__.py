"""The tasks. One file = one task; to add one, write its file and name it here."""

from perception.tasks.classification import Classification
from perception.tasks.depth import Depth
from perception.tasks.detection import Detection
from perception.tasks.segmentation import Segmentation
from perception.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "detection": Detection,
    "segmentation": Segmentation,
    "depth": Depth,
    "classification": Classification,
}
"""Name in a recipe -> class."""

__all__ = ["TASKS", "Task"]
