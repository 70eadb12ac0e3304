"""An expanded checkpoint with its old blocks quantised to 8 or 4 bits, and its new ones as they are (bitsandbytes).

In: an expanded folder, how to quantise, the dtype of everything else. Out: the loaded model, known to be expanded;
bypassed, it is the base quantised in the same way, to the bit. The head, embeddings, norms and new blocks stay
floats, and so do experts that transformers holds as one tensor. Refused: a machine without bitsandbytes, a model in
which not exactly the old blocks' linear layers could be quantised.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from blockexpand import live
from blockexpand.errors import TrainingError
from blockexpand.families import known_families
from blockexpand.families.modules import load_model, stack_of
from blockexpand.records.expansion import read_expansion

Quantised = Literal["int8", "nf4"]
_PACKED = frozenset({"Int8Params", "Params4bit"})
"""bitsandbytes' classes of quantised weights (bitsandbytes/nn/modules.py, 0.50)."""


def quantisation(kind: Quantised, dtype: torch.dtype, skipped: list[str]) -> BitsAndBytesConfig:
    """What transformers is asked for; `skipped` are the modules that stay floats."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=skipped
    )


def load_quantised(folder: Path, kind: Quantised, dtype: torch.dtype) -> PreTrainedModel:
    """The model of an expanded folder, in eval mode, with its old blocks quantised.

    Raises:
        TrainingError: bitsandbytes is missing, or not exactly the old blocks were quantised.
        PlanError: the folder has no record of an expansion.
        LiveError: transformers cannot load it, or it does not fit its record.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise TrainingError(
            f"base_precision is {kind!r}, and bitsandbytes is not installed; expected it beside torch; "
            "pip install 'blockexpand[quantised]', or set base_precision=same"
        )
    plan = read_expansion(folder).plan
    family = known_families()[plan.base.family]
    new = {block.position for block in plan.new_blocks}
    skipped = [f"{family.stack.module}.{position}" for position in sorted(new)]
    config = quantisation(kind, dtype, [*skipped, *(n.removesuffix(".weight") for n in family.outer.matrices)])
    model = load_model(folder, dtype=dtype, loader=family.loader, quantization=config)
    _check_quantised(stack_of(model, family), new, str(folder))
    return cast(PreTrainedModel, live.adopt(model, plan))


def is_packed(module: nn.Module) -> bool:
    """Whether a linear layer's weight is quantised."""
    weight: Any = vars(module)["_parameters"].get("weight")
    return type(weight).__name__ in _PACKED


def _check_quantised(stack: nn.ModuleList, new: set[int], folder: str) -> None:
    """transformers chooses layers by patterns of names; see that it chose what was meant."""
    for position, block in enumerate(stack):
        linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
        found = sum(is_packed(module) for module in linears)
        expected = 0 if position in new else len(linears)
        if found != expected:
            raise TrainingError(
                f"block {position} of {folder} has {found} of its {len(linears)} linear layers quantised; expected "
                f"{expected}, since it is {'new' if position in new else 'old'}; set base_precision=same"
            )
