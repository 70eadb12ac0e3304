"""Agents: success by budget of turns for scripted agents and for a model; the scorers against the data's own answers.

    python benchmarks/agents.py --model demo-full-out/instruct/model [--mint FOLDER] [--puzzles 40]

Two scripted agents have known results. *worker* runs a puzzle's program in its first turn and proposes what it
printed: 0 % in one turn, 100 % from two on. *guesser* proposes a wrong answer first, then works like the other: 0 % in
one and two turns, 100 % from three on. With --mint, a folder of MINT's files, each task's own reference is proposed at
once: what is not 100 % is a fault of a scorer. All code runs in the sandbox.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from blockexpand.agents import (
    Cast,
    SandboxTools,
    Speaker,
    load_speaker,
    load_tasks,
    make_puzzles,
    run_agent,
)
from blockexpand.evaluation.endpoint import Answer, Message, Request
from blockexpand.records.agents import AgentRecord, AgentSettings, Manner, Opposite, Task, read_agent


@dataclasses.dataclass(frozen=True)
class Scripted:
    """A speaker that does what a function says of the task and the messages."""

    tasks: list[Task]
    script: Callable[[Task, Sequence[Message]], str]

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """What the script says."""
        return [Answer(text=self._say(request.messages)) for request in requests]

    def _say(self, messages: Sequence[Message]) -> str:
        task = next(task for task in self.tasks if messages[0]["content"].endswith(f"\nTask:\n{task.prompt}"))
        return self.script(task, messages)


def worker(task: Task, messages: Sequence[Message]) -> str:
    if len(messages) == 1 or "<execute>" not in messages[-2]["content"]:
        return f"<thought>Python works it out.</thought>\n<execute>\n{task.program}\n</execute>"
    printed = messages[-1]["content"].removeprefix("Observation:\n").rpartition("\n(Turns left")[0]
    return f"<thought>That is it.</thought>\n<solution>{printed}</solution>"


def guesser(task: Task, messages: Sequence[Message]) -> str:
    return "<solution>not known</solution>" if len(messages) == 1 else worker(task, messages)


def reference(task: Task, _: Sequence[Message]) -> str:
    """The data's own answer, as an agent would give it."""
    answer = task.reference
    if task.scoring == "theorem":
        value = json.loads(answer)
        answer = str(value)
    return f"<solution>{answer}</solution>"


def measure(name: str, speaker: Speaker, tasks: list[Task], settings: AgentSettings) -> AgentRecord:
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        out = Path(folder) / "run"
        record = run_agent(Cast(speaker=speaker, tools=SandboxTools()), tasks, settings, out)
        seconds = time.monotonic() - start
        episodes = read_agent(out).episodes
    tools = [turn.tool_seconds for episode in episodes for turn in episode.turns if turn.action == "execute"]
    print(
        f"| {name} | {len(tasks)} | "
        + " | ".join(f"{r.num_solved} = {r.rate:.1%} ({r.low:.1%} to {r.high:.1%})" for r in record.rates if not r.set)
        + f" | {seconds:.1f} | {1000 * sum(tools) / max(1, len(tools)):.0f} |",
        flush=True,
    )
    print(f"  ends: {record.ends}", file=sys.stderr)
    return record


def humaneval_solutions(path: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {str(row["id"]): f"{row['prompt']}\n{row['canonical_solution']}" for row in rows}


def check_scorers(folder: Path) -> None:
    print("\n| set | tasks | own answer counted right |\n| --- | --- | --- |")
    settings = AgentSettings(speaker=Opposite(model="reference"), budgets=(1,))
    for path in sorted(folder.glob("*.jsonl")):
        tasks = load_tasks([str(path)])
        solutions = humaneval_solutions(path) if path.stem == "humaneval" else {}

        def script(task: Task, messages: Sequence[Message], solutions: dict[str, str] = solutions) -> str:
            return f"<solution>{solutions[task.id]}</solution>" if solutions else reference(task, messages)

        with tempfile.TemporaryDirectory() as out:
            cast = Cast(speaker=Scripted(tasks, script), tools=SandboxTools())
            record = run_agent(cast, tasks, settings, Path(out) / "run")
            wrong = [e.id for e in read_agent(Path(out) / "run").episodes if not e.solved]
        print(f"| {path.stem} | {len(tasks)} | {record.rates[0].rate:.1%} {wrong or ''} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--mint", type=Path)
    parser.add_argument("--puzzles", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=48)
    options = parser.parse_args()
    puzzles = make_puzzles(options.puzzles)
    print(f"date {datetime.now(UTC):%Y-%m-%dT%H:%M}Z; {SandboxTools().describe().splitlines()[0]}\n")
    print("| agent | tasks | k=1 | k=2 | k=3 | k=4 | k=5 | seconds | ms a call |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    scripted = AgentSettings(speaker=Opposite(model="scripted"))
    measure("scripted worker", Scripted(puzzles, worker), puzzles, scripted)
    measure("scripted guesser", Scripted(puzzles, guesser), puzzles, scripted)
    if options.model:
        settings = AgentSettings(
            speaker=Opposite(model=options.model), manner=Manner(example=False), max_tokens=options.max_tokens
        )
        measure(Path(options.model).parent.name + " model", load_speaker(options.model), puzzles, settings)
    if options.mint:
        check_scorers(options.mint)


if __name__ == "__main__":
    main()
