"""The arm `upscaled`: depth up-scaling (SOLAR, Yi-9B), every parameter of a deeper checkpoint.

In: a folder that `expand` wrote, as a rule with copies of blocks that are not silenced. Such a model is not the base at
its first step, so the reference is a second copy of it with the new blocks bypassed, and what is forgotten is measured
from there. Out: a plain checkpoint of the family.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from blockexpand.live import bypass, load, writers
from blockexpand.training import Trainee, make_trainable, refuse_many


class Upscaled:
    """Continued training of the whole deeper model (arXiv 2312.15166, section 2; arXiv 2403.04652, section 7.3)."""

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool, empty: bool = False) -> Trainee:
        """Load the deeper checkpoint, and the base out of a second copy of it.

        Raises:
            PlanError: the folder has no record of an expansion.
            TrainingError: `empty` is asked for.
        """
        refuse_many("upscaled", empty)
        loaded, plan = load(folder, dtype=dtype)
        model = cast(PreTrainedModel, loaded.eval())
        starts_as_base = plan.init == "identity"
        base = None
        if needs_reference or not starts_as_base:
            base = cast(PreTrainedModel, load(folder, dtype=dtype)[0].eval().requires_grad_(False))

        @contextlib.contextmanager
        def reference() -> Generator[PreTrainedModel]:
            assert base is not None, "a reference was not asked for when the model was loaded"
            with bypass(base):
                yield base

        return Trainee(
            model=model,
            trainable=make_trainable(dict(model.named_parameters())),
            writers=frozenset(writers(loaded)),
            reference=reference,
            tensors=dict,
            others=(base,) if base is not None else (),
            starts_as_base=starts_as_base,
        )
