"""What a client is sent, in the shapes of OpenAI's API.

In: what was asked, and the events of its answer. Out: whole answers, chunks of streams, entries of models, errors.
Who answers stands beside each choice as `blockexpand`: {"packs": [...], "nats": {...}} where there are packs.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockexpand.errors import ServingError
from blockexpand.serving.answers import AnswerEnd, Answerer, AnswerText, Event
from blockexpand.serving.requests import CompletionRequest

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of the answers to one request."""

    asked: CompletionRequest
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_chat(self) -> bool:
        """Or a completion."""
        return bool(self.asked.messages)

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """The answer, once it is whole."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        choices = [self._choice(number, events) for number in sorted({event.index for event in events})]
        return self._head(kind) | {"choices": choices, "usage": usage_of(events)}

    def _choice(self, number: int, events: Sequence[Event]) -> dict[str, Any]:
        mine = [event for event in events if event.index == number]
        text = "".join(event.text for event in mine if isinstance(event, AnswerText))
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
        choice: dict[str, Any] = {"index": number, **said, "logprobs": None, "finish_reason": None}
        for event in mine:
            if isinstance(event, Answerer):
                choice |= chosen(event)
            elif isinstance(event, AnswerEnd):
                choice |= {"finish_reason": event.finish, "logprobs": event.logprobs}
        return choice

    def chunks(self, event: Event) -> Iterator[str]:
        """What of a stream an event is."""
        if isinstance(event, Answerer):
            beginning = chosen(event)
            if self.is_chat or beginning:
                yield self._chunk(event.index, {"role": "assistant", "content": ""}, "", **beginning)
        elif isinstance(event, AnswerText):
            yield self._chunk(event.index, {"content": event.text}, event.text)
        else:
            yield self._chunk(event.index, {}, "", finish_reason=event.finish)

    def last(self, events: Sequence[Event]) -> Iterator[str]:
        """The end of a stream that went well."""
        if self.asked.with_usage:
            yield sse(self._head(self._chunk_kind) | {"choices": [], "usage": usage_of(events)})
        yield DONE

    def _chunk(self, index: int, delta: dict[str, str], text: str, **more: Any) -> str:
        said = {"delta": delta} if self.is_chat else {"text": text}
        choice = {"index": index, **said, "logprobs": None, "finish_reason": None} | more
        counts = {"usage": None} if self.asked.with_usage else {}
        return sse(self._head(self._chunk_kind) | {"choices": [choice]} | counts)

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.asked.model}


def chosen(event: Answerer) -> dict[str, Any]:
    """Who answers, for a choice; nothing where there are no packs."""
    if event.packs is None:
        return {}
    nats = {"nats": {name: round(value, 4) for name, value in event.nats.items()}} if event.nats else {}
    return {"blockexpand": {"packs": list(event.packs), **nats}}


def usage_of(events: Sequence[Event]) -> dict[str, int]:
    """Tokens read and written; the one that ends an answer is none of it."""
    ended = [event for event in events if isinstance(event, AnswerEnd)]
    read, written = sum(e.num_prompt_tokens for e in ended), sum(e.num_tokens for e in ended)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def sse(value: Any) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(value)}\n\n"


def model_entry(name: str, created: int) -> dict[str, Any]:
    """A model, in the list and by itself."""
    return {"id": name, "object": "model", "created": created, "owned_by": "blockexpand"}


def error_entry(error: ServingError) -> dict[str, Any]:
    """An error, as a body or in a stream."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}
