"""Checks of a recipe's data before training: what is wrong, where, and how to fix it.

`diagnose` reads every section of a recipe, every label file, every image and every map. It does so in worker processes,
because a hostile file may kill the process that reads it. The result is a list of findings: errors, warnings and notes.

* `data_plan`, `open_readers`: the recipe and its readers.
* `image_examination`, `image_properties`, `camera_checks`: one image and its labels.
* `worker_pool`: processes that may crash.
* `statistics`, `accumulators`: sums over many images.
* `leakage`: duplicate images.
* `checks`, `class_checks`, `depth_checks`, `recipe_checks`: findings from the sums.
* `environment`: packages and machine.
* `summary`, `console_report`, `previews`: output for people.
"""

from perception.doctor.console_report import format_report, summarize_findings
from perception.doctor.diagnosis import Diagnosis, diagnose
from perception.doctor.findings import SEVERITIES, Finding
from perception.doctor.open_readers import ProgressFactory

__all__ = ["SEVERITIES", "Diagnosis", "Finding", "ProgressFactory", "diagnose", "format_report", "summarize_findings"]
