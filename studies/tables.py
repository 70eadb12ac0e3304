"""What a study found, as Markdown tables and sentences in which nothing is better without an interval that says so.

In: a finished comparison, or several of them by base. Out: text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from blockexpand.records.comparison import ArmResult, Comparison
from blockexpand.records.intervals import Interval
from blockexpand.reporting import verdict
from studies.token_shift import Shift


def comparison_tables(comparison: Comparison) -> str:
    """The arms' figures, each against the first."""
    parts = [_arms(comparison), _contrasts(comparison), verdict(comparison).sentence]
    return "\n\n".join(part for part in parts if part) + "\n"


def _arms(comparison: Comparison) -> str:
    base = comparison.base
    columns = (
        "method", "lr", "gain, nats/token", "forgetting", "general perplexity", "domain perplexity",
        "training loss, last quarter", "trained", "CPU s", "peak MB",
    )  # fmt: skip
    general, domain = math.exp(base["general"].loss), math.exp(base["domain"].loss)
    rows: list[tuple[str, ...]] = [("the base", "", "", "", f"{general:.2f}", f"{domain:.2f}", "", "", "", "")]
    rows += [_arm(arm) for arm in comparison.arms]
    rates = "" if all(len(a.lrs) == 1 for a in comparison.recipe.arms) else "\n\n" + _rates(comparison)
    return _table(columns, rows) + rates


def _arm(arm: ArmResult) -> tuple[str, ...]:
    training = [t.training_loss for t in arm.trials if t.training_loss is not None]
    cpu = [t.cpu_seconds for t in arm.trials if t.cpu_seconds is not None]
    return (
        arm.name,
        f"{arm.lr:g}",
        f"{arm.gain.mean:.3f}" + _seeds([_gain(arm, n) for n in range(len(arm.trials))], ".3f"),
        f"{arm.forgetting.mean:+.2%}",
        f"{np.mean([t.held_out['general'].perplexity for t in arm.trials]):.2f}",
        f"{np.mean([t.held_out['domain'].perplexity for t in arm.trials]):.2f}",
        f"{np.mean(training):.3f}" if training else "",
        f"{arm.trials[0].num_trainable_parameters:,}",
        f"{np.mean(cpu):.0f}" if cpu else "",
        f"{max(t.peak_memory_bytes for t in arm.trials) / 1e6:,.0f}",
    )


def _gain(arm: ArmResult, number: int) -> float:
    return arm.domain_loss + arm.gain.mean - arm.trials[number].held_out["domain"].loss


def _seeds(values: Sequence[float], form: str) -> str:
    return "" if len(values) < 2 else f" ({', '.join(format(value, form) for value in values)})"


def _rates(comparison: Comparison) -> str:
    rows = []
    for trial in comparison.trials:
        gain = comparison.base["domain"].loss - trial.held_out["domain"].loss
        rise = trial.held_out["general"].loss / comparison.base["general"].loss - 1
        rows.append((trial.arm, f"{trial.lr:g}", str(trial.seed), f"{gain:.3f}", f"{rise:+.2%}"))
    return _table(("every run", "lr", "seed", "gain", "forgetting"), rows)


def _contrasts(comparison: Comparison) -> str:
    rows = [
        (
            c.theirs,
            _interval(_negated(c.domain)),
            _says(_negated(c.domain), "learnt more", "learnt less"),
            _interval(c.general),
            _says(c.general, "forgot more", "forgot less"),
        )
        for c in comparison.contrasts
    ]
    if not rows:
        return ""
    first = comparison.arms[0].name
    return _table((f"{first} against", "gain, difference", "", "general loss, difference", ""), rows)


def _negated(one: Interval) -> Interval:
    return Interval(difference=-one.difference, low=-one.high, high=-one.low)


def _interval(one: Interval) -> str:
    return f"{one.difference:+.3f} ({one.low:+.3f} to {one.high:+.3f})"


def _says(one: Interval, above: str, below: str) -> str:
    return "noise" if one.is_noise else above if one.difference > 0 else below


def shift_table(found: Mapping[tuple[str, str], Shift]) -> str:
    """Whose words the arms' models say, by arm and text."""
    rows = [
        (*of, f"{one.rank_1.difference:.1%}", f"{one.rank_1.low:.1%} to {one.rank_1.high:.1%}",
         f"{one.rank_2_3:.1%}", f"{one.beyond:.1%}", f"{one.num_tokens:,}")
        for of, one in found.items()
    ]  # fmt: skip
    return _table(("says greedily", "after", "base's first", "95 %", "second or third", "beyond", "tokens"), rows)


def scale_tables(comparisons: Mapping[str, Comparison]) -> str:
    """The first arm's advantage over each other one, by base."""
    rows = []
    for name, one in comparisons.items():
        first = one.arms[0]
        for contrast, arm in zip(one.contrasts, one.arms[1:], strict=True):
            gained = _negated(contrast.domain)
            rows.append(
                (
                    name,
                    f"{one.base['general'].loss:.3f}, {one.base['domain'].loss:.3f}",
                    f"{first.gain.mean:.3f} at {first.forgetting.mean:+.2%}",
                    arm.name,
                    f"{arm.gain.mean:.3f} at {arm.forgetting.mean:+.2%}",
                    f"{_interval(gained)} {_says(gained, 'learnt more', 'learnt less')}",
                    f"{_interval(contrast.general)} {_says(contrast.general, 'forgot more', 'forgot less')}",
                )
            )
    first = next(iter(comparisons.values())).arms[0].name
    columns = (
        "base", "its losses, general and domain", first, "against", "which has", "gain, difference",
        "general loss, difference",
    )  # fmt: skip
    return _table(columns, rows) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
