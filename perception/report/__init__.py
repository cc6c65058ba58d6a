"""Reports as self-contained HTML pages."""

from perception.report.events import read_events
from perception.report.examples import ReportExample
from perception.report.page import write_report

__all__ = ["ReportExample", "read_events", "write_report"]
