"""The loss of held-out documents while a run goes on: of the domain's, and of general text against the base.

In: held-out rows, and the model that trains. Out: sums over documents, from all processes. Of text that the base wrote
itself each next token is a draw from what the base expected there, so what its loss rises by, on average over draws, is
the KL to the base. That is taken at every place: it has a third to three quarters of the spread of the loss of the
tokens that happened to be drawn (docs/log.md), so the same documents promise more. Text that somebody else wrote is
measured by its tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand.live.forward import RowBatch, base_answers, cross_entropies, divergences
from blockexpand.live.parts import Head, head_of
from blockexpand.progress import Bar
from blockexpand.training.budget import DocumentSums
from blockexpand.training.data import HeldOut
from blockexpand.training.processes import World, drop_gathered

_Losses = Callable[[str, int, RowBatch], Tensor]
"""Of the kind of text and the number of a batch, and the batch: what counts at each place, float32 [R]."""
_NOTHING: Mapping[str, AtBase] = MappingProxyType({})


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtBase:
    """What the base says of held-out text that it wrote itself."""

    sums: DocumentSums
    hidden: list[Tensor]
    """The hidden states that predict what counts, of each batch of this process [R, D]."""
    head: Head | None
    """As it was, where it trains; None: the model's own is the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentLosses:
    """What measures documents; every process must call it, and each call waits for the device once."""

    model: PreTrainedModel
    """What trains."""
    root: nn.Module
    """What all passes go through."""
    world: World
    rows_per_pass: int
    autocast: torch.autocast
    own: frozenset[str]
    """The kinds of text that the base wrote."""

    def of_base(
        self, texts: Mapping[str, HeldOut], base: PreTrainedModel | None = None, shown: Bar | None = None
    ) -> dict[str, AtBase]:
        """What the base says of those of the texts that it wrote; None: it is what stands on the model."""
        own = {kind: held for kind, held in texts.items() if kind in self.own}
        hidden: dict[str, list[Tensor]] = {kind: [] for kind in own}
        heads: list[Head] = []

        def losses(kind: str, number: int, batch: RowBatch) -> Tensor:
            del number
            model = base or self.model
            if not heads and head_of(self.model).weight_VD.requires_grad:
                heads.append(_copy(head_of(model)))  # here, where it is whole
            ce_R, hidden_RD = base_answers(model, batch)
            hidden[kind].append(hidden_RD)
            return ce_R

        sums = self._summed(own, losses, shown)
        head = heads[0] if heads else None
        return {kind: AtBase(sums=one, hidden=hidden[kind], head=head) for kind, one in sums.items()}

    def of(
        self,
        texts: Mapping[str, HeldOut],
        model: PreTrainedModel | None = None,
        *,
        at_base: Mapping[str, AtBase] = _NOTHING,
        known: Mapping[str, AtBase] = _NOTHING,
        shown: Bar | None = None,
    ) -> dict[str, DocumentSums]:
        """The loss of each document.

        Args:
            texts: By kind, the rows.
            model: What to measure; what trains if not given.
            at_base: What the base says of text that it wrote, whose loss is then the base's and the KL to it.
            known: What the model is known to give: it is the base.
            shown: What is told of each row.
        """

        def losses(kind: str, number: int, batch: RowBatch) -> Tensor:
            if kind in at_base:
                base = at_base[kind]
                return divergences(model or self.model, batch, base.hidden[number], base.head)
            return cross_entropies(model or self.model, batch)

        measured = self._summed({kind: held for kind, held in texts.items() if kind not in known}, losses, shown)
        for kind in measured.keys() & at_base.keys():
            base = at_base[kind].sums
            measured[kind] = dataclasses.replace(base, losses_N=base.losses_N + measured[kind].losses_N)
        return {kind: known[kind].sums if kind in known else measured[kind] for kind in texts}

    def _summed(self, texts: Mapping[str, HeldOut], losses: _Losses, shown: Bar | None) -> dict[str, DocumentSums]:
        if not texts:
            return {}
        found, documents, first = [], [], 0
        drop_gathered(self.root)  # something may have been put on the parameters since the last pass
        with self.autocast:
            for kind, held in texts.items():
                for number, (batch, documents_R) in enumerate(held.batches(self.rows_per_pass, self.world)):
                    found.append(self.root(losses, kind, number, batch))
                    documents.append(first + documents_R)
                    if shown is not None:
                        shown.advance(len(batch.tokens_BT) * self.world.size)
                first += held.num_documents
        losses_R = torch.cat(found).cpu().double().numpy()
        sums = np.bincount(np.concatenate(documents), weights=losses_R, minlength=first)
        ends = np.cumsum([held.num_documents for held in texts.values()])[:-1]
        parts = np.split(np.array(self.world.total(sums.tolist())), ends)
        return {
            kind: DocumentSums(losses_N=part, tokens_N=held.tokens_N)
            for (kind, held), part in zip(texts.items(), parts, strict=True)
        }


def _copy(head: Head) -> Head:
    bias_V = None if head.bias_V is None else head.bias_V.detach().clone()
    return dataclasses.replace(head, weight_VD=head.weight_VD.detach().clone(), bias_V=bias_V)
