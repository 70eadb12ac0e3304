"""Batches as tensors, and the forward pass to final hidden states in which no document sees another.

In: rows of tokens with their positions (which start anew at each document) and which tokens count. Out: hidden
states that are, for each document, what it would give alone. Most families tell documents apart by these positions, as
long as no attention mask is passed and the cache is off. Some do not in transformers 5.24: GPT-OSS, OPT, BLOOM, MPT
and Qwen2.5-VL build their masks without positions; state-space and convolution blocks carry state over borders. Which
it is, is found out by changing one document and looking at another; where it shows, every document runs as a row of
its own. What counts, and where documents begin, are indices made on the host with the batch: no forward pass waits for
the device. Refused: a model in which one document still changes another, and one whose logits are not what its head,
as we know it, gives.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Sequence
from contextvars import ContextVar
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, masking_utils

from blockexpand.errors import TrainingError
from blockexpand.live.loss import Reference, linear_losses
from blockexpand.live.parts import Head, decoder_of, head_of, served_family

# B = rows of a batch, T = tokens of a row, R = positions that count, D = hidden size, V = vocabulary, N = documents,
# L = tokens of the longest of some documents.


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowBatch:
    """Rows of tokens on a device, and what of them counts: made on the host, copied once."""

    tokens_BT: Tensor
    positions_BT: Tensor
    predicted_R: Tensor
    """int64: the places, counted through all rows, whose next token counts."""
    targets_R: Tensor
    """int64: those next tokens."""
    counts_B: tuple[int, ...]
    """How many tokens count in each row; they follow each other in `predicted_R`."""
    starts_N: tuple[int, ...]
    """Where documents begin, counted through all rows; a row begins one in any case."""

    @classmethod
    def of(
        cls, tokens_NT: np.ndarray, positions_NT: np.ndarray, trained_NT: np.ndarray, device: torch.device
    ) -> RowBatch:
        """The batch of some rows, with which of their tokens count; copied without waiting for the device."""
        predicted_BT = np.zeros(trained_NT.shape, dtype=bool)
        predicted_BT[:, :-1] = trained_NT[:, 1:]
        (predicted_R,) = np.nonzero(predicted_BT.reshape(-1))
        starts_BT = positions_NT == 0
        starts_BT[:, 0] = True
        return cls(
            tokens_BT=_to(device, tokens_NT),
            positions_BT=_to(device, positions_NT),
            predicted_R=_to(device, predicted_R),
            targets_R=_to(device, tokens_NT.reshape(-1)[predicted_R + 1]),
            counts_B=tuple(predicted_BT.sum(1).tolist()),
            starts_N=tuple(np.nonzero(starts_BT.reshape(-1))[0].tolist()),
        )

    def rows(self, first: int) -> RowBatch:
        """The rows from `first` on."""
        before, tokens = sum(self.counts_B[:first]), first * self.tokens_BT.shape[1]
        return RowBatch(
            tokens_BT=self.tokens_BT[first:],
            positions_BT=self.positions_BT[first:],
            predicted_R=self.predicted_R[before:] - tokens,
            targets_R=self.targets_R[before:],
            counts_B=self.counts_B[first:],
            starts_N=tuple(start - tokens for start in self.starts_N if start >= tokens),
        )

    def predicting(self, hidden_BTD: Tensor) -> Tensor:
        """Of the hidden states [B, T, D] those that predict a token that counts, [R, D]."""
        return hidden_BTD.flatten(0, 1).index_select(0, self.predicted_R)


def _to(device: torch.device, values: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":  # only from pinned memory is a copy not waited for
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def hidden_states(model: PreTrainedModel, batch: RowBatch) -> Tensor:
    """The final hidden states [B, T, D] of a causal language model, after its last norm; no document sees another."""
    borders = len(batch.starts_N) > len(batch.tokens_BT)
    if not borders or isolates(model):
        return packed_states(model, batch.tokens_BT, batch.positions_BT, borders)
    return states_apart(model, batch.tokens_BT, batch.starts_N)


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
        difference, largest = torch.stack([(ours_TV - logits_TV).abs().max(), logits_TV.abs().max()]).cpu().tolist()
    if not difference <= 1e-2 * max(1.0, largest):
        raise TrainingError(
            f"the logits of {type(model).__name__} are not what its head gives: largest difference {difference:.3g}, "
            "expected about 0; this family does something to its logits that its family file does not say; add the "
            "config entry under [head] there, or train another base"
        )


def cross_entropies(model: PreTrainedModel, batch: RowBatch) -> Tensor:
    """The cross-entropy in nats of every token that counts, float32 [R], without a gradient."""
    return _answers(model, batch)[1]


def base_answers(model: PreTrainedModel, batch: RowBatch) -> tuple[Tensor, Tensor]:
    """The same of a base, and its hidden states there [R, D]: what `divergences` holds another model against."""
    hidden_RD, ce_R, _ = _answers(model, batch)
    return ce_R, hidden_RD


def divergences(model: PreTrainedModel, batch: RowBatch, hidden_RD: Tensor, head: Head | None) -> Tensor:
    """KL(base || model) in nats where a token that counts is predicted, float32 [R], without a gradient.

    Args:
        model: What is held against the base.
        batch: The rows.
        hidden_RD: The base's hidden states.
        head: The base's head; None: the model's own is the same.
    """
    none_R = hidden_RD.new_zeros(len(hidden_RD), dtype=torch.float32)
    base = Reference(hidden_GD=hidden_RD, head=head or head_of(model), weight_G=none_R)
    return _answers(model, batch, base)[2]


def _answers(model: PreTrainedModel, batch: RowBatch, base: Reference | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states that predict what counts [R, D], their cross-entropies [R] and KLs [R]."""
    with torch.no_grad():
        hidden_RD = batch.predicting(hidden_states(model, batch))
        weight_R = torch.ones(len(hidden_RD), device=hidden_RD.device)
        _, ce_R, kl_R = linear_losses(hidden_RD, head_of(model), batch.targets_R, weight_R, base)
        return hidden_RD, ce_R, kl_R


# --- documents apart -------------------------------------------------------------------------------------

_PROBE_LENGTHS = (17, 20, 11)
"""Documents of the probe: longer than the convolutions and chunks of the families' tiny models."""
_ROUNDINGS = 8
"""Of the least precise weights. Measured on the tiny models of tests/families, in roundings of float32: at most 2.2
where it is rounding alone, at least 430,000 (0.05 of the largest hidden state) where documents leak."""

_ISOLATES: WeakKeyDictionary[PreTrainedModel, dict[str, bool]] = WeakKeyDictionary()
"""What was found out of each model, by its attention implementation."""


def packed_states(
    model: PreTrainedModel, tokens_BT: Tensor, positions_BT: Tensor, borders: bool | None = None
) -> Tensor:
    """Hidden states [B, T, D] of whole rows; that documents are told apart is left to the model.

    `borders`: whether a row holds more than one document. If it is not said, transformers asks the device.
    """
    shape = tokens_BT.shape
    if attention_of(model).startswith("flash"):
        # transformers takes varlen flash attention by positions for a batch of one row only.
        tokens_BT, positions_BT = tokens_BT.reshape(1, -1), positions_BT.reshape(1, -1)
        borders = None if borders is None else borders or shape[0] > 1
    with _said(borders):
        output = _decoder(model)(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False)
    return output.last_hidden_state.reshape(*shape, -1)


def _decoder(model: PreTrainedModel) -> nn.Module:
    """The decoder, without transformers' warning of filling that no mask hides: it asks the device for it (GPT-2)."""
    decoder = decoder_of(model)
    vars(decoder)["warn_if_padding_and_no_attention_mask"] = _no_warning
    return decoder


def _no_warning(*_: object) -> None:
    """Filling is at the ends of rows, where nothing sees it, and never counts."""


_BORDERS: ContextVar[bool | None] = ContextVar("borders", default=None)
_find_on_device = masking_utils.find_packed_sequence_indices


def _find_documents(positions_BT: Tensor) -> Tensor | None:
    """What transformers' own gives, without asking the device whether there is more than one document to a row."""
    borders = _BORDERS.get()
    if borders is None:
        return _find_on_device(positions_BT)
    if not borders:
        return None
    return (torch.diff(positions_BT, prepend=positions_BT[:, :1] - 1, dim=-1) != 1).cumsum(-1)


@contextlib.contextmanager
def _said(borders: bool | None) -> Generator[None]:
    """Inside, transformers' masks take it from the host (masking_utils.py, 5.24: otherwise each pass waits once)."""
    vars(masking_utils)["find_packed_sequence_indices"] = _find_documents
    token = _BORDERS.set(borders)
    try:
        yield
    finally:
        _BORDERS.reset(token)


def states_apart(model: PreTrainedModel, tokens_BT: Tensor, starts_N: Sequence[int]) -> Tensor:
    """The same with every document in a row of its own, filled up at its end, where nothing sees the filling.

    Documents of like length share a pass, which is never larger than the rows were (one process).
    """
    tokens_A, device = tokens_BT.flatten(), tokens_BT.device
    lengths = [end - start for start, end in zip(starts_N, [*starts_N[1:], len(tokens_A)], strict=True)]
    order = sorted(range(len(starts_N)), key=lambda number: -lengths[number])
    # A model sharded over processes must run as often in each of them, whatever documents they have: in one pass.
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    found, places, offset = [], np.zeros(len(tokens_A), dtype=np.int64), 0
    for group in [order] if sharded else _groups(order, lengths, len(tokens_A)):
        longest = lengths[group[0]]
        taken_NL = np.zeros((len(group), longest), dtype=np.int64)
        for row, number in enumerate(group):
            start, length = starts_N[number], lengths[number]
            taken_NL[row] = start  # the filling: any token does
            taken_NL[row, :length] = np.arange(start, start + length)
            places[start : start + length] = offset + row * longest + np.arange(length)
        tokens_NL = tokens_A.index_select(0, _to(device, taken_NL.reshape(-1))).reshape(taken_NL.shape)
        positions_NL = torch.arange(longest, device=device).expand(len(group), -1)
        with _said(False):
            output = _decoder(model)(input_ids=tokens_NL, position_ids=positions_NL, use_cache=False)
        found.append(output.last_hidden_state.flatten(0, 1))
        offset += taken_NL.size
    return torch.cat(found).index_select(0, _to(device, places)).reshape(*tokens_BT.shape, -1)


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


def allowed(model: PreTrainedModel) -> float:
    """The leak that is none: nothing, but for rounding where experts take tokens of all documents in one product."""
    family = served_family(model)
    if family is None or not family.block.experts:
        return 0.0
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return _ROUNDINGS * max(torch.finfo(dtype).eps for dtype in dtypes)


@torch.no_grad()
def leak(model: PreTrainedModel, *, packed: bool = False) -> float:
    """How far hidden states move, over the largest, when another document in their row changes: 0.0 when apart.

    With `packed`, of the model as it is; otherwise as `hidden_states` runs it.
    """
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    most, device = embeddings.num_embeddings, embeddings.weight.device
    positions_BT = np.tile(np.concatenate([np.arange(length) for length in _PROBE_LENGTHS]), (2, 1))
    tokens_BT = np.random.default_rng(0).integers(0, most, positions_BT.shape)
    first, second = _PROBE_LENGTHS[0], _PROBE_LENGTHS[0] + _PROBE_LENGTHS[1]

    def run(tokens_BT: np.ndarray) -> Tensor:
        batch = RowBatch.of(tokens_BT, positions_BT, positions_BT > 0, device)
        return packed_states(model, batch.tokens_BT, batch.positions_BT) if packed else hidden_states(model, batch)

    moved: list[Tensor] = []
    with torch.compiler.set_stance("force_eager"):  # a shape of its own is not worth compiling for
        before_BTD = run(tokens_BT)
        for changed, seen in ((slice(0, first), slice(first, None)), (slice(first, second), slice(0, first))):
            others_BT = tokens_BT.copy()
            others_BT[0, changed] = (others_BT[0, changed] + 1) % most
            difference_BTD = (run(others_BT) - before_BTD).abs()
            moved += [difference_BTD[0, seen].max(), difference_BTD[1].max()]
    return (torch.stack(moved).max() / before_BTD.abs().max()).item()


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
