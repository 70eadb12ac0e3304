"""The verb judge: two models' answers compared by a third."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from blockexpand.cli.agent import Server, speaker_of
from blockexpand.cli.output import DEFAULTS, DONE, FAILED, Shared, show

if TYPE_CHECKING:
    from blockexpand.agents import Speaker
    from blockexpand.records.agents import Opposite
    from blockexpand.records.judge import JudgeRecord, JudgeRun


def judge(
    first: str,
    second: str,
    *,
    out: Path,
    judge: str,
    questions: Path | None = None,
    key_variable: str | None = None,
    judge_key_variable: str | None = None,
    max_tokens: int = 1024,
    timeout: float = 60.0,
    device: str = "auto",
    resume: Annotated[bool, Parameter(negative="")] = False,
    common: Shared = DEFAULTS,
) -> int:
    """Let a judge compare two models' answers to questions of several turns, in both orders.

    The exit code is 1 where a judgement is missing.

    Parameters
    ----------
    first
        A model's folder, or NAME@ADDRESS for a model behind an OpenAI-compatible server, e.g.
        llama@http://localhost:8000/v1.
    second
        The other one, given in the same way.
    out
        The folder of records to write.
    judge
        The model that judges, given like the others.
    questions
        Questions in MT-Bench's format; twelve of our own unless given.
    key_variable
        The environment variable that holds the key of the two models' servers.
    judge_key_variable
        The environment variable that holds the key of the judge's server.
    max_tokens
        Tokens of one answer at most.
    timeout
        Seconds that a server has for one answer.
    device
        Where models in folders run: auto, cpu, or an accelerator of torch's, e.g. cuda:1.
    resume
        Go on with the run in --out, or start when there is none.
    """
    from blockexpand import agents
    from blockexpand.records.judge import read_judge

    asked = agents.load_questions(questions)
    sides = [_side(name, Server(key_variable=key_variable, timeout=timeout, device=device)) for name in (first, second)]
    judging = _side(judge, Server(key_variable=judge_key_variable, timeout=timeout, device=device))
    settings = agents.JudgeSettings(first=sides[0][1], second=sides[1][1], judge=judging[1], max_tokens=max_tokens)
    record = agents.judge_pair(sides[0][0], sides[1][0], judging[0], asked, settings, out, resume)
    run = read_judge(out)
    show(common, record, _tallies(record, run, out))
    return FAILED if record.tallies[0].num_errors else DONE


def _side(name: str, server: Server) -> tuple[Speaker, Opposite]:
    """A speaker, and how records name it."""
    model, at, address = name.rpartition("@")
    if at and address.startswith(("http://", "https://")):
        return speaker_of(model, replace(server, endpoint=address))
    return speaker_of(name, replace(server, key_variable=None))


def _tallies(record: JudgeRecord, run: JudgeRun, out: Path) -> str:
    chosen = record.settings
    lines = [f"{chosen.first.model} against {chosen.second.model}, judged by {chosen.judge.model}"]
    lines.append("  category      wins  ties  losses  errors  win rate  95 % interval (Wilson; a tie is half a win)")
    for one in record.tallies:
        rate = "-" if one.win_rate is None else f"{one.win_rate:.1%}"
        lines.append(
            f"  {one.category or 'all':<12}  {one.num_wins:>4}  {one.num_ties:>4}  {one.num_losses:>6}  "
            f"{one.num_errors:>6}  {rate:>8}  {one.low:.1%} to {one.high:.1%}"
        )
    reasons = Counter(one.error for one in run.judgements if one.error)
    if reasons:
        lines.append(f"  {sum(reasons.values()):,} judgements are missing, so not all questions are counted:")
        lines += [f"    {count:,} x {reason[:160]}" for reason, count in reasons.most_common(5)]
        lines.append(f"  ask for them again with --resume; every word is in {out}")
    return "\n".join(lines)
