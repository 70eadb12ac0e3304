"""What a model can do: held-out losses, tasks with checkable answers, and paired differences."""

from blockexpand.evaluation.answers import AnswerTask, Scores, load_tasks
from blockexpand.evaluation.evaluating import (
    Evaluation,
    EvaluationRecord,
    Subject,
    differences,
    evaluate,
    read_evaluation,
)
from blockexpand.evaluation.losses import HeldOut
from blockexpand.evaluation.paired import Interval, mean_difference, ratio_difference, seeded_ratio_difference

__all__ = [
    "AnswerTask",
    "Evaluation",
    "EvaluationRecord",
    "HeldOut",
    "Interval",
    "Scores",
    "Subject",
    "differences",
    "evaluate",
    "load_tasks",
    "mean_difference",
    "ratio_difference",
    "read_evaluation",
    "seeded_ratio_difference",
]
