"""What a run came to, as one HTML page that needs nothing else."""

from perception.report.events import read_events
from perception.report.examples import ReportExample
from perception.report.page import write_report

__all__ = ["ReportExample", "read_events", "write_report"]
