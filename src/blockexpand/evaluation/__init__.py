"""What a model can do: held-out losses, suites of benchmarks, paired differences and a verdict."""

from blockexpand.evaluation.answers import AnswerTask, Scores, load_tasks
from blockexpand.evaluation.asking import Answer, Endpoint, Message, Request, ask_all
from blockexpand.evaluation.entries import Chosen, Suite, known_suites, load_suites, read_suite
from blockexpand.evaluation.evaluating import (
    Evaluation,
    EvaluationRecord,
    HeldOutWork,
    Subject,
    differences,
    evaluate,
    has_records,
    read_evaluation,
)
from blockexpand.evaluation.harness import Options
from blockexpand.evaluation.losses import HeldOut
from blockexpand.evaluation.measuring import Candidate, Start, evaluate_suites
from blockexpand.evaluation.outcomes import Sample, SuiteResults, TaskScore, read_samples
from blockexpand.evaluation.paired import Interval, mean_difference, ratio_difference, seeded_ratio_difference
from blockexpand.evaluation.verdict import Difference, Verdict, compare_records, judge

__all__ = [
    "Answer",
    "Endpoint",
    "Message",
    "Request",
    "ask_all",
    "AnswerTask",
    "Candidate",
    "Chosen",
    "Difference",
    "Evaluation",
    "EvaluationRecord",
    "HeldOut",
    "HeldOutWork",
    "Interval",
    "Options",
    "Sample",
    "Scores",
    "Start",
    "Subject",
    "Suite",
    "SuiteResults",
    "TaskScore",
    "Verdict",
    "compare_records",
    "differences",
    "evaluate",
    "evaluate_suites",
    "has_records",
    "judge",
    "known_suites",
    "load_suites",
    "load_tasks",
    "mean_difference",
    "ratio_difference",
    "read_evaluation",
    "read_samples",
    "read_suite",
    "seeded_ratio_difference",
]
