"""What is wrong with the data of a recipe, where, and how to mend it.

`diagnose` reads every section of a recipe, every label file, every image and every map, in processes that may die of
a hostile file without harm, and comes to findings: errors (must be mended), warnings (suspicious) and notes.

    plan, opening  what the recipe says, its readers   examine, image, cameras   one image and its labels
    crew           processes that may die              statistics, state           sums over many images
    leakage        the same image twice              judge, judge_*              from sums to findings
    environment    packages and machine                summary, text, samples      for people
"""

from perception.doctor.console_report import format_report, summarize_findings
from perception.doctor.diagnosis import Diagnosis, diagnose
from perception.doctor.findings import SEVERITIES, Finding
from perception.doctor.open_readers import ProgressFactory

__all__ = ["SEVERITIES", "Diagnosis", "Finding", "ProgressFactory", "diagnose", "format_report", "summarize_findings"]
