"""Batches as tensors, and the forward pass to final hidden states in which no document sees another.

In: rows of tokens with their positions (which start anew at each document) and which tokens count. Out: hidden
states that are, for each document, what it would give alone. Most families tell documents apart by these positions, as
long as no attention mask is passed and the cache is off. Some do not in transformers 5.24: GPT-OSS, OPT, BLOOM, MPT
and Qwen2.5-VL build their masks without positions; state-space and convolution blocks carry state over borders. Which
it is, is found out by changing one document and looking at another; where it shows, every document runs as a row of
its own. Refused: a model in which one document still changes another, and one whose logits are not what its head, as
we know it, gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.live.loss import linear_losses
from blockexpand.live.parts import decoder_of, head_of, served_family

# B = rows of a batch, T = tokens of a row, R = positions that count, D = hidden size, V = vocabulary.


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowBatch:
    """Rows of tokens on a device."""

    tokens_BT: Tensor
    positions_BT: Tensor
    trained_BT: Tensor
    """bool: whether a token's prediction counts."""

    @classmethod
    def of(
        cls, tokens_NT: np.ndarray, positions_NT: np.ndarray, trained_NT: np.ndarray, device: torch.device
    ) -> RowBatch:
        """The batch of some rows of a prepared split."""
        return cls(
            tokens_BT=torch.from_numpy(tokens_NT).to(device),
            positions_BT=torch.from_numpy(positions_NT).to(device),
            trained_BT=torch.from_numpy(np.ascontiguousarray(trained_NT)).to(device),
        )

    def rows(self, which: slice) -> RowBatch:
        """Some of the rows."""
        return RowBatch(**{name: value[which] for name, value in vars(self).items()})

    def predicted_BT(self) -> Tensor:
        """bool [B, T]: whether the hidden state at a position predicts a token that counts."""
        predicted = torch.zeros_like(self.trained_BT)
        predicted[:, :-1] = self.trained_BT[:, 1:]
        return predicted

    def targets_R(self) -> Tensor:
        """The tokens that count, in the order of `predicted_BT`'s true places."""
        return self.tokens_BT[:, 1:][self.trained_BT[:, 1:]]


def hidden_states(model: PreTrainedModel, batch: RowBatch) -> Tensor:
    """The final hidden states [B, T, D] of a transformers causal language model, after its last norm."""
    return states(model, batch.tokens_BT, batch.positions_BT)


_CHECKED_TOKENS = 64
"""Tokens on which the head is checked: all that a wrong factor needs."""


def check_head(model: PreTrainedModel, batch: RowBatch) -> None:
    """Refuse a model whose logits are not what its head, as we know it, makes of the hidden states.

    The lean loss computes logits itself; what else a model does to them would be left out without a word.
    One row is looked at, or the beginning of it.

    Raises:
        TrainingError: the logits differ, with the figure.
    """
    tokens_1T = batch.tokens_BT[:1, :_CHECKED_TOKENS]
    positions_1T = torch.arange(tokens_1T.shape[1], device=tokens_1T.device)[None]  # as one document
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        ours_TV = head_of(model).logits_CV(packed_states(model, tokens_1T, positions_1T)[0])
        logits_TV = model(input_ids=tokens_1T, position_ids=positions_1T, use_cache=False).logits[0].float()
        difference = (ours_TV - logits_TV).abs().max().item()
    if not difference <= 1e-2 * max(1.0, logits_TV.abs().max().item()):
        raise TrainingError(
            f"the logits of {type(model).__name__} are not what its head gives: largest difference {difference:.3g}, "
            "expected about 0; this family does something to its logits that its family file does not say; add the "
            "config entry under [head] there, or train another base"
        )


def cross_entropies(model: PreTrainedModel, batch: RowBatch) -> Tensor:
    """The cross-entropy in nats of every token that counts, float32 [R], without a gradient."""
    with torch.no_grad():
        hidden_RD = hidden_states(model, batch)[batch.predicted_BT()]
        weight_R = torch.ones(len(hidden_RD), device=hidden_RD.device)
        return linear_losses(hidden_RD, head_of(model), batch.targets_R(), weight_R)[1]


# B = rows, T = tokens of a row, N = documents, L = tokens of the longest of some documents, D = hidden size.

_PROBE_LENGTHS = (17, 20, 11)
"""Documents of the probe: longer than the convolutions and chunks of the families' tiny models."""
_ROUNDINGS = 8
"""Of the least precise weights. Measured on the tiny models of tests/families, in roundings of float32: at most 2.2
where it is rounding alone, at least 430,000 (0.05 of the largest hidden state) where documents leak."""

_ISOLATES: WeakKeyDictionary[PreTrainedModel, dict[str, bool]] = WeakKeyDictionary()
"""What was found out of each model, by its attention implementation."""


def packed_states(model: PreTrainedModel, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Hidden states [B, T, D] of whole rows; that documents are told apart is left to the model."""
    shape = tokens_BT.shape
    if attention_of(model).startswith("flash"):
        # transformers takes varlen flash attention by positions for a batch of one row only.
        tokens_BT, positions_BT = tokens_BT.reshape(1, -1), positions_BT.reshape(1, -1)
    output = decoder_of(model)(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False)
    return output.last_hidden_state.reshape(*shape, -1)


def states_apart(model: PreTrainedModel, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """The same with every document in a row of its own, filled up at its end, where nothing sees the filling.

    Documents of like length share a pass, which is never larger than the rows were (one process).
    """
    tokens_A = tokens_BT.flatten()
    starts = cast(list[int], (positions_BT.flatten() == 0).nonzero()[:, 0].tolist())
    lengths = [end - start for start, end in zip(starts, [*starts[1:], len(tokens_A)], strict=True)]
    order = sorted(range(len(starts)), key=lambda number: -lengths[number])
    parts: dict[int, Tensor] = {}
    # A model sharded over processes must run as often in each of them, whatever documents they have: in one pass.
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    for group in [order] if sharded else _groups(order, lengths, len(tokens_A)):
        longest = lengths[group[0]]
        tokens_NL = tokens_A.new_zeros(len(group), longest)
        for row, number in enumerate(group):
            tokens_NL[row, : lengths[number]] = tokens_A[starts[number] : starts[number] + lengths[number]]
        positions_NL = torch.arange(longest, device=tokens_A.device).repeat(len(group), 1)
        output = decoder_of(model)(input_ids=tokens_NL, position_ids=positions_NL, use_cache=False)
        for row, number in enumerate(group):
            parts[number] = output.last_hidden_state[row, : lengths[number]]
    return torch.cat([parts[number] for number in range(len(starts))]).reshape(*tokens_BT.shape, -1)


def _groups(order: list[int], lengths: list[int], most_tokens: int) -> Iterator[list[int]]:
    """Documents, longest first, in groups that are no larger than `most_tokens` once filled up."""
    group: list[int] = []
    for number in order:
        if group and (len(group) + 1) * lengths[group[0]] > most_tokens:
            yield group
            group = []
        group.append(number)
    yield group


def attention_of(model: PreTrainedModel) -> str:
    """transformers' name of the attention implementation that the model runs with."""
    return vars(model.config).get("_attn_implementation_internal") or "eager"


def isolates(model: PreTrainedModel) -> bool:
    """Whether the model itself keeps documents in a row apart; found out once for each model and attention."""
    found = _ISOLATES.setdefault(model, {})
    attention = attention_of(model)
    if attention not in found:
        found[attention] = leak(model, packed=True) <= allowed(model)
    return found[attention]


def states(model: PreTrainedModel, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Hidden states [B, T, D] in which no document sees another."""
    if isolates(model) or not bool((positions_BT[:, 1:] == 0).any()):
        return packed_states(model, tokens_BT, positions_BT)
    return states_apart(model, tokens_BT, positions_BT)


def allowed(model: PreTrainedModel) -> float:
    """The leak that is none: nothing, but for rounding where experts take tokens of all documents in one product."""
    family = served_family(model)
    if family is None or family.block.experts is None:
        return 0.0
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return _ROUNDINGS * max(torch.finfo(dtype).eps for dtype in dtypes)


@torch.no_grad()
def leak(model: PreTrainedModel, *, packed: bool = False) -> float:
    """How far hidden states move, over the largest, when another document in their row changes: 0.0 when apart.

    With `packed`, of the model as it is; otherwise as `states` runs it.
    """
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    most, device = embeddings.num_embeddings, embeddings.weight.device
    positions_BT = torch.cat([torch.arange(length) for length in _PROBE_LENGTHS]).repeat(2, 1).to(device)
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(most, positions_BT.shape, generator=generator).to(device)
    first, second = _PROBE_LENGTHS[0], _PROBE_LENGTHS[0] + _PROBE_LENGTHS[1]
    moved = 0.0
    with torch.compiler.set_stance("force_eager"):  # a shape of its own is not worth compiling for
        run = packed_states if packed else states
        before_BTD = run(model, tokens_BT, positions_BT)
        for changed, seen in ((slice(0, first), slice(first, None)), (slice(first, second), slice(0, first))):
            others_BT = tokens_BT.clone()
            others_BT[0, changed] = (others_BT[0, changed] + 1) % most
            difference_BTD = (run(model, others_BT, positions_BT) - before_BTD).abs()
            moved = max(moved, difference_BTD[0, seen].max().item(), difference_BTD[1].max().item())
    return moved / before_BTD.abs().max().item()


def check_isolation(model: PreTrainedModel) -> None:
    """Refuse to train or measure with a model in which one document changes another in its row.

    Raises:
        TrainingError: it does, by how much, and with which attention.
    """
    moved = leak(model)
    if not moved <= allowed(model):
        raise TrainingError(
            f"documents in one row see each other in {type(model).__name__} with {attention_of(model)} attention: "
            f"changing one moves another's hidden states by {moved:.3g} of the largest, expected at most "
            f"{allowed(model):.3g}; choose another `attention`, e.g. eager"
        )
