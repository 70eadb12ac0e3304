"""`pack calibrate`: a gain for each of several packs, so that together they suit a little text, and packs so scaled.

In: a base, packs for it, prepared texts. Out: a folder with each pack scaled (scaling.py), and a record of what was
found and measured. Refused: texts of another tokenizer, packs that cannot be scaled or would be overwritten. Nothing is
written until gains are found, and then all packs or none.

The loss is the sum of the texts' mean cross-entropies (general text by a weight of its own). It falls along the logs of
the gains: of a scaled writer w' = g w, dL/d(log g) is the sum of dL/dw' times w'. The best point that was tried is
taken, among them the packs as they are and at half scale: on these rows neither is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blockexpand import __version__
from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.corpus import Corpus, open_corpus
from blockexpand.corpus.dataset import TokenRows, batches
from blockexpand.corpus.tokens import tokenizer_digest
from blockexpand.errors import PackError
from blockexpand.expansion.expanding import check_apart
from blockexpand.live.device import choose_device
from blockexpand.live.forward import RowBatch, check_head, cross_entropies, hidden_states
from blockexpand.live.loss import linear_losses
from blockexpand.live.parts import head_of
from blockexpand.packs.calibration import (
    BASE,
    CALIBRATED,
    GENERAL,
    HALF,
    STORED,
    Calibrated,
    GainSettings,
    Measured,
    Step,
)
from blockexpand.packs.fitting import in_order
from blockexpand.packs.gains import Writer
from blockexpand.packs.loading import load_with_packs
from blockexpand.packs.memory import attach_to_model, attached, detach_from_model, only, scaled, writers_in
from blockexpand.packs.reading import Pack, read_pack
from blockexpand.packs.scaling import check_beside, scaled_record, write_scaled
from blockexpand.progress import bar
from blockexpand.records import write_record
from blockexpand.staging import RECORD_NAME, check_output, staged_folder

# P = packs, R = positions that count, D = hidden size.

_ROWS_PER_PASS = 4
_FIRST_STEP, _LONGEST_STEP, _SHORTEST_STEP = 0.3, 0.7, 2e-3
"""Of the log of a gain: a third, a factor of two, two thousandths."""
_NOTHING = 1e-12
BOUNDS = (0.05, 2.0)
"""Of a gain: a pack that wants less is better left out, and one that wants more, trained further."""
_DIGITS = 4
"""Of a gain: what is recorded is what was tried."""

Texts = Mapping[str, Sequence[RowBatch]]
"""Some rows of each text, as passes."""


def calibrate(
    base: str | Path | Checkpoint,
    packs: Sequence[Pack | str | Path],
    data: Mapping[str, str | Path],
    out: str | Path,
    settings: GainSettings | None = None,
    *,
    overwrite: bool = False,
) -> Calibrated:
    """Find a gain for each pack, write each pack so scaled to a folder of its name in `out`, and measure.

    Args:
        base: a folder or hub id.
        packs: folders, or opened packs, in any order.
        data: prepared folders by name; the one called "general" is text to keep, all others are text to gain.
        out: the folder to write; it appears whole or not at all.
        settings: how; the measured way if not given.
        overwrite: replace `out` if blockexpand made it.

    Raises:
        PackError: the packs do not fit, or cannot be scaled, or a text is another tokenizer's or empty.
        CorpusError: a folder was not prepared, or has no such split.
        StagingError: the output cannot be written.
    """
    how, target, ordered = settings or GainSettings(), Path(out), in_order(packs)
    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    _check(checkpoint, ordered, target)
    check_output(target, overwrite)
    corpora = _corpora(data, checkpoint, how)
    device = str(choose_device())
    model = load_with_packs(checkpoint, ordered, vars(torch)[how.dtype], device)
    found_on, tests = (
        {name: passes(corpus.rows(split).first(rows), device, name) for name, corpus in corpora.items()}
        for split, rows in ((how.split, how.rows), (how.test_split, how.test_rows))
    )
    check_head(model, next(iter(found_on.values()))[0])
    weights = {name: how.general_weight if name == GENERAL else 1.0 for name in corpora}
    steps = find_gains(model, found_on, weights, how.steps)
    chosen = best_of(steps)
    with staged_folder(target, overwrite) as staged:
        for pack in ordered:
            (staged / pack.name).mkdir()
            by = chosen[pack.name]
            write_scaled(pack, scaled_record(pack, by), by, staged / pack.name)
        measured = _measure(model, tests, [staged / pack.name for pack in ordered], chosen)
        record = Calibrated(
            blockexpand_version=__version__,
            base=checkpoint.source,
            settings=how,
            texts={n: {s: c.record.splits[s].digest for s in (how.split, how.test_split)} for n, c in corpora.items()},
            packs={pack.name: pack.record.fingerprint for pack in ordered},
            gains=chosen,
            steps=steps,
            measured=measured,
        )
        write_record(staged / RECORD_NAME, record)
    return record


def _check(base: Checkpoint, packs: Sequence[Pack], target: Path) -> None:
    """What can be known before anything is loaded."""
    check_apart(base.folder, target)
    for pack in packs:
        check_beside(pack, target)
        scaled_record(pack, 1.0)
        if pack.name == RECORD_NAME:
            raise PackError(
                f"the pack {pack.folder} is called {pack.name!r}, as the record beside it will be; expected another "
                "name; give it one with `blockexpand pack scale PACK OUT --by 1 --name NAME`"
            )


def _corpora(data: Mapping[str, str | Path], base: Checkpoint, how: GainSettings) -> dict[str, Corpus]:
    if not set(data) - {GENERAL}:
        raise PackError(
            f"nothing to gain on: the texts are {', '.join(data) or 'none'}; expected one or more besides {GENERAL!r}; "
            "name prepared folders with --data name=folder"
        )
    if GENERAL not in data and how.general_weight != GainSettings().general_weight:
        raise PackError(
            f"the weight of general text is {how.general_weight:g}, and there is none among {', '.join(data)}; "
            f"expected a text called {GENERAL!r}; add --data {GENERAL}=folder"
        )
    corpora = {name: open_corpus(folder) for name, folder in data.items()}
    for name, corpus in corpora.items():
        if corpus.record.tokenizer_digest != tokenizer_digest(base.folder):
            raise PackError(
                f"the text {name!r} ({corpus.folder}) was prepared with another tokenizer than the one in "
                f"{base.folder}; expected this base's; prepare it again"
            )
    return corpora


def passes(rows: TokenRows, device: str, name: str) -> list[RowBatch]:
    """All rows as passes of a few.

    Raises:
        PackError: nothing in them is to be predicted.
    """
    found = [
        RowBatch.of(rows.tokens_NT(which), rows.positions_NT(which), rows.trained_NT(which), torch.device(device))
        for which in batches(rows.num_rows, _ROWS_PER_PASS)
    ]
    if not any(bool(batch.predicted_BT().any()) for batch in found):
        raise PackError(
            f"the first {rows.num_rows} rows of the text {name!r} have no token to predict; expected text; take more "
            "rows or another folder"
        )
    return found


# --- the descent --------------------------------------------------------------------------------------


def best_of(steps: Sequence[Step]) -> dict[str, float]:
    """The gains of the least loss."""
    return min(steps, key=lambda step: step.loss).gains


def find_gains(model: Any, texts: Texts, weights: Mapping[str, float], num_steps: int) -> tuple[Step, ...]:
    """Go down from the better of the packs as they are and at half scale; every point tried, with its loss.

    Args:
        model: with packs; all of them are on meanwhile. It is left as it was.
        texts: rows of each text.
        weights: of each text's loss.
        num_steps: how many at most; fewer when no gain would change by two thousandths of itself.

    Raises:
        PackError: no packs, or some that cannot be scaled.
    """
    names, steps = attached(model), []
    with only(model, *names), bar("find gains", num_steps + 2, "steps") as progress:
        writers = {name: [w for _, held in writers_in(model, name) for w in held] for name in names}
        before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

        def tried(logs_P: np.ndarray) -> _Point:
            by = {name: _rounded(math.exp(log)) for name, log in zip(names, logs_P, strict=True)}
            with scaled(model, by):
                loss = _loss(model, texts, weights, [w for held in writers.values() for w in held])
                slopes_P = np.array([_slope(held) for held in writers.values()])
            steps.append(Step(gains=by, loss=loss))
            progress.advance(1, f"loss {loss:.4f} at {', '.join(f'{name} {gain:g}' for name, gain in by.items())}")
            return _Point(logs_P=np.array([math.log(gain) for gain in by.values()]), loss=loss, slopes_P=slopes_P)

        try:
            model.requires_grad_(False)
            starts = [tried(np.full(len(names), math.log(by))) for by in (1.0, 0.5)]
            _descend(min(starts, key=lambda point: point.loss), tried, num_steps)
        finally:
            for parameter, wanted in before:
                parameter.requires_grad_(wanted)
    return tuple(steps)


@dataclass(frozen=True, kw_only=True)
class _Point:
    """The loss at some gains."""

    logs_P: np.ndarray
    """Of the gains."""
    loss: float
    slopes_P: np.ndarray
    """Of the loss along each log."""


def _descend(start: _Point, tried: Callable[[np.ndarray], _Point], num_steps: int) -> None:
    """Newton's way with a curvature that is learnt (BFGS; Nocedal and Wright, Numerical Optimization, 6.1), also from
    points that are no better: there are few gains, and each point costs a pass over all texts.
    """
    low, high = (math.log(bound) for bound in BOUNDS)
    at, one_PP, longest = start, np.eye(len(start.logs_P)), _LONGEST_STEP
    inverse_PP = one_PP * _FIRST_STEP / max(float(np.abs(at.slopes_P).max()), _NOTHING)
    for number in range(num_steps):
        # A gain that is at a bound and would go beyond stays there.
        stays_P = ((at.logs_P <= low) & (at.slopes_P > 0)) | ((at.logs_P >= high) & (at.slopes_P < 0))
        free_P = np.where(stays_P, 0.0, 1.0)
        step_P = -free_P * (inverse_PP @ (free_P * at.slopes_P))
        step_P *= min(1.0, longest / max(float(np.abs(step_P).max()), _NOTHING))
        step_P = np.clip(at.logs_P + step_P, low, high) - at.logs_P
        if np.abs(step_P).max() < _SHORTEST_STEP:
            return
        point = tried(at.logs_P + step_P)
        moved_P, bent_P = point.logs_P - at.logs_P, point.slopes_P - at.slopes_P
        curvature = float(moved_P @ bent_P)
        if curvature > _NOTHING:
            before_PP = one_PP * curvature / float(bent_P @ bent_P) if number == 0 else inverse_PP
            left_PP = one_PP - np.outer(moved_P, bent_P) / curvature
            inverse_PP = left_PP @ before_PP @ left_PP.T + np.outer(moved_P, moved_P) / curvature
        if point.loss < at.loss:
            at, longest = point, _LONGEST_STEP
            inverse_PP = inverse_PP * (1.0 if curvature > _NOTHING else 2.0)  # it falls ever faster that way
        else:
            longest = float(np.abs(moved_P).max()) / 2


def _rounded(gain: float) -> float:
    return float(f"{gain:.{_DIGITS}g}")


def _loss(model: Any, texts: Texts, weights: Mapping[str, float], writers: Sequence[Writer] = ()) -> float:
    """The texts' mean losses by their weights; with writers, these get its gradient."""
    for writer in writers:
        writer.parameter.requires_grad_(True)
        writer.parameter.grad = None
    total = 0.0
    for name, held in texts.items():
        count = sum(int(batch.predicted_BT().sum()) for batch in held)
        for batch in held:
            if not writers:
                total += float(cross_entropies(model, batch).double().sum()) * weights[name] / count
                continue
            hidden_RD = hidden_states(model, batch)[batch.predicted_BT()]
            weight_R = torch.full((len(hidden_RD),), weights[name] / count, device=hidden_RD.device)
            loss, losses_R, _ = linear_losses(hidden_RD, head_of(model), batch.targets_R(), weight_R)
            loss.backward()
            total += float(losses_R.double().sum()) * weights[name] / count
    return total


def _slope(writers: Sequence[Writer]) -> float:
    """Of the loss along the log of these writers' gain; their gradients are gone then."""
    total = 0.0
    for writer in writers:
        parameter = writer.parameter
        if parameter.grad is not None:
            whole = parameter.detach().double() + writer.added
            total += float((parameter.grad.double() * whole).sum())
        parameter.grad = None
        parameter.requires_grad_(False)
    return total


# --- what it gave -------------------------------------------------------------------------------------


def losses_of(model: Any, texts: Texts) -> dict[str, float]:
    """Nats per token of each text, with the packs that are on."""
    return {name: _loss(model, {name: held}, {name: 1.0}) for name, held in texts.items()}


def _measure(model: Any, tests: Texts, written: Sequence[Path], chosen: Mapping[str, float]) -> tuple[Measured, ...]:
    """The base, each pack alone, all as stored and at half scale; then the written packs in their places."""
    names = attached(model)
    ones, halves = dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.5)
    states = [(BASE, {}), *((f"{name} alone", {name: 1.0}) for name in names)]
    states += [(STORED, ones)] if len(names) > 1 else []
    states += [(HALF, halves)]
    found: list[Measured] = []
    with bar("measure", len(states) + 1, "states") as progress:
        for rule, by in states:
            with only(model, *by), scaled(model, by):
                found.append(Measured(rule=rule, gains=by, losses=losses_of(model, tests)))
            progress.advance(1, rule)
        detach_from_model(model)
        attach_to_model(model, [read_pack(folder) for folder in written], verify="files")
        found.append(Measured(rule=CALIBRATED, gains=dict(chosen), losses=losses_of(model, tests)))
        progress.advance(1, CALIBRATED)
    return tuple(found)
