"""The verbs that let a model act and speak: agent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, FAILED, Shared, show
from blockexpand.errors import UsageError

if TYPE_CHECKING:
    from blockexpand.agents import AgentRecord, Opposite, Speaker

_DEFAULT_PUZZLES = 40


def agent(
    model: str | None = None,
    *,
    out: Path | None = None,
    tasks: Annotated[list[str] | None, Parameter(negative="")] = None,
    puzzles: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    turns: Annotated[list[int] | None, Parameter(negative="")] = None,
    endpoint: str | None = None,
    key_variable: str | None = None,
    feedback: Literal["none", "blind", "informed"] = "none",
    feedback_model: str | None = None,
    feedback_endpoint: str | None = None,
    feedback_key_variable: str | None = None,
    max_tokens: int = 512,
    at_once: int = 16,
    example: bool = True,
    timeout: float = 60.0,
    unsafe: Annotated[bool, Parameter(negative="")] = False,
    resume: bool = False,
    replay: Path | None = None,
    common: Shared = DEFAULTS,
) -> int:
    """Let a model solve tasks in several turns, with Python as its tool, and count by budget of turns.

    Parameters
    ----------
    model
        The folder of a checkpoint with a chat template, or with --endpoint the model's name there.
    out
        The folder of records to write.
    tasks
        Files of tasks in MINT's format, or set=file where the file's name does not say the set; may be given several
        times.
    puzzles
        How many tasks to make besides: arithmetic, strings, tables, small searches. 40 when no tasks are given.
    seed
        Of the puzzles.
    limit
        Take the first so many tasks of each file.
    turns
        Budgets of turns, each tried from nothing; 1 to 5 unless given.
    endpoint
        The address of an OpenAI-compatible server, e.g. http://localhost:8000/v1.
    key_variable
        The environment variable that holds the server's key.
    feedback
        Advice by a second model after each turn: none, blind (it does not know the answer) or informed.
    feedback_model
        The second model: a folder, or with --feedback-endpoint its name there.
    feedback_endpoint
        The address of the second model's server.
    feedback_key_variable
        The environment variable that holds that server's key.
    max_tokens
        Tokens of one turn at most.
    at_once
        Episodes side by side.
    example
        Show the model a short example first.
    timeout
        Seconds that a server has for one answer.
    unsafe
        Run the model's code even where nothing isolates it.
    resume
        Go on with the run in --out, or start when there is none.
    replay
        Instead of running: play the run in this folder again from its records, and see whether it comes to the same.
    """
    from blockexpand import agents

    if replay is not None:
        return _replay(replay, unsafe, common)
    if model is None or out is None:
        missing = "MODEL" if model is None else "--out"
        raise UsageError(f"agent needs {missing}; expected e.g. agent MODEL --out D, or agent --replay D")
    if (feedback == "none") != (feedback_model is None):
        raise UsageError(
            f"--feedback {feedback} with --feedback-model {feedback_model}; expected both or none of them; give "
            "--feedback blind or informed together with a model"
        )
    count = puzzles if puzzles is not None else 0 if tasks else _DEFAULT_PUZZLES
    chosen = agents.load_tasks(tasks or [], limit) + (agents.make_puzzles(count, seed) if count else [])
    speaker, who = _speaker(model, endpoint, key_variable, timeout)
    adviser = _speaker(feedback_model, feedback_endpoint, feedback_key_variable, timeout) if feedback_model else None
    settings = agents.AgentSettings(
        speaker=who,
        adviser=adviser[1] if adviser else None,
        budgets=tuple(turns or agents.DEFAULT_BUDGETS),
        manner=agents.Manner(example=example, feedback=feedback),
        max_tokens=max_tokens,
    )
    tools = agents.SandboxTools(unsafe=unsafe)
    cast = agents.Cast(speaker=speaker, tools=tools, adviser=adviser[0] if adviser else None, at_once=at_once)
    record = agents.run_agent(cast, chosen, settings, out, resume)
    show(common, record, _rates(record))
    return DONE


def _speaker(model: str, endpoint: str | None, key_variable: str | None, timeout: float) -> tuple[Speaker, Opposite]:
    """What answers, and how records name it."""
    from blockexpand import agents

    if endpoint is None:
        if key_variable is not None:
            raise UsageError(f"a key (--key-variable {key_variable}) is for a server; expected --endpoint, too")
        from blockexpand.evaluation.evaluating import model_digest

        return agents.load_speaker(model), agents.Opposite(model=model, digest=model_digest(Path(model)))
    from blockexpand.cli.main import secret
    from blockexpand.endpoints import Endpoint

    key = secret(key_variable) if key_variable is not None else None
    behind = Endpoint(endpoint, model, key=key, timeout_seconds=timeout)
    behind.check()
    return agents.EndpointSpeaker(endpoint=behind), agents.Opposite(model=model, endpoint=endpoint)


def _replay(folder: Path, unsafe: bool, common: Shared) -> int:
    from blockexpand import agents

    found = agents.replay(folder, agents.SandboxTools(unsafe=unsafe))
    same = not found.differences
    lines = [f"{folder}: {found.num_episodes:,} episodes, {found.num_turns:,} turns played again from their records"]
    lines += ["  everything is the same"] if same else [f"  {line}" for line in found.differences]
    show(common, found, "\n".join(lines))
    return DONE if same else FAILED


def _rates(record: AgentRecord) -> str:
    lines = [record.settings.speaker.model, "  turns  set            solved  of      rate  95 % interval (Wilson)"]
    for one in record.rates:
        errors = f"  ({one.num_errors} ended in a server's error; go on with --resume)" if one.num_errors else ""
        lines.append(
            f"  {one.budget:>5}  {one.set or 'all':<12}  {one.num_solved:>7,}  {one.num_tasks:<5,}  {one.rate:>6.1%}  "
            f"{one.low:.1%} to {one.high:.1%}{errors}"
        )
    return "\n".join(lines)
