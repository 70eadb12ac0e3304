"""The verb agent: a model solves tasks in several turns, with Python as its tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared, key_without_server, show
from blockexpand.digests import digest_file
from blockexpand.errors import UsageError
from blockexpand.records.agents import EPISODES_NAME
from blockexpand.staging import PACK_NAME

if TYPE_CHECKING:
    from blockexpand.agents import Speaker
    from blockexpand.records.agents import AgentRecord, Opposite, Task

_DEFAULT_PUZZLES = 40


@Parameter(name="*", negative="")
@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a model is when it is not a folder, and what is put onto one that is."""

    pack: list[Path] | None = None
    """A pack of new blocks to put onto the model in the folder; may be given several times."""
    endpoint: str | None = None
    """The address of an OpenAI-compatible server, e.g. http://localhost:8000/v1; MODEL is then its name there."""
    key_variable: str | None = None
    """The environment variable that holds the server's key."""
    device: str = "auto"
    """Where a model in a folder runs: auto, cpu, or an accelerator of torch's, e.g. cuda:1."""
    timeout: float = 60.0
    """Seconds that a server has for one answer."""


@Parameter(name="*", negative="")
@dataclass(frozen=True, kw_only=True)
class Advice:
    """A second model that gives feedback."""

    feedback: Literal["none", "blind", "informed"] = "none"
    """Advice by a second model after each turn: none, blind (it does not know the answer) or informed."""
    feedback_model: str | None = None
    """The second model: a folder, or with --feedback-endpoint its name there."""
    feedback_endpoint: str | None = None
    """The address of the second model's server."""
    feedback_key_variable: str | None = None
    """The environment variable that holds that server's key."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Way:
    """How episodes are run."""

    turns: Annotated[list[int] | None, Parameter(negative="")] = None
    """Budgets of turns, each tried from nothing; 1 to 5 unless given."""
    max_tokens: int = 512
    """Tokens of one turn at most."""
    at_once: int = 16
    """Episodes side by side."""
    example: bool = True
    """Show the model a short example first."""
    unsafe: Annotated[bool, Parameter(negative="")] = False
    """Run the model's code even where nothing isolates it."""


@Parameter(name="*", negative="")
@dataclass(frozen=True, kw_only=True)
class TaskChoice:
    """Which tasks."""

    tasks: list[str] | None = None
    """Files of tasks in MINT's format, or set=file where the file's name does not say the set; may be given several
    times."""
    puzzles: int | None = None
    """How many tasks to make besides: arithmetic, strings, tables, small searches. 40 when no tasks are given."""
    seed: int = 0
    """Of the puzzles."""
    limit: int | None = None
    """Take the first so many tasks of each file."""


_TASKS, _SERVER, _ADVICE, _WAY = TaskChoice(), Server(), Advice(), Way()


def agent(
    model: str | None = None,
    *,
    out: Path | None = None,
    chosen: Annotated[TaskChoice, Parameter(name="*")] = _TASKS,
    server: Annotated[Server, Parameter(name="*")] = _SERVER,
    advice: Annotated[Advice, Parameter(name="*")] = _ADVICE,
    way: Annotated[Way, Parameter(name="*")] = _WAY,
    resume: Annotated[bool, Parameter(negative="")] = False,
    common: Shared = DEFAULTS,
) -> int:
    """Let a model solve tasks in several turns, with Python as its tool, and count by budget of turns.

    Parameters
    ----------
    model
        The folder of a checkpoint with a chat template, or with --endpoint the model's name there.
    out
        The folder of records to write.
    resume
        Go on with the run in --out, or start when there is none.
    """
    from blockexpand import agents

    if model is None or out is None:
        missing = "MODEL" if model is None else "--out"
        raise UsageError(f"agent needs {missing}; expected e.g. agent MODEL --out D")
    tasks = _tasks(chosen)
    adviser = _adviser(advice, server)
    speaker, who = speaker_of(model, server)
    settings = agents.AgentSettings(
        speaker=who,
        adviser=adviser[1] if adviser else None,
        budgets=tuple(way.turns or agents.DEFAULT_BUDGETS),
        manner=agents.Manner(example=way.example, feedback=advice.feedback),
        max_tokens=way.max_tokens,
    )
    tools = agents.SandboxTools(unsafe=way.unsafe)
    cast = agents.Cast(
        speaker=speaker,
        tools=tools,
        adviser=adviser[0] if adviser else None,
        at_once=way.at_once,
    )
    record = agents.run_agent(cast, tasks, settings, out, resume)
    show(common, record, _rates(record, out))
    return DONE


def _tasks(chosen: TaskChoice) -> list[Task]:
    from blockexpand import agents

    default = 0 if chosen.tasks else _DEFAULT_PUZZLES
    count = default if chosen.puzzles is None else chosen.puzzles
    made = agents.make_puzzles(count, chosen.seed) if count else []
    return agents.load_tasks(chosen.tasks or [], chosen.limit) + made


def _adviser(advice: Advice, beside: Server) -> tuple[Speaker, Opposite] | None:
    if (advice.feedback == "none") != (advice.feedback_model is None):
        raise UsageError(
            f"--feedback {advice.feedback} with --feedback-model {advice.feedback_model}; expected both or none of "
            "them; give --feedback blind or informed together with a model"
        )
    if advice.feedback_model is None:
        return None
    where = Server(
        endpoint=advice.feedback_endpoint, key_variable=advice.feedback_key_variable, timeout=beside.timeout,
        device=beside.device,
    )  # fmt: skip
    return speaker_of(advice.feedback_model, where)


def speaker_of(model: str, server: Server) -> tuple[Speaker, Opposite]:
    """What answers, and how records name it."""
    from blockexpand import agents

    if server.endpoint is None:
        if server.key_variable is not None:
            raise key_without_server(server.key_variable)
        from blockexpand.checkpoint import locate_model
        from blockexpand.evaluation.measurement import model_digest

        speaker = agents.load_speaker(model, server.pack or (), server.device)
        packs = {str(pack): digest_file(pack / PACK_NAME) for pack in server.pack or ()}
        return speaker, agents.Opposite(model=model, digest=model_digest(locate_model(model)), packs=packs)
    if server.pack:
        raise UsageError(f"--pack {server.pack[0]} is for a model in a folder; expected no --endpoint with it")
    from blockexpand.cli.main import secret
    from blockexpand.evaluation.endpoint import Endpoint, require_client

    require_client()

    key = secret(server.key_variable) if server.key_variable is not None else None
    behind = Endpoint(server.endpoint, model, key=key, timeout_seconds=server.timeout)
    behind.check()
    return agents.EndpointSpeaker(endpoint=behind), agents.Opposite(model=model, endpoint=server.endpoint)


_ENDS = {
    "solved": "solved",
    "proposals": "all proposals were wrong",
    "turns": "out of turns",
    "context": "the conversation no longer fitted the model's context",
    "error": "a server's error",
}


def _rates(record: AgentRecord, out: Path) -> str:
    lines = [record.settings.speaker.model, "  turns  set            solved  of      rate  95 % interval (Wilson)"]
    for one in record.rates:
        errors = f"  ({one.num_errors} ended in a server's error; go on with --resume)" if one.num_errors else ""
        lines.append(
            f"  {one.budget:>5}  {one.set or 'all':<12}  {one.num_solved:>7,}  {one.num_tasks:<5,}  {one.rate:>6.1%}  "
            f"{one.low:.1%} to {one.high:.1%}{errors}"
        )
    lines.append("  how the episodes ended:")
    for budget, counts in record.ends.items():
        ends = ", ".join(f"{_ENDS[end]} {count:,}" for end, count in sorted(counts.items(), key=lambda one: -one[1]))
        lines.append(f"  {budget:>5}  {ends}")
    lines.append(f"  every word is in {out / EPISODES_NAME}; as a page: blockexpand report {out}")
    return "\n".join(lines)
