"""An episode: turns of one agent at one task, from nothing, within a budget of turns.

In: a task, a budget, and turn by turn what the model wrote. Out: a frozen `Episode` that holds every word of it, so
that it can be read, counted and played again. The rules are MINT's (LLaMA Pro, Appendix E; mint/envs/general_env.py):
any `<solution>` in a turn makes it a proposal, else it is a call of the tool, and with neither it is a turn lost; the
episode ends when a proposal is right, when the proposals are used up, or when the turns are.
"""

from __future__ import annotations

import dataclasses
import re

from blockexpand.agents import prompts
from blockexpand.agents.correctness import is_right
from blockexpand.agents.tools import Ran, SandboxTools, Shell
from blockexpand.evaluation.endpoint import Message
from blockexpand.records.agents import Action, End, Episode, Manner, Task, Turn

MOST_PROPOSALS = 2  # MINT, mint/configs/config_variables.py


def proposals_of(budget: int) -> int:
    """How many solutions an episode may propose."""
    return min(MOST_PROPOSALS, budget)


def messages_of(task: Task, episode: Episode, manner: Manner) -> list[Message]:
    """Everything the model is sent for its next turn."""
    proposals = proposals_of(episode.budget)
    said: list[Message] = [
        {"role": "user", "content": prompts.opening(task, episode.budget, proposals, manner.example)}
    ]
    used = 0
    for number, turn in enumerate(episode.turns, 1):
        used += turn.action == "solution"
        left = prompts.observation(turn.shown, episode.budget - number, proposals - used, turn.feedback)
        said += [{"role": "assistant", "content": turn.output}, {"role": "user", "content": left}]
    return said


def action_of(output: str) -> tuple[Action, str]:
    """What a turn does, and the code or solution in it: all of its blocks, one under another.

    A `<solution>` that is not closed is a proposal of nothing, as in MINT.
    """
    if "<solution>" in output:
        return "solution", _blocks("solution", output)
    code = _blocks("execute", output)
    return ("execute", code) if code else ("nothing", "")


def _blocks(tag: str, output: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", output, re.DOTALL)
    return "\n".join(block.strip("\n").rstrip() if tag == "execute" else block.strip() for block in found).strip("\n")


def act(task: Task, output: str, shell: Shell, tools: SandboxTools) -> tuple[Action, str, Ran, bool | None]:
    """Do what a turn asks for: the action, what it acts on, what came of it, whether a proposal is right."""
    action, content = action_of(output)
    if not content:
        return action, "", Ran(status="", text=prompts.NOT_UNDERSTOOD), False if action == "solution" else None
    if action == "execute":
        ran = shell(content)
        return action, content, dataclasses.replace(ran, text=prompts.printed(ran)), None
    right = is_right(task, content, tools)
    return action, content, Ran(status="", text=prompts.RIGHT if right else prompts.WRONG), right


def after_turn(episode: Episode, turn: Turn) -> Episode:
    """The episode with one more turn, ended if that was its last."""
    grown = dataclasses.replace(episode, turns=(*episode.turns, turn))
    end: End = ""
    if turn.right:
        end = "solved"
    elif grown.num_proposals >= proposals_of(episode.budget):
        end = "proposals"
    elif len(grown.turns) >= episode.budget:
        end = "turns"
    return dataclasses.replace(grown, end=end)


def history_of(episode: Episode) -> str:
    """The turns in plain words, for a giver of feedback."""
    return "\n\n".join(f"{turn.output}\n\nObservation:\n{turn.shown}" for turn in episode.turns)
