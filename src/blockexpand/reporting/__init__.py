"""One page that a stranger can read: the verdict, the tables, the drawings, and all that they rest on."""

from blockexpand.reporting.report import ReportRecord, report
from blockexpand.reporting.terminal import comparison_table, comparison_text
from blockexpand.reporting.verdict import Verdict, verdict
