"""What answers: a model in this process, or one behind an address, both asked for many conversations at a time.

In: requests (messages and limits). Out: as many answers, in their order. A loaded model speaks through its chat
template, all conversations of a call in as few passes as memory allows; they are padded on the left, so a batch may
differ from single runs where two tokens are equally likely to the last bits. Refused: no chat template.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from blockexpand.corpus.chats import render_prompt
from blockexpand.errors import AgentError
from blockexpand.evaluation.endpoint import Answer, Endpoint, Request, ask_all, cut_at

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENS_PER_PASS = 65_536
"""Prompt and new tokens of a pass together: 8 GB of keys and values of an 8B model with grouped queries in bf16."""
_WATCHED_TOKENS = 24
"""At the end of what is written so far, in which a stop text is looked for; the longest of ours is 17 characters."""

# B = conversations of a pass, A = tokens of the longest.


class Speaker(Protocol):
    """Something that answers conversations."""

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """As many answers, in order. What goes wrong stands in them."""
        ...


@dataclass(frozen=True, kw_only=True)
class EndpointSpeaker:
    """A model behind an address."""

    endpoint: Endpoint
    at_once: int = 8
    """Requests under way at a time."""

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Ask the server."""
        return list(ask_all(self.endpoint, requests, self.at_once))


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
        """Answer, the longest conversations first so that the largest pass comes first."""
        prompts = [self._ids(request) for request in requests]
        answers: dict[int, Answer] = {}
        for number, (ids, request) in enumerate(zip(prompts, requests, strict=True)):
            if len(ids) + request.max_tokens > self._context():
                answers[number] = _too_long(len(ids), request.max_tokens, self._context())
        order = sorted((n for n in range(len(requests)) if n not in answers), key=lambda n: -len(prompts[n]))
        for part in _passes(order, [len(p) + r.max_tokens for p, r in zip(prompts, requests, strict=True)]):
            found = self._pass([prompts[n] for n in part], [requests[n] for n in part])
            answers |= dict(zip(part, found, strict=True))
        return [answers[number] for number in range(len(requests))]

    def _ids(self, request: Request) -> list[int]:
        return render_prompt(self.tokenizer, request.messages)

    def _context(self) -> int:
        """Tokens that the model was made for; state-space models have no limit of their own."""
        from blockexpand.live.generation import context_of

        return context_of(self.model) or 1_000_000

    def _pass(self, prompts: list[list[int]], requests: list[Request]) -> list[Answer]:
        """One batch of one temperature and length limit: those of a call are the same."""
        import torch

        start = time.monotonic()
        longest = max(map(len, prompts))
        device = next(self.model.parameters()).device
        eos = self._ends()
        prompts_BA = torch.tensor([[eos[0]] * (longest - len(ids)) + ids for ids in prompts], device=device)
        mask_BA = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        first = requests[0]
        sampling: dict[str, Any] = {"temperature": first.temperature, "top_k": 0} if first.temperature > 0 else {}
        generating: Any = self.model
        with torch.no_grad():
            out_BA: Tensor = generating.generate(
                input_ids=prompts_BA,
                attention_mask=mask_BA,
                max_new_tokens=first.max_tokens,
                do_sample=first.temperature > 0,
                eos_token_id=eos,
                pad_token_id=eos[0],
                stopping_criteria=[self._stopping(first.stop, longest)] if first.stop else None,
                **sampling,
            )
        seconds = time.monotonic() - start
        new_BA = out_BA[:, longest:].tolist()
        return [
            self._answer(len(ids), new, request, seconds)
            for ids, new, request in zip(prompts, new_BA, requests, strict=True)
        ]

    def _answer(self, num_prompt: int, new: list[int], request: Request, seconds: float) -> Answer:
        ends = set(self._ends())
        length = next((n for n, token in enumerate(new) if token in ends), len(new))
        text = str(self.tokenizer.decode(new[:length], skip_special_tokens=True))
        return Answer(
            text=cut_at(text, request.stop), prompt_tokens=num_prompt, completion_tokens=length, seconds=seconds
        )

    def _ends(self) -> list[int]:
        """The tokens that end a turn."""
        from blockexpand.live.generation import ends_of_model

        return ends_of_model(self.model, self.tokenizer)

    def _stopping(self, stops: Sequence[str], num_prompt: int) -> Any:
        """A criterion for `generate`: which conversations have reached a stop text."""
        import torch
        from transformers import StoppingCriteria

        tokenizer = self.tokenizer

        class AtStopText(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                del scores
                ends_BA = input_ids[:, max(num_prompt, input_ids.shape[1] - _WATCHED_TOKENS) :].tolist()
                texts = tokenizer.batch_decode(ends_BA)
                done = [any(stop in text for stop in stops) for text in texts]
                return torch.tensor(done, device=input_ids.device)

        return AtStopText()


def _too_long(num_prompt: int, num_new: int, context: int) -> Answer:
    error = (
        f"the conversation has {num_prompt:,} tokens, and {num_new:,} more may come; the model's context is {context:,}"
    )
    return Answer(text="", error=error, prompt_tokens=num_prompt, too_long=True)


def _passes(order: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Cut the requests, longest first, into passes of bounded size."""
    part: list[int] = []
    for number in order:
        if part and sizes[part[0]] * (len(part) + 1) > _TOKENS_PER_PASS:
            yield part
            part = []
        part.append(number)
    if part:
        yield part


def load_speaker(model: str | Path, packs: Sequence[str | Path] = ()) -> LoadedSpeaker:
    """A model (a folder, a run, a hub id, a GGUF file), with packs of new blocks on it, in the checkpoint's own type.

    Raises:
        LiveError: it cannot be loaded.
        PackError: a pack does not belong to it.
        CorpusError: it has no tokenizer.
        AgentError: it has no chat template.
    """
    from blockexpand.checkpoint import locate_model
    from blockexpand.corpus.tokenizer import load_tokenizer
    from blockexpand.evaluation.measurement import subject_of

    folder = locate_model(model)
    tokenizer = load_tokenizer(folder)
    return LoadedSpeaker(model=subject_of(folder, packs).load(), tokenizer=tokenizer)
