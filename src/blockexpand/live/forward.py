"""Batches as tensors, and the forward pass to the final hidden states.

In: rows of tokens with their positions (which start anew at each document) and which tokens are trained.
Out: hidden states at the positions whose next token is trained, and those tokens. Document borders hold
(isolation.py).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.live.head import head_of
from blockexpand.live.isolation import packed_states, states
from blockexpand.live.loss import linear_losses

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
