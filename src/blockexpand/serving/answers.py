"""Who answers a request, and the answer as it is made.

In: a speaker, what was asked, the name it was asked under. Out: events: for each prompt who answers it, pieces of text,
and how it ended. Refused (ServingError): a name that there is not, a prompt that leaves no room in the context, tokens
that the vocabulary does not have; packs whose names are those of the server's own choices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from blockexpand.errors import ServingError, nearest
from blockexpand.records.pack import name_of
from blockexpand.serving.requests import CompletionRequest
from blockexpand.serving.speaker import Prompt, Speaker, Who
from blockexpand.serving.text_stream import TextStream

if TYPE_CHECKING:
    from blockexpand.packs.route import Route

_BASE, _ALL, _AUTO = "base", "all", "auto"
_MOST_ANSWER_TOKENS = 100_000
"""Where neither the request nor the model has a limit."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Who answers under a name."""

    as_base: bool = False
    packs: tuple[str, ...] | None = None
    """These are on; None where the model has none."""
    routes: bool = False
    """Whether one of them, or the base, is chosen by what was said."""


class Answerer(NamedTuple):
    """Who answers a prompt."""

    index: int
    packs: tuple[str, ...] | None
    """None where the model has none."""
    nats: dict[str, float]
    """Nats per token of what was said, by candidate; empty where nothing was chosen, or too little was said."""


class AnswerText(NamedTuple):
    """Some of an answer."""

    index: int
    text: str


class AnswerEnd(NamedTuple):
    """The end of an answer."""

    index: int
    finish: str
    num_prompt_tokens: int
    num_tokens: int
    logprobs: dict[str, Any] | None


Event = Answerer | AnswerText | AnswerEnd


def names_of(speaker: Speaker, name: str | None = None, *, routes: bool = False) -> dict[str, Choice]:
    """Who answers under which name, the model's own first; `name`, or else its folder's.

    A folder that is called as one of the others (a base in the folder `base`, with packs) is not listed by its name.

    Raises:
        ServingError: a name would mean two things.
    """
    own, packs, given = Choice(), speaker.packs, name or speaker.facts.name
    others = {_BASE: Choice(as_base=True)} if speaker.facts.is_expanded else {}
    if packs:
        for pack in packs:
            if pack in (_BASE, _ALL, _AUTO):
                raise ServingError(
                    f"the pack {pack!r} has a name that the server itself gives; expected another; extract it again "
                    "with --name"
                )
        others = {
            _BASE: Choice(packs=()),
            **{pack: Choice(packs=(pack,)) for pack in packs},
            _ALL: Choice(packs=packs),
            _AUTO: Choice(packs=packs, routes=True),
        }
        own = others[_AUTO if routes else _ALL]
    if given not in others:
        return {given: own, **others}
    if name is not None or not packs:
        raise ServingError(
            f"the model would be called {given!r}, which already is the name of something else here (there are "
            f"{', '.join(others)}); expected another; give one with --name"
        )
    return others


def choice_of(names: dict[str, Choice], asked: str) -> Choice:
    """Who is meant.

    Raises:
        ServingError: nobody, with 404.
    """
    if asked not in names:
        raise ServingError(
            f"there is no model {asked!r} here; {nearest(asked, names)}; GET /v1/models lists them",
            status=404,
            param="model",
            code="model_not_found",
        )
    return names[asked]


class Prepared(NamedTuple):
    """A prompt in tokens, and what there is room for."""

    prompt: Prompt
    text: str
    """What an echo says; empty for a chat."""
    most_tokens: int


def prepare(speaker: Speaker, asked: CompletionRequest) -> list[Prepared]:
    """The prompts of a request.

    Raises:
        ServingError: one does not fit.
        ChatError: there is no chat template, or it does not take the messages.
    """
    if asked.messages:
        found = [(speaker.chat_prompt(asked.messages), "")]
    else:
        found = [_of_text(speaker, p) if isinstance(p, str) else _of_tokens(speaker, p) for p in asked.prompts]
    param = "messages" if asked.messages else "prompt"
    return [Prepared(prompt, text, _room(speaker, prompt, asked.max_tokens, param)) for prompt, text in found]


def _of_text(speaker: Speaker, text: str) -> tuple[Prompt, str]:
    return speaker.text_prompt(text), text


def _of_tokens(speaker: Speaker, tokens: Sequence[int]) -> tuple[Prompt, str]:
    vocabulary_size = speaker.num_embeddings
    if odd := [token for token in tokens if not 0 <= token < vocabulary_size]:
        raise ServingError(
            f"the prompt has the token {odd[0]}, expected 0 to {vocabulary_size - 1}; take this model's tokenizer",
            param="prompt",
            code="invalid_value",
        )
    special = set(speaker.tokenizer.all_special_ids)
    text = str(speaker.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))
    return Prompt(tokens, [token for token in tokens if token not in special]), text


def _room(speaker: Speaker, prompt: Prompt, wanted: int | None, param: str) -> int:
    """How many tokens the answer may have."""
    num, context = len(prompt.tokens), speaker.context
    if not num:
        raise ServingError(f"no token comes of the {param}, expected one or more; say something", param=param)
    least = 1 if wanted is None else wanted
    if num + least > context:
        raise ServingError(
            f"the {param} and the answer come to {num:,} + {least:,} = {num + least:,} tokens, and the model reads "
            f"{context:,} in all; shorten the {param}" + (f", or ask for {context - num:,} at most" * (num < context)),
            param=param,
            code="context_length_exceeded",
        )
    return min(context - num, _MOST_ANSWER_TOKENS) if wanted is None else wanted


def answer(
    speaker: Speaker, asked: CompletionRequest, choice: Choice, prepared: Sequence[Prepared], stop: threading.Event
) -> Generator[Event]:
    """Each prompt's answer, one after the other. Leaving the iteration, or setting `stop`, ends it.

    Raises:
        ServingError: it was stopped.
    """
    for index, one in enumerate(prepared):
        if stop.is_set():
            raise _stopped()
        yield from _PromptAnswer(speaker=speaker, asked=asked, choice=choice, index=index).events(one, stop)


@dataclass(frozen=True, kw_only=True)
class _PromptAnswer:
    """One prompt of a request."""

    speaker: Speaker
    asked: CompletionRequest
    choice: Choice
    index: int
    heard: list[Route] = dataclasses.field(default_factory=list)
    """What was chosen, if anything was."""

    def events(self, one: Prepared, stop: threading.Event) -> Generator[Event]:
        who = Who(self.choice.as_base, self.choice.packs, self.heard.append if self.choice.routes else None)
        before = () if self.asked.messages else one.prompt.tokens
        stream = self.speaker.stream(one.most_tokens, stops=self.asked.stops, stop=stop, before=before)
        with contextlib.closing(self._texts(one, who, stream)) as texts:
            first = next(texts, "")  # which packs answer is known once a piece has come, or none will
            yield self._chosen()
            for text in (one.text if self.asked.echo else "", first):
                if text:
                    yield AnswerText(self.index, text)
            yield from (AnswerText(self.index, text) for text in texts)
        if one.most_tokens and stream.finish is None:
            raise _stopped()
        num_prompt = len(one.prompt.tokens)
        logprobs = self._logprobs(one, stream) if self.asked.logprobs is not None else None
        yield AnswerEnd(self.index, stream.finish or "length", num_prompt, len(stream.tokens), logprobs)

    def _texts(self, one: Prepared, who: Who, stream: TextStream) -> Generator[str]:
        if one.most_tokens:
            yield from self.speaker.write(one.prompt, self.asked.sampling, who, stream)
        else:  # nothing is to be written; whose likelihoods they are is still to be chosen
            with self.speaker.acting(who, one.prompt.said):
                pass

    def _chosen(self) -> Answerer:
        if not self.heard:
            return Answerer(self.index, self.choice.packs, {})
        route = self.heard[0]
        return Answerer(self.index, route.names, {name_of(names): nats for names, nats in route.nats.items()})

    def _logprobs(self, one: Prepared, stream: TextStream) -> dict[str, Any]:
        """Of the answer, the token that ended it included, and with an echo of the prompt's before it."""
        from blockexpand.serving.likelihoods import as_logprobs, score

        end = [] if stream.end is None else [stream.end]
        tokens = [*one.prompt.tokens, *stream.tokens, *end]
        who = Who(self.choice.as_base, self.heard[0].names if self.heard else self.choice.packs)
        with self.speaker.acting(who, "") as model:
            scored = score(model, tokens, self.asked.logprobs or 0)
        return as_logprobs(scored if self.asked.echo else scored[len(one.prompt.tokens) :], self.speaker.tokenizer)


def _stopped() -> ServingError:
    return ServingError("the answer was stopped before its end, as the server ends; ask again later", status=503)
