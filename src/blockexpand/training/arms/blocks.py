"""The arm `blocks`: the new blocks of an expanded checkpoint train, everything the base had is frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from blockexpand import live
from blockexpand.training.arms.trainee import Trainee, make_trainable


class Blocks:
    """LLaMA Pro's post-pretraining (paper section 3.2)."""

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool) -> Trainee:
        """Load the expanded checkpoint; the base is inside it, so a reference costs nothing."""
        del needs_reference
        loaded, _ = live.load(folder, dtype=dtype)
        model = cast(PreTrainedModel, loaded.eval())
        trainable = make_trainable(dict(live.freeze(model)))
        return Trainee(
            model=model,
            trainable=trainable,
            writers=live.writers(loaded),
            reference=lambda: _base_of(model),
            tensors=lambda: {name: parameter.detach() for name, parameter in trainable.items()},
        )


@contextlib.contextmanager
def _base_of(model: PreTrainedModel) -> Generator[PreTrainedModel]:
    with live.bypass(model):
        yield model
