"""Packs chosen for each document and each question, and what that came to (`--route auto`).

In: a model with packs, rows of a prepared split or texts of questions, a rule. Out: for rows the losses, and how many
pieces went to which packs; for a text, the packs. Refused: a model without packs.

A piece (what of a document stands in one row) is routed by its first tokens, as many as the rule scores. Counted
is what a reader could know: until a piece's prompt is read nothing is chosen, so its tokens are predicted by the base,
and all later ones by the chosen packs. Where only some tokens are trained (chats), what stands before the first of them
is the prompt. Every candidate runs over whole rows, which is more than routing needs, and tells what each of them would
have given after the same prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from blockexpand.corpus.rows import TokenRows, batches
from blockexpand.live.forward import RowBatch
from blockexpand.packs.route import candidates_of, choose, cost_of, losses_by_set, route
from blockexpand.progress import bar
from blockexpand.records.evaluation import DocumentLosses, RoutedLoss, Routing
from blockexpand.records.pack import Names, Rule, name_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# N = rows of a batch, T = tokens of a row, L = tokens of a piece but its first.

BASE: Names = ()
ROUTED = "routed"
"""What routing gave, among the candidates' own figures."""


class Router:
    """Chooses packs for texts, each text once."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rule: Rule) -> None:
        """`model`: with packs, in eval mode.

        Raises:
            PackError: it has none.
        """
        self.model, self.rule = model, rule
        self.sets = candidates_of(model, together=rule.together)
        self._tokenizer = tokenizer
        self._known: dict[tuple[int, ...], Names] = {}

    def of_text(self, text: str) -> Names:
        """The packs that a text asks for, by its last tokens."""
        return self.of_tokens(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def of_tokens(self, tokens: Sequence[int]) -> Names:
        """The packs that these tokens ask for."""
        key = tuple(tokens[-self.rule.prompt_tokens :])
        if key not in self._known:
            self._known[key] = route(self.model, key, self.rule, self.sets).names
        return self._known[key]

    def record(self) -> Routing:
        """The rule and its cost, without counts."""
        return Routing(rule=self.rule, candidates=tuple(map(name_of, self.sets)), passes=cost_of(self.model, self.sets))


def count_of(routes: Sequence[str | None]) -> dict[str, int]:
    """How often which; what has no route is left out."""
    known = [one for one in routes if one is not None]
    return {name: known.count(name) for name in sorted(set(known))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece's losses under every candidate."""

    document: int
    trained_L: np.ndarray
    losses: dict[Names, np.ndarray]
    """float64 [L] under each candidate."""


def routed_losses(router: Router, rows: TokenRows, rows_per_pass: int, title: str) -> tuple[DocumentLosses, RoutedLoss]:
    """The cross-entropies of every document of a split, each piece with the packs that its prompt asks for."""
    tally = Tally(router.rule, router.sets)
    with bar(title, rows.num_rows * rows.row_tokens, "tokens") as progress:
        for chosen in batches(rows.num_rows, rows_per_pass):
            for piece in _pieces(router, rows, chosen):
                tally.add(piece)
            progress.advance(len(chosen) * rows.row_tokens)
    return tally.losses(), tally.figures()


def _pieces(router: Router, rows: TokenRows, chosen: np.ndarray) -> Iterator[Piece]:
    """The pieces of some rows, with the losses of all their tokens but the first."""
    device = next(router.model.parameters()).device
    trained_NT, positions_NT = rows.trained_NT(chosen), rows.positions_NT(chosen)
    lengths = rows.lengths(chosen)
    predicted_NT = positions_NT > 0
    for number, some in enumerate(lengths):
        predicted_NT[number, sum(some) :] = False  # padding
    batch = RowBatch.of(rows.tokens_NT(chosen), positions_NT, predicted_NT, device)
    by_set = losses_by_set(router.model, batch, router.sets)
    losses = {names: value.double().cpu().numpy() for names, value in by_set.items()}
    at = 0
    for number, (some, documents) in enumerate(zip(lengths, rows.documents(chosen), strict=True)):
        start = 0
        for length, document in zip(some, documents, strict=True):
            cut = slice(at, at + length - 1)
            yield Piece(
                document=document,
                trained_L=trained_NT[number, start + 1 : start + length],
                losses={names: value[cut] for names, value in losses.items()},
            )
            at, start = cut.stop, start + length


class Tally:
    """Chooses for pieces among some sets of packs, and adds up."""

    def __init__(self, rule: Rule, sets: Sequence[Names]) -> None:
        """Nothing yet."""
        self._rule, self._sets = rule, sets
        self._chosen: list[str] = []
        self._num_short = self._num_tokens = 0
        self._sums = {ROUTED: 0.0, **{name_of(names): 0.0 for names in sets}}
        self._documents: dict[int, tuple[float, int]] = {}

    def add(self, piece: Piece) -> None:
        """Choose for one more piece."""
        found_L = self._choose(piece)
        nats, tokens = self._documents.get(piece.document, (0.0, 0))
        nats, tokens = nats + float(found_L[piece.trained_L].sum()), tokens + int(piece.trained_L.sum())
        self._documents[piece.document] = nats, tokens

    def _choose(self, piece: Piece) -> np.ndarray:
        """The losses that count, float64 [L]."""
        first = int(piece.trained_L.argmax()) if len(piece.trained_L) else 0
        end = first or self._rule.prompt_tokens - 1
        begin = max(0, end - (self._rule.prompt_tokens - 1))
        after_L = piece.trained_L.copy()
        after_L[:end] = False
        if not after_L.any():
            self._num_short += int(piece.trained_L.any())
            return piece.losses[BASE]
        nats = {names: float(piece.losses[names][begin:end].mean()) for names in self._sets}
        names = choose(nats, self._rule.evidence / (end - begin))
        found_L = np.concatenate([piece.losses[BASE][:end], piece.losses[names][end:]])
        self._chosen.append(name_of(names))
        self._num_tokens += int(after_L.sum())
        self._sums[ROUTED] += float(found_L[after_L].sum())
        for candidate in self._sets:
            self._sums[name_of(candidate)] += float(piece.losses[candidate][after_L].sum())
        return found_L

    def losses(self) -> DocumentLosses:
        """Of the documents that have a trained token, by their number."""
        found = [self._documents[number] for number in sorted(self._documents) if self._documents[number][1]]
        return DocumentLosses(
            nats_M=np.array([nats for nats, _ in found]),
            tokens_M=np.array([tokens for _, tokens in found], dtype=np.int64),
        )

    def figures(self) -> RoutedLoss:
        """What was chosen, and what each candidate would have given after the same prompts."""
        count = self._num_tokens
        return RoutedLoss(
            chosen=count_of(self._chosen),
            num_short=self._num_short,
            num_tokens=count,
            after={name: total / count for name, total in self._sums.items()} if count else {},
        )
