"""One lean loop for every stage and every arm: post-pretraining, instruction tuning, comparisons."""

from blockexpand.errors import Interrupted, Preempted
from blockexpand.records.run import RunRecord, TrainSettings, load_settings
from blockexpand.training.arms import Arm, Trainee, check_blocks, load_model, make_trainable, refuse_many
from blockexpand.training.callback import BlockExpansionCallback
from blockexpand.training.run import RunTakes, check_run, load_shipped, run_digest, shipped_folder, train

__all__ = [
    "Arm",
    "BlockExpansionCallback",
    "Interrupted",
    "Preempted",
    "RunRecord",
    "RunTakes",
    "TrainSettings",
    "Trainee",
    "check_blocks",
    "check_run",
    "load_model",
    "load_settings",
    "load_shipped",
    "make_trainable",
    "refuse_many",
    "run_digest",
    "shipped_folder",
    "train",
]
