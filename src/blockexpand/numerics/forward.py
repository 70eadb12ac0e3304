"""Batches as tensors, and the forward pass to the final hidden states.

In: rows of tokens with their positions (which start anew at each document) and which tokens are trained.
Out: hidden states at the positions whose next token is trained, and those tokens. Document borders hold:
no attention mask is passed and the cache is off, since either would make transformers ignore the
positions that tell documents apart (measured, see docs/log.md).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.numerics.loss import linear_losses

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
    decoder = model.get_decoder()
    output = decoder(input_ids=batch.tokens_BT, position_ids=batch.positions_BT, use_cache=False)
    return output.last_hidden_state


def head_weight(model: PreTrainedModel) -> Tensor:
    """The output projection's weight [V, D]."""
    return model.get_output_embeddings().weight


def check_head(model: PreTrainedModel, batch: RowBatch) -> None:
    """Refuse a model whose logits are more than its head's product with the hidden states.

    The lean loss computes that product itself; a scale or a soft cap after it (Cohere, Granite, Gemma2)
    would be left out without a word.

    Raises:
        TrainingError: the logits differ, with the figure.
    """
    with torch.no_grad():
        hidden_D = hidden_states(model, batch)[0, -1]
        logits = model(input_ids=batch.tokens_BT, position_ids=batch.positions_BT, use_cache=False).logits[0, -1]
        ours = hidden_D @ head_weight(model).to(hidden_D.dtype).T
        difference = (ours.float() - logits.float()).abs().max().item()
    if not difference <= 1e-2 * max(1.0, logits.float().abs().max().item()):
        raise TrainingError(
            f"the logits of {type(model).__name__} are not the plain product of its head: largest difference "
            f"{difference:.3g}, expected about 0; this family's head is not supported for training yet"
        )


def cross_entropies(model: PreTrainedModel, batch: RowBatch) -> Tensor:
    """The cross-entropy in nats of every token that counts, float32 [R], without a gradient."""
    with torch.no_grad():
        hidden_RD = hidden_states(model, batch)[batch.predicted_BT()]
        weight_R = torch.ones(len(hidden_RD), device=hidden_RD.device)
        return linear_losses(hidden_RD, head_weight(model), batch.targets_R(), weight_R)[1]
