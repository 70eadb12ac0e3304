"""Tasks with checkable answers: a chat prompt, a greedy answer, right or wrong to the letter.

In: JSON lines of {task, prompt, answer}. Out: one record a sample and a share of right answers a task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from blockexpand.corpus.chats import render_prompt
from blockexpand.errors import EvaluationError, RecordError
from blockexpand.evaluation.routes import Router
from blockexpand.live.generation import ends_of_model, generate
from blockexpand.packs.in_memory import only
from blockexpand.progress import bar
from blockexpand.records import from_plain
from blockexpand.records.evaluation import Answered, Scores
from blockexpand.records.pack import Names, name_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerTask:
    """One question."""

    task: str
    """The kind of question, under which its score is counted."""
    prompt: str
    answer: str
    """The one right answer; compared after spaces at both ends are dropped."""


def load_tasks(path: str | Path) -> list[AnswerTask]:
    """The tasks of a JSON lines file.

    Raises:
        EvaluationError: the file is missing, empty, or a line has other columns.
    """
    if not Path(path).is_file():
        raise EvaluationError(f"no tasks at {path}; expected JSON lines of task, prompt and answer")
    tasks = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines()):
        try:
            tasks.append(from_plain(AnswerTask, json.loads(line), f"{path}, line {number + 1}"))
        except (json.JSONDecodeError, RecordError) as error:
            raise EvaluationError(f"{path}, line {number + 1} is not a task: {error}") from None
    if not tasks:
        raise EvaluationError(f"{path} holds no task; expected JSON lines of task, prompt and answer")
    return tasks


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[AnswerTask],
    max_new_tokens: int,
    router: Router | None = None,
) -> list[Answered]:
    """Greedy answers to the tasks, in their order; with a router, each with the packs that its prompt asks for.

    Prompts of one route are answered together. Routed is the prompt's own text, without the template around it.

    Raises:
        EvaluationError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise EvaluationError("the model has no chat template; instruction-tune it first, or add chat_template.jinja")
    prompts = [_prompt_ids(tokenizer, task.prompt) for task in tasks]
    ends = ends_of_model(model, tokenizer)
    routes = [router.of_text(task.prompt) if router else None for task in tasks]
    alike: dict[Names | None, list[int]] = {}
    for number, names in enumerate(routes):
        alike.setdefault(names, []).append(number)
    outputs = [""] * len(tasks)
    with bar("answers", len(tasks), "samples") as progress:
        for names, numbers in alike.items():
            with only(model, *names) if names is not None else contextlib.nullcontext():
                made = generate(
                    model, [prompts[n] for n in numbers], num_new=max_new_tokens, ends=ends, done=progress.advance
                )
            made = [tokens[:-1] if tokens and tokens[-1] in ends else tokens for tokens in made]
            texts = tokenizer.batch_decode(made, skip_special_tokens=True)
            for number, text in zip(numbers, texts, strict=True):
                outputs[number] = text
    return [
        Answered(
            task=task.task, prompt=task.prompt, answer=task.answer, output=output,
            right=output.strip() == task.answer.strip(), route=None if names is None else name_of(names),
        )
        for task, output, names in zip(tasks, outputs, routes, strict=True)
    ]  # fmt: skip


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    return render_prompt(tokenizer, [{"role": "user", "content": prompt}])


def score(answered: Sequence[Answered]) -> Scores:
    """The shares of right answers, over all and by task."""
    by_task: dict[str, list[bool]] = {}
    for one in answered:
        by_task.setdefault(one.task, []).append(one.right)
    return Scores(
        right=sum(one.right for one in answered) / len(answered),
        by_task={task: sum(rights) / len(rights) for task, rights in sorted(by_task.items())},
        num_samples=len(answered),
    )
