"""Which attention code a model runs with.

In: a model, a choice, the device. Out: the model with that code. `auto` takes what needs the least work for packed
rows: on CUDA varlen flash attention where flash-attn is installed, FlexAttention with a block mask otherwise; elsewhere
torch's own.
Refused: what the family, the device or the installation does not have.
"""

from __future__ import annotations

import importlib.util

import torch
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.live.forward import attention_of

_NAMES = {"sdpa": "sdpa", "flex": "flex_attention", "flash": "flash_attention_2", "eager": "eager"}
"""transformers' names (modeling_utils.py, 5.24)."""


def set_attention(model: PreTrainedModel, choice: str, device: torch.device) -> str:
    """Have the model attend in the chosen way; the name of what it then runs with.

    Raises:
        TrainingError: it cannot, and why.
    """
    if choice != "auto":
        reason = _switched(model, choice, device)
        if reason:
            raise TrainingError(
                f"attention {choice!r} cannot be used for {type(model).__name__} on {device.type}: {reason}; expected "
                "one that the family, the device and the installed packages have; choose attention=auto"
            )
        return attention_of(model)
    orders: dict[str, tuple[str, ...]] = {"cuda": ("flash", "flex", "sdpa", "eager")}
    for name in orders.get(device.type, ("sdpa", "eager")):
        if not _switched(model, name, device):
            break
    return attention_of(model)  # a family without attention has nothing to choose


def _switched(model: PreTrainedModel, name: str, device: torch.device) -> str:
    """Switch; why not, or nothing when it is done."""
    if name == "flex" and device.type == "cpu":
        return "torch's FlexAttention has no backward pass on the CPU"
    if name == "flash" and (device.type != "cuda" or importlib.util.find_spec("flash_attn") is None):
        return "it needs a CUDA device and the package flash-attn"
    try:
        model.set_attn_implementation(_NAMES[name])
    except (ValueError, ImportError) as error:
        return " ".join(str(error).split())[:200]
    return ""
