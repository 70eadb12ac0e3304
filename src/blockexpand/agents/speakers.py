"""What answers: a model in this process, or one behind an address, both asked for many conversations at a time.

In: requests (messages and limits). Out: as many answers, in their order. A loaded model speaks through its chat
template, greedily, as many conversations at a time as memory allows. Refused: no chat template.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from blockexpand.corpus.chats import render_prompt
from blockexpand.errors import AgentError
from blockexpand.evaluation.endpoint import Answer, Endpoint, Request, ask_all, cut_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS_AT_ONCE = 65_536
"""Prompt and new tokens together: 8 GB of keys and values of an 8B model with grouped queries in bf16."""
_WATCHED_TOKENS = 24
"""At the end of what is written so far, in which a stop text is looked for; the longest of ours is 17 characters."""


class Speaker(Protocol):
    """Something that answers conversations."""

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """As many answers, in order. What goes wrong stands in them."""
        ...


@dataclass(frozen=True, kw_only=True)
class EndpointSpeaker:
    """A model behind an address."""

    endpoint: Endpoint

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Ask the server."""
        return list(ask_all(self.endpoint, requests))


@dataclass(frozen=True, kw_only=True)
class LoadedSpeaker:
    """A model in this process."""

    model: PreTrainedModel
    """In eval mode."""
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise AgentError(
                f"the model {self.tokenizer.name_or_path} has no chat template, so it cannot hold a conversation; "
                "expected one that is instruction-tuned; tune it first, or put its chat_template.jinja into the folder"
            )

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer; those of a call have one length limit and one list of stop texts, and those of the first hold."""
        from blockexpand.live.generation import context_of, ends_of_model, generate

        start = time.monotonic()
        prompts = [render_prompt(self.tokenizer, request.messages) for request in requests]
        num_new, stops = requests[0].max_tokens, requests[0].stop
        context = context_of(self.model) or 1_000_000  # state-space models have no limit of their own
        fitting = [number for number, prompt in enumerate(prompts) if len(prompt) + num_new <= context]
        longest = max((len(prompts[number]) for number in fitting), default=0)
        ends = ends_of_model(self.model, self.tokenizer)

        def has_stopped(made: Sequence[int]) -> bool:
            text = str(self.tokenizer.decode(list(made[-_WATCHED_TOKENS:])))
            return any(stop in text for stop in stops)

        made = generate(
            self.model, [prompts[number] for number in fitting], num_new=num_new, ends=ends,
            rows=max(1, _TOKENS_AT_ONCE // (longest + num_new)), has_stopped=has_stopped if stops else None,
        )  # fmt: skip
        seconds = time.monotonic() - start
        said = dict(zip(fitting, made, strict=True))
        answers = []
        for number, prompt in enumerate(prompts):
            if (tokens := said.get(number)) is None:
                answers.append(_too_long(len(prompt), num_new, context))
                continue
            tokens = tokens[:-1] if tokens and tokens[-1] in ends else tokens
            text = cut_at(str(self.tokenizer.decode(tokens, skip_special_tokens=True)), stops)
            answers.append(Answer(text=text, seconds=seconds, prompt_tokens=len(prompt), completion_tokens=len(tokens)))
        return answers


def _too_long(num_prompt: int, num_new: int, context: int) -> Answer:
    error = (
        f"the conversation has {num_prompt:,} tokens, and {num_new:,} more may come; the model's context is {context:,}"
    )
    return Answer(text="", error=error, prompt_tokens=num_prompt, too_long=True)


def load_speaker(model: str | Path, packs: Sequence[str | Path] = (), device: str = "auto") -> LoadedSpeaker:
    """A model (a folder, a run, a hub id, a GGUF file), with packs of new blocks on it, in the checkpoint's own type.

    Raises:
        LiveError: it cannot be loaded.
        PackError: a pack does not belong to it.
        CorpusError: it has no tokenizer.
        AgentError: it has no chat template.
        DeviceError: the device is not there.
    """
    from blockexpand.checkpoint import locate_model
    from blockexpand.corpus.tokenizer import load_tokenizer
    from blockexpand.evaluation.measurement import subject_of

    folder = locate_model(model)
    tokenizer = load_tokenizer(folder)
    return LoadedSpeaker(model=subject_of(folder, packs, device=device).load(), tokenizer=tokenizer)
