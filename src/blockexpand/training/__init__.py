"""One lean loop for every stage and every arm: post-pretraining, instruction tuning, comparisons."""

from blockexpand.errors import Interrupted, Preempted
from blockexpand.training.callback import BlockExpansionCallback
from blockexpand.training.forecast import Devices, Forecast, forecast
from blockexpand.training.running import RunRecord, load_settings, sft, train
from blockexpand.training.settings import TrainSettings
from blockexpand.training.shipping import load_shipped, shipped_folder
from blockexpand.training.tracker import read_metrics

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
    "read_metrics",
    "sft",
    "shipped_folder",
    "train",
]
