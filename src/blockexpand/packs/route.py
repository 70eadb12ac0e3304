"""Which packs for this prompt? Those with which the model finds it likelier, the frozen blocks below them run once.

In: a model with packs, and the tokens of a prompt. Out: the packs to switch on for this sequence, with the scores; the
base for a prompt of fewer than two tokens, of which nothing is predicted. Refused: a model without packs.

All candidates share the blocks below the lowest new one, so these run once and what they give is handed to each
candidate's own pass. The cost, in block passes over the prompt: that prefix once, then for each candidate the blocks
above it (`Route.cost` has it as a share of one pass of the base). The rule was chosen by measurement
(benchmarks/routing.py, docs/packs.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand.errors import PackError
from blockexpand.live.forward import RowBatch, cross_entropies, isolates
from blockexpand.live.prefix import Prefix
from blockexpand.live.state import expanded
from blockexpand.packs.in_memory import attached, blocks_of, only
from blockexpand.records.pack import Names, Rule

# B = rows of a batch, T = tokens of a row, R = positions that count.


@dataclass(frozen=True, kw_only=True)
class Route:
    """What was chosen, and why."""

    names: Names
    """The packs to switch on; none is the base."""
    nats: dict[Names, float]
    """For each candidate, nats per token of the scored part of the prompt; empty where the prompt was too short."""
    cost: float
    """Block passes over the scored tokens, in passes of the base's whole stack."""


def candidates_of(
    model: nn.Module, *, together: bool = False, among: Collection[str] | None = None
) -> tuple[Names, ...]:
    """The base, and each pack alone; all packs at once besides with `together`. With `among`, of these packs only.

    Raises:
        PackError: the model has no packs.
    """
    if not attached(model):
        raise PackError(
            f"this {type(model).__name__} has no packs to choose among; expected one from load_with_packs; attach one"
        )
    names = tuple(name for name in attached(model) if among is None or name in among)
    return ((), *((name,) for name in names), *((names,) if together and len(names) > 1 else ()))


def route(
    model: PreTrainedModel,
    tokens: Sequence[int],
    rule: Rule | None = None,
    candidates: Sequence[Names] | None = None,
) -> Route:
    """Choose the packs for one sequence by its prompt; the model's switches stay as they are.

    Args:
        model: with packs, in eval mode.
        tokens: the prompt. Of fewer than two nothing can be predicted: then it is the base.
        rule: how to choose; the measured one if not given.
        candidates: sets of packs; if not given, those of the rule.

    Raises:
        PackError: no packs.
    """
    chosen = rule or Rule()
    sets = tuple(candidates or candidates_of(model, together=chosen.together))
    scored = list(tokens)[-chosen.prompt_tokens :]
    if len(scored) < 2:
        return Route(names=(), nats={}, cost=0.0)
    tokens_1T, positions_1T = np.array([scored]), np.arange(len(scored))[None]
    batch = RowBatch.of(tokens_1T, positions_1T, positions_1T > 0, next(model.parameters()).device)
    nats = {names: float(losses.mean()) for names, losses in losses_by_set(model, batch, sets).items()}
    return Route(names=choose(nats, chosen.evidence / (len(scored) - 1)), nats=nats, cost=cost_of(model, sets))


@contextlib.contextmanager
def routed(model: PreTrainedModel, tokens: Sequence[int], rule: Rule | None = None) -> Generator[Route]:
    """Inside this context the packs that the prompt asks for are on, and no others.

    Raises:
        PackError: as `route`.
    """
    found = route(model, tokens, rule)
    with only(model, *found.names):
        yield found


def choose(nats: Mapping[Names, float], margin: float) -> Names:
    """The likeliest candidate, if it beats the base by the margin (in the same unit); else the base. Among equals, the
    fewest packs.
    """
    best = min(nats, key=lambda names: (nats[names], len(names), names))
    return best if () not in nats or nats[best] + margin < nats[()] else ()


def cost_of(model: nn.Module, sets: Sequence[Names]) -> float:
    """Block passes for scoring these sets, in passes of the base's whole stack."""
    known = expanded(model)
    depth, prefix = known.plan.base.num_blocks, min(known.plan.new_positions)
    above = sum(depth - prefix + len(blocks_of(model, names)) for names in sets)
    return (prefix + above) / depth


def losses_by_set(model: PreTrainedModel, batch: RowBatch, sets: Sequence[Names]) -> dict[Names, Tensor]:
    """The cross-entropy in nats of every token that counts, float32 [R], under each set of packs.

    Documents may share rows. The blocks below the lowest new one run once, unless every document has to run
    in a row of its own.
    """
    known = expanded(model)
    prefix = Prefix(known.blocks[: min(known.plan.new_positions)])
    keeps_apart = isolates(model)  # found out before anything is handed on
    shares = bool(prefix.blocks) and (keeps_apart or len(batch.starts_N) == len(batch.tokens_BT))
    found: dict[Names, Tensor] = {}
    for names in sets:
        handed = (prefix.given() if found else prefix.kept()) if shares else contextlib.nullcontext()
        with only(model, *names), handed:
            found[names] = cross_entropies(model, batch)
    return found
