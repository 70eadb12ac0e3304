"""What `learn` was asked for, what it decided, and what came of it.

In: nothing; these are values. Out: `LearnSettings` (what makes an output the same output), `LearnPlan` (the decisions,
shown before anything heavy and kept, so that a run that goes on decides nothing anew) and `LearnRecord`, which is
`learn.json`. Refused: values out of bounds.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar, Literal, cast, get_args

import yaml

from blockexpand.errors import UsageError
from blockexpand.records.budget import BudgetStatement, say_budget
from blockexpand.records.codec import check, to_plain
from blockexpand.records.run import TrainSettings
from blockexpand.staging import staged_file
from blockexpand.units import format_bytes, format_scaled, format_seconds

Arm = Literal["blocks", "full", "lora"]
ALL_TEXT = "general"
"""The kind of general text that a budget without a name is for."""


def parse_keep(keep: float | str) -> dict[str, float]:
    """The budget of each kind of general text: `0.01`, `1%`, or `prose=0.5%,chats=1%`.

    Raises:
        UsageError: it is none.
    """
    budgets = {}
    for part in str(keep).split(","):
        name, equals, share = part.partition("=")
        name, share = (name.strip(), share) if equals else (ALL_TEXT, name)
        try:
            value = float(share.strip().removesuffix("%")) / (100 if "%" in share else 1)
        except ValueError:
            value = float("nan")
        if not 0 < value < 1:
            raise UsageError(
                f"--keep {keep!r} is no budget; expected how much general loss may rise, above 0 and below 100 %, e.g. "
                "1% or prose=0.5%,chats=1%"
            )
        budgets[name] = value
    return budgets


def parse_arms(named: str | None) -> tuple[Arm, ...]:
    """The arms of `full,lora`.

    Raises:
        UsageError: one is none.
    """
    names = [name.strip() for name in (named or "").split(",") if name.strip()]
    for name in names:
        if name not in get_args(Arm):
            raise UsageError(
                f"--against {named!r}: {name!r} is no arm; expected {', '.join(get_args(Arm))}, e.g. full,lora"
            )
    return cast("tuple[Arm, ...]", tuple(names))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnSettings:
    """What was asked for; an output of other settings is not gone on with."""

    FORMAT: ClassVar[str] = "blockexpand.learn-settings"
    FORMAT_VERSION: ClassVar[int] = 1

    model: str
    model_digest: str
    data: tuple[str, ...]
    data_digest: str
    keep: dict[str, float]
    """The budget of each kind of general text, as a share of the base's loss."""
    general: tuple[str, ...] = ()
    """Sources of general text; empty: the model writes it itself."""
    general_digest: str = ""
    minutes: float | None = None
    tokens: int | None = None
    blocks: int | None = None
    arm: Arm = "blocks"
    seed: int = 0
    against: tuple[Arm, ...] = ()
    """The arms that the same tokens are spent on besides."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self.minutes is None or self.minutes > 0, "--minutes", self.minutes, "more than 0")
        check(self.tokens is None or self.tokens > 0, "--tokens", self.tokens, "more than 0")
        both = self.minutes is not None and self.tokens is not None
        check(not both, "--tokens", self.tokens, "either --tokens or --minutes: each says how long it learns")
        check(self.blocks is None or self.blocks > 0, "--blocks", self.blocks, "1 or more")
        check(self.blocks is None or self.arm == "blocks", "--blocks", self.blocks, f"none with --arm {self.arm}")
        check(self.seed >= 0, "--seed", self.seed, "0 or more")
        others = len(set(self.against)) == len(self.against) and self.arm not in self.against
        check(others, "--against", ",".join(self.against), f"other arms than {self.arm}, each once")

    def difference(self, other: LearnSettings) -> str:
        """The first setting in which another one differs, in words; empty if none does."""
        for field in dataclasses.fields(self):
            mine, theirs = (getattr(one, field.name) for one in (self, other))
            if mine != theirs:
                what = field.name.replace("_digest", "'s contents")
                return f"{what} was {mine!r}, is {theirs!r}"
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSeen:
    """What sources hold, by their first documents."""

    kind: Literal["texts", "chats"]
    num_documents: int
    num_tokens: int
    """Estimated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnPlan:
    """What was decided, by what was measured here."""

    FORMAT: ClassVar[str] = "blockexpand.learn-plan"
    FORMAT_VERSION: ClassVar[int] = 1

    num_old_blocks: int
    after: tuple[int, ...]
    """A new block on top of each of these; empty for arms that add none."""
    num_trained: int
    """Parameters that train."""
    num_parameters: int
    """Of the model as it trains."""
    data: DataSeen
    domain_tokens: int
    """That are learnt from, in all epochs."""
    epochs: float
    """How often each token of the data is seen."""
    held_out_tokens: int
    """Of each held-out split, at most."""
    steering_rows: int
    """Of each kind of text, that the run steers by."""
    row_tokens: int
    rows_per_step: int
    rows_per_pass: int
    general_rows: int
    """Of the rows of a step."""
    num_steps: int
    num_measurements: int
    """Of held-out losses on the way."""
    optimizer: Literal["adamw", "muon"]
    lr: float
    precision: Literal["float32", "bfloat16"]
    device: str
    step_seconds: float
    """Measured on this machine."""
    other_seconds: float
    """For writing general text, proofs and measuring."""
    memory_bytes: int
    free_memory_bytes: int
    disk_bytes: int
    free_disk_bytes: int
    warnings: tuple[str, ...] = ()
    """What a person should know before it starts."""


def say_plan(plan: LearnPlan, asked: LearnSettings, out: Path) -> list[str]:
    """The plan in five lines, and a line for each warning."""
    new, arms = len(plan.after), 1 + len(asked.against)
    grown = f"{new} new blocks on {plan.num_old_blocks}" if new else f"{asked.arm}, {plan.num_old_blocks} blocks"
    share = plan.num_trained / plan.num_parameters
    general = ", ".join(asked.general) if asked.general else "written by the model itself"
    seconds = arms * plan.num_steps * plan.step_seconds + plan.other_seconds
    rivals = f", {', '.join(asked.against)} besides" if asked.against else ""
    return [
        f"{out}: {grown}; {format_scaled(plan.num_trained)} of {format_scaled(plan.num_parameters)} parameters train "
        f"({share:.0%}), {plan.optimizer} at {plan.lr:g}{rivals}",
        f"  data     {plan.data.num_documents:,} {plan.data.kind}, about {format_scaled(plan.data.num_tokens)} tokens; "
        f"learns from {format_scaled(plan.domain_tokens)} ({plan.epochs:.2g} times through): {plan.num_steps:,} steps "
        f"of {plan.rows_per_step} rows of {plan.row_tokens}",
        f"  general  {general}; {say_keep(asked.keep)}; {plan.general_rows} of the {plan.rows_per_step} rows keep",
        f"  time     about {format_seconds(seconds)} on {plan.device} in {plan.precision} "
        f"({format_seconds(plan.step_seconds)} a step, measured; {format_seconds(plan.other_seconds)} for the rest)",
        f"  memory   about {format_bytes(plan.memory_bytes)} of {format_bytes(plan.free_memory_bytes)} free; disk "
        f"{format_bytes(plan.disk_bytes)} of {format_bytes(plan.free_disk_bytes)} free",
        *(f"  note     {warning}" for warning in plan.warnings),
    ]


def write_recipe(path: Path, settings: TrainSettings) -> None:
    """The recipe of the run, for `blockexpand train`."""
    head = (
        "# What `learn` did here, for the lower verbs: the same bytes as in model/ come of\n"
        f"#   blockexpand train {path} out=ANOTHER-FOLDER\n"
    )
    with staged_file(path) as stream:
        stream.write((head + yaml.safe_dump(to_plain(settings), sort_keys=False)).encode())


def say_keep(keep: dict[str, float]) -> str:
    """The budgets in words."""
    kinds = ", ".join(f"{100 * share:g} %{'' if name == ALL_TEXT else f' on {name}'}" for name, share in keep.items())
    return f"general loss may rise by {kinds}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learnt:
    """What one arm learnt and lost, measured on documents that steered nothing."""

    arm: Arm
    lr: float
    num_trained: int
    num_steps: int
    domain_before: float
    """Nats a token on the domain's test documents, of the base."""
    domain_after: float
    gain_low: float | None
    """A 95 % interval of the paired gain, nats a token; None: too few documents."""
    gain_high: float | None
    num_test_documents: int
    budget: BudgetStatement
    bypass_is_base: bool | None
    """Whether without its new blocks the model is the base, bit for bit; None for arms that have none."""
    tokens_per_second: float
    memory_bytes: int

    @property
    def gain(self) -> float:
        """Nats a token."""
        return self.domain_before - self.domain_after

    @property
    def holds(self) -> bool:
        """Whether something was learnt inside the budget, and the base is still in it."""
        learnt = self.gain > 0 if self.gain_low is None else self.gain_low > 0
        return learnt and self.budget.holds and self.bypass_is_base is not False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """One prompt, continued by both models."""

    prompt: str
    before: str
    after: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnRecord:
    """`learn.json`."""

    FORMAT: ClassVar[str] = "blockexpand.learn"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    out: str
    """The folder."""
    settings: LearnSettings
    plan: LearnPlan
    learnt: Learnt | None
    """None after a dry run."""
    rivals: tuple[Learnt, ...] = ()
    said: tuple[Said, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether something was learnt inside the budget; a dry run always."""
        return self.learnt is None or self.learnt.holds


_LITTLE = 0.05
"""A fall of perplexity by less is little."""


def say_outcome(record: LearnRecord) -> list[str]:
    """The verdict, what was gained and lost, how it speaks, and what to try where that is little."""
    learnt = record.learnt
    if learnt is None:
        return ["Nothing was started (a dry run)."]
    lines = [_verdict(learnt), _gained(learnt), f"  {say_budget(learnt.budget)}"]
    if learnt.bypass_is_base is not None:
        lines.append(
            "  Without its new blocks the model is the base, bit for bit."
            if learnt.bypass_is_base
            else "  Without its new blocks the model is NOT the base: do not use it, and report this."
        )
    lines += [
        f"  beside it, {rival.arm}: {_gained(rival).strip()} {say_budget(rival.budget)}" for rival in record.rivals
    ]
    for said in record.said:
        lines += ["", f"  {said.prompt!r}", f"    before: {said.before!r}", f"    after:  {said.after!r}"]
    advice = _advice(record, learnt)
    lines += ["", f"To try: {advice}."] if advice else []
    made = ["model", *(["pack"] if learnt.arm == "blocks" else []), "report/index.html", "recipe.yaml", "learn.json"]
    return [*lines, "", f"In {record.out}: {', '.join(made)}."]


def _verdict(learnt: Learnt) -> str:
    if learnt.holds:
        return "It learnt your data and kept the rest."
    if learnt.budget.scale == 0:
        return "FAILED: nothing that was learnt is inside the budget, and what is in model/ is the base."
    if not learnt.budget.holds:
        return "FAILED: the budget cannot be promised."
    if learnt.bypass_is_base is False:
        return "FAILED: the base is not inside the model any more."
    return "FAILED: nothing was learnt that could be told from chance."


def _gained(learnt: Learnt) -> str:
    low, high = learnt.gain_low, learnt.gain_high
    sure = f" (95 % between {low:+.3f} and {high:+.3f})" if low is not None and high is not None else ""
    before, after = learnt.domain_before, learnt.domain_after
    return (
        f"  Learnt: loss on {learnt.num_test_documents:,} documents of the data that it never saw {before:.3f} -> "
        f"{after:.3f} nats a token, gain {learnt.gain:+.3f}{sure}, {learnt.gain / before:.0%} of what a token "
        f"tells; perplexity "
        f"{math.exp(before):.1f} -> {math.exp(after):.1f} ({math.exp(after - before) - 1:+.0%})."
    )


def _advice(record: LearnRecord, learnt: Learnt) -> str:
    little = 1 - math.exp(-learnt.gain) < _LITTLE
    words = []
    if not learnt.budget.holds:
        words.append("a larger --keep, or more --general text (the line above says how much)")
    if little and record.plan.epochs < 1:
        words.append("more --minutes: it has seen a part of the data only")
    elif little:
        words.append("more data, or more --blocks")
    return "; ".join(words)
