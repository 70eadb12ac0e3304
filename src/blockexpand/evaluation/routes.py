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

from blockexpand.corpus.dataset import TokenRows, batches
from blockexpand.evaluation.losses import DocumentLosses
from blockexpand.numerics.forward import RowBatch
from blockexpand.packs.routing import candidates_of, choose, cost_of, losses_by_set, route
from blockexpand.packs.rule import Names, Rule, name_of
from blockexpand.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# N = rows of a batch, T = tokens of a row, L = tokens of a piece but its first.

BASE: Names = ()
ROUTED = "routed"
"""What routing gave, among the candidates' own figures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutedLoss:
    """What was chosen on one corpus."""

    chosen: dict[str, int]
    """Pieces by the packs they were given; `base` is none."""
    num_short: int
    """Pieces that ended within their prompt: nothing was chosen for them, and the base predicted all of them."""
    num_tokens: int
    """Tokens after the prompts."""
    after: dict[str, float]
    """Nats per token after the prompts: `routed`, and each candidate always on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
    """How packs were chosen, and how often which."""

    rule: Rule
    candidates: tuple[str, ...]
    passes: float
    """What scoring a token of a prompt costs, in passes of the base's blocks."""
    held_out: dict[str, RoutedLoss] = dataclasses.field(default_factory=dict)
    """By the corpus' name."""
    answers: dict[str, int] = dataclasses.field(default_factory=dict)
    """Questions of --tasks by the packs they were given."""
    suites: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    """Samples of each task by the packs they were given."""


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
class _Piece:
    document: int
    trained_L: np.ndarray
    losses: dict[Names, np.ndarray]
    """float64 [L] under each candidate."""


def routed_losses(router: Router, rows: TokenRows, rows_per_pass: int, title: str) -> tuple[DocumentLosses, RoutedLoss]:
    """The cross-entropies of every document of a split, each piece with the packs that its prompt asks for."""
    nats: dict[int, float] = {}
    tokens: dict[int, int] = {}
    tally = _Tally(router)
    with bar(title, rows.num_rows * rows.row_tokens, "tokens") as progress:
        for chosen in batches(rows.num_rows, rows_per_pass):
            for piece in _pieces(router, rows, chosen):
                found_L = tally.add(piece)
                nats[piece.document] = nats.get(piece.document, 0.0) + float(found_L[piece.trained_L].sum())
                tokens[piece.document] = tokens.get(piece.document, 0) + int(piece.trained_L.sum())
            progress.advance(len(chosen) * rows.row_tokens)
    order = sorted(document for document, count in tokens.items() if count)
    losses = DocumentLosses(
        nats_M=np.array([nats[d] for d in order]), tokens_M=np.array([tokens[d] for d in order], dtype=np.int64)
    )
    return losses, tally.figures()


def _pieces(router: Router, rows: TokenRows, chosen: np.ndarray) -> Iterator[_Piece]:
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
            yield _Piece(
                document=document,
                trained_L=trained_NT[number, start + 1 : start + length],
                losses={names: value[cut] for names, value in losses.items()},
            )
            at, start = cut.stop, start + length


class _Tally:
    """Chooses for pieces and adds up."""

    def __init__(self, router: Router) -> None:
        self._rule = router.rule
        self._chosen: list[str] = []
        self._num_short = self._num_tokens = 0
        self._sums = {ROUTED: 0.0, **{name_of(names): 0.0 for names in router.sets}}

    def add(self, piece: _Piece) -> np.ndarray:
        """The losses that count, float64 [L]."""
        first = int(piece.trained_L.argmax())
        end = first or self._rule.prompt_tokens - 1
        begin = max(0, end - (self._rule.prompt_tokens - 1))
        after_L = piece.trained_L.copy()
        after_L[:end] = False
        if not after_L.any():
            self._num_short += int(piece.trained_L.any())
            return piece.losses[BASE]
        nats = {names: float(losses_L[begin:end].mean()) for names, losses_L in piece.losses.items()}
        names = choose(nats, self._rule.evidence / (end - begin))
        found_L = np.concatenate([piece.losses[BASE][:end], piece.losses[names][end:]])
        self._chosen.append(name_of(names))
        self._num_tokens += int(after_L.sum())
        self._sums[ROUTED] += float(found_L[after_L].sum())
        for candidate, losses_L in piece.losses.items():
            self._sums[name_of(candidate)] += float(losses_L[after_L].sum())
        return found_L

    def figures(self) -> RoutedLoss:
        """Over all pieces."""
        count = self._num_tokens
        return RoutedLoss(
            chosen=count_of(self._chosen),
            num_short=self._num_short,
            num_tokens=count,
            after={name: total / count for name, total in self._sums.items()} if count else {},
        )
