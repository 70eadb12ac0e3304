"""One page that a stranger can read: the verdict, the tables, the figures, and all that they rest on."""

from blockexpand.reporting.judging import Verdict, verdict
from blockexpand.reporting.sequences import SequenceRecord
from blockexpand.reporting.stages import Stage, Stages, read_stages
from blockexpand.reporting.terminal import comparison_rows, comparison_table, comparison_text
from blockexpand.reporting.writing import ReportRecord, report

__all__ = [
    "ReportRecord",
    "SequenceRecord",
    "Stage",
    "Stages",
    "Verdict",
    "comparison_rows",
    "comparison_table",
    "comparison_text",
    "read_stages",
    "report",
    "verdict",
]
