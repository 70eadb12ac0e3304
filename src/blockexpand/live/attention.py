"""Which attention code a model runs with.

In: a model, a choice, the device. Out: the model with that code. `auto` takes what needs the least work for packed
rows: on CUDA varlen flash attention where flash-attn is installed, FlexAttention with a block mask otherwise; on CPU
attention in blocks (blocked.py) where it gives this model the numbers of torch's own, and torch's own otherwise.
Refused: what the family, the device or the installation does not have.
"""

from __future__ import annotations

import importlib.util
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.live import blocked
from blockexpand.live.forward import attention_of, packed_states

# B = rows, T = tokens of a row, D = hidden size.

_NAMES = {"sdpa": "sdpa", "flex": "flex_attention", "flash": "flash_attention_2", "eager": "eager"}
"""transformers' names (modeling_utils.py, 5.24)."""


def set_attention(model: PreTrainedModel, choice: str, device: torch.device) -> str:
    """Have the model attend in the chosen way; the name of what it then runs with.

    The model needs no values yet: `blocked`, and `auto` on a CPU, begin with torch's own, and `prefer_blocked`
    settles it once the model can run.

    Raises:
        TrainingError: it cannot, and why.
    """
    if choice == "blocked" and device.type != "cpu":
        raise _refusal(model, choice, device, "it is for the CPU")
    if choice != "auto":
        reason = _switched(model, "sdpa" if choice == "blocked" else choice, device)
        if reason:
            raise _refusal(model, choice, device, reason)
        return attention_of(model)
    orders: dict[str, tuple[str, ...]] = {"cuda": ("flash", "flex", "sdpa", "eager")}
    for name in orders.get(device.type, ("sdpa", "eager")):
        if not _switched(model, name, device):
            break
    return attention_of(model)  # a family without attention has nothing to choose


def _refusal(model: PreTrainedModel, choice: str, device: torch.device, reason: str) -> TrainingError:
    return TrainingError(
        f"attention {choice!r} cannot be used for {type(model).__name__} on {device.type}: {reason}; expected "
        "one that the family, the device and the installed packages have; choose attention=auto"
    )


def prefer_blocked(model: PreTrainedModel, choice: str) -> str:
    """Switch from torch's own attention to attention in blocks where `choice` asks for it or allows it.

    The model runs twice on a few tokens, so of a sharded one every process must call this. The name of what it
    runs with from then on.

    Raises:
        TrainingError: `choice` is "blocked" and the model cannot, and why.
    """
    device = next(model.parameters()).device
    if choice not in ("auto", "blocked") or device.type != "cpu" or attention_of(model) != "sdpa":
        if choice == "blocked" and attention_of(model) != blocked.NAME:
            raise _refusal(model, choice, device, f"this family runs with {attention_of(model)} attention")
        return attention_of(model)
    blocked.register()
    before = _probe(model)
    model.set_attn_implementation(blocked.NAME)
    reason = _difference(model, before)
    if reason:
        model.set_attn_implementation("sdpa")
        if choice == "blocked":
            raise _refusal(model, choice, device, reason)
    return attention_of(model)


def _difference(model: PreTrainedModel, before: list[Tensor]) -> str:
    """Why attention in blocks is not what the model does with sdpa, which gave `before`; nothing where it is.

    Each call is made both ways on the same inputs, and torch's result goes on: so hidden states must have the same
    bits, which shows that the family hands over the same, and each call's results may differ by rounding.
    """
    try:
        with blocked.witnessed() as differences:
            after = _probe(model)
    except blocked.UnsupportedAttentionError as error:
        return str(error)
    if not differences:
        return "the family does not call transformers' attention functions"
    if not all(torch.equal(a, b) for a, b in zip(after, before, strict=True)):
        return "the family treats it otherwise than sdpa"
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else model.dtype
    most = _ROUNDINGS.get(dtype, 8) * torch.finfo(dtype).eps
    if not max(differences) <= most:
        return f"it is off from sdpa by {max(differences):.3g} of the largest, expected at most {most:.3g}"
    return ""


_ROUNDINGS = {torch.float32: 32}
"""Of the type of arithmetic; 8 where nothing is said. Measured on the tiny models of tests/families, whose scores are
large: at most 19 in float32."""
_PROBE_LENGTHS = (9, 70, 17)
"""Documents of the probe: one of them longer than a block of queries, so that blocks meet inside it."""


@torch.no_grad()
def _probe(model: PreTrainedModel) -> list[Tensor]:
    """Hidden states [B, T, D] of rows of several documents, and of rows of one."""
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    device, generator = embeddings.weight.device, torch.Generator().manual_seed(0)
    packed_T = torch.cat([torch.arange(length) for length in _PROBE_LENGTHS])
    tokens_BT = torch.randint(embeddings.num_embeddings, (2, len(packed_T)), generator=generator).to(device)
    with torch.compiler.set_stance("force_eager"):
        return [
            packed_states(model, tokens_BT, positions_T.repeat(2, 1).to(device))
            for positions_T in (packed_T, torch.arange(len(packed_T)))
        ]


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
