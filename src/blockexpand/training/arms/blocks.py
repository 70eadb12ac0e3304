"""The arm `blocks`: the new blocks of an expanded checkpoint train, everything the base had is frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand import live
from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.errors import TrainingError
from blockexpand.families import family_for
from blockexpand.training.arms.quantised import load_quantised
from blockexpand.training.arms.trainee import Trainee, make_trainable
from blockexpand.training.settings import BasePrecision
from blockexpand.units import FLOATS

"""The dtypes that trained weights can be written in."""


class Blocks:
    """LLaMA Pro's post-pretraining (paper section 3.2)."""

    def __init__(self, base_precision: BasePrecision = "same") -> None:
        """How the old blocks are held; the new ones are always whole."""
        self._base_precision: BasePrecision = base_precision

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool, empty: bool = False) -> Trainee:
        """Load the expanded checkpoint; the base is inside it, so a reference costs nothing."""
        del needs_reference
        if self._base_precision == "same":
            loaded: nn.Module = live.load(folder, dtype=dtype, device="meta" if empty else "cpu")[0]
        elif empty:
            raise TrainingError(
                f"base_precision is {self._base_precision!r}, and quantised weights cannot be sharded over processes; "
                "expected one process; start without torchrun, or set base_precision=same"
            )
        else:
            loaded = load_quantised(folder, self._base_precision, dtype)
        checkpoint = open_checkpoint(folder)
        family = family_for(checkpoint.config, str(folder), checkpoint.tensors)
        _check_shippable(checkpoint, live.tensors_on_disk(loaded, family))
        model = cast(PreTrainedModel, loaded.eval())
        trainable = make_trainable(dict(live.freeze(model)))
        return Trainee(
            model=model,
            trainable=trainable,
            writers=live.writers(loaded),
            reference=lambda: _base_of(model),
            tensors=lambda values: live.tensors_on_disk(model, family, values),
        )


def _check_shippable(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Refuse, before the first step, blocks that could not be written back into the checkpoint afterwards."""
    for name, tensor in tensors.items():
        entry = checkpoint.tensors.get(name)
        if entry is None or entry.shape != tuple(tensor.shape) or entry.dtype not in FLOATS:
            found = f"{entry.dtype} {list(entry.shape)}" if entry else "no such tensor"
            raise TrainingError(
                f"{checkpoint.source} has {found} for the new block's {name}, so training could not be kept; "
                f"expected {list(tensor.shape)} in {', '.join(FLOATS)}; expand a base with float weights"
            )


@contextlib.contextmanager
def _base_of(model: PreTrainedModel) -> Generator[PreTrainedModel]:
    with live.bypass(model):
        yield model
