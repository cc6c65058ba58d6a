"""What is wrong with the data of a recipe, where, and how to mend it.

`diagnose` reads every section of a recipe, every label file, every picture and every map, in processes that may die of
a hostile file without harm, and comes to findings: errors (must be mended), warnings (suspicious) and notes.

    plan, opening  what the recipe says, its readers   examine, picture, cameras   one picture and its labels
    crew           processes that may die              statistics, state           sums over many pictures
    leakage        the same picture twice              judge, judge_*              from sums to findings
    environment    packages and machine                summary, text, samples      for people
"""

from perception.doctor.console_report import report_lines, verdict
from perception.doctor.diagnosis import Diagnosis, diagnose
from perception.doctor.findings import SEVERITIES, Finding
from perception.doctor.open_readers import Bar

__all__ = ["SEVERITIES", "Bar", "Diagnosis", "Finding", "diagnose", "report_lines", "verdict"]
