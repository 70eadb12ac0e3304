"""Every sentence that an agent or a giver of feedback reads, in one place.

In: a task, what came of a turn, how much is left. Out: text. What is said follows MINT's protocol (LLaMA Pro, Table 9
and Appendix E; xingyaoww/mint-bench); how it is said is ours.
"""

from __future__ import annotations

from blockexpand.agents.tools import CALL_SECONDS, Ran
from blockexpand.records.agents import Task

STOPS = ("\nObservation:", "\nExpert feedback:", "\nTask:", "\n---")
"""Where an agent's turn ends: it must not write the other side's part (MINT, mint/configs)."""

_RULES = """\
Solve the task at the end, step by step. You have at most {turns} turns and may propose {solutions}.

In each turn, first think inside <thought> and </thought>. Then do one of two things:
1. Run Python: put code between <execute> and </execute>. It runs in a session that keeps its variables, and you are \
shown what it prints. There is no network.
2. Propose the answer: put it between <solution> and </solution>. {form}
"""

_FORMS = {
    "code": "It must be a complete Python program that defines what the task asks for.",
    "choice": "Give the letter of the option you choose.",
    "theorem": "Give the value alone.",
    "text": "Give the answer alone, without a sentence around it.",
    "exact": "Give the answer alone, without a sentence around it.",
}

_EXAMPLE = """\
---
Task:
What is the sum of the squares of the numbers from 1 to 40?

<thought>Python adds them up quickly.</thought>
<execute>
total = sum(n * n for n in range(1, 41))
total
</execute>

Observation:
22140
(Turns left: 4. Proposals left: 2.)

<thought>That is the sum that was asked for.</thought>
<solution>22140</solution>
---
"""
_CODE_EXAMPLE = """\
---
Task:
Write a function double(x) that returns twice its argument.

<thought>I write it and try it out first.</thought>
<execute>
def double(x):
    return 2 * x

double(21)
</execute>

Observation:
42
(Turns left: 4. Proposals left: 2.)

<thought>It works, so I propose it.</thought>
<solution>
def double(x):
    return 2 * x
</solution>
---
"""

NOT_UNDERSTOOD = (
    "There was nothing to act on. To run Python, write <execute>your code</execute>. To answer, write "
    "<solution>your answer</solution>, e.g. <solution>22140</solution>."
)
WRONG = "This solution is not right."
RIGHT = "This solution is right."

_STOPPED = {
    "timeout": f"The code was stopped: it ran for more than {CALL_SECONDS:g} seconds.",
    "memory": "The code was stopped: it took too much memory.",
    "output": "The code was stopped: it printed too much.",
    "killed": "The Python session ended and begins anew.",
}
"""By the sandbox's words for what happened; `ok` and `error` speak for themselves."""


def opening(task: Task, turns: int, solutions: int, example: bool) -> str:
    """The first message: the rules, an example, the task."""
    proposals = "one solution" if solutions == 1 else f"{solutions} solutions"
    rules = _RULES.format(turns=turns, solutions=proposals, form=_FORMS[task.scoring])
    shown = (_CODE_EXAMPLE if task.scoring == "code" else _EXAMPLE) if example else ""
    return f"{rules}\n{shown}\nTask:\n{task.prompt}"


def printed(ran: Ran) -> str:
    """What the agent is shown of a call."""
    # Half a character, which a program can print, would not survive the record.
    text = ran.text.encode("utf-8", "replace").decode().strip("\n")
    return "\n".join(part for part in (text, _STOPPED.get(ran.status, "")) if part) or "(nothing was printed)"


def observation(text: str, turns_left: int, solutions_left: int, feedback: str) -> str:
    """The message after a turn."""
    said = f"\n\nExpert feedback:\n{feedback}" if feedback else ""
    return f"Observation:\n{text}\n(Turns left: {turns_left}. Proposals left: {solutions_left}.){said}"


_ADVICE = """\
You watch a learner solve a task in several turns: it thinks, runs Python, and proposes solutions. Give it advice on \
its last turn in at most three sentences: what is right, what is not, what to try next. Do not solve the task and do \
not state the answer.
{known}
Task:
{prompt}

What the learner did so far:
{history}"""


def advice_request(task: Task, history: str, with_reference: bool) -> str:
    """What a giver of feedback is asked."""
    known = f"\nThe right answer, which you must keep to yourself:\n{task.reference}\n" if with_reference else ""
    return _ADVICE.format(known=known, prompt=task.prompt, history=history)
