"""One lean loop for every stage and every arm: post-pretraining, instruction tuning, comparisons."""

from blockexpand.errors import Interrupted, Preempted
from blockexpand.records.run import RunRecord, TrainSettings, load_settings
from blockexpand.training.callback import BlockExpansionCallback
from blockexpand.training.forecast import Devices, Forecast, forecast
from blockexpand.training.run import load_shipped, sft, shipped_folder, train

__all__ = [
    "BlockExpansionCallback",
    "Devices",
    "Forecast",
    "Interrupted",
    "Preempted",
    "RunRecord",
    "TrainSettings",
    "forecast",
    "load_settings",
    "load_shipped",
    "sft",
    "shipped_folder",
    "train",
]
