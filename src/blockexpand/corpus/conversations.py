"""Chats in the two common message formats, into one.

In: a record with `messages` ([{role, content}]) or ShareGPT's `conversations` ([{from, value}]). Out: a document
whose turns have the roles system, user and assistant. Refused: other roles, and a chat in which nobody answers.
"""

from __future__ import annotations

from typing import Any

from blockexpand.corpus.documents import Document, Message
from blockexpand.errors import CorpusError

CHAT_FIELDS = ("messages", "conversations")
_ROLES = ("system", "user", "assistant")
_NAMES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of the roles."""


def field_of(row: Any, field: str, place: str, kind: type) -> Any:
    """The value of a field of a record, of the kind asked for.

    Raises:
        CorpusError: the record is none, or has no such field, or another kind of value in it.
    """
    if not isinstance(row, dict) or field not in row:
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise CorpusError(f"{place} has no field {field!r}; it has: {keys}. Set 'field' to one of these")
    if not isinstance(row[field], kind):
        raise CorpusError(f"{place}: {field!r} is {row[field]!r:.60}; expected {kind.__name__}")
    return row[field]


def conversation_of(row: Any, field: str | None, place: str) -> Document:
    """The conversation that a record holds.

    Raises:
        CorpusError: it holds none, has a role that is not known, or no turn of the assistant.
    """
    if field is None:
        there = [name for name in CHAT_FIELDS if isinstance(row, dict) and row.get(name) is not None]
        field = there[0] if there else CHAT_FIELDS[0]
    messages = tuple(_message(turn, place) for turn in field_of(row, field, place, list))
    if not any(message.role == "assistant" for message in messages):
        raise CorpusError(f"{place} has no assistant turn, so nothing in it could be trained; remove it")
    return Document(text="\n".join(m.content for m in messages), name=place, messages=messages)


def _message(turn: Any, place: str) -> Message:
    sharegpt = isinstance(turn, dict) and "from" in turn
    role_field, content_field = ("from", "value") if sharegpt else ("role", "content")
    said = field_of(turn, role_field, place, str)
    role = _NAMES.get(said, said)
    if role not in _ROLES:
        known = ", ".join((*_ROLES, *_NAMES))
        raise CorpusError(f"{place}: unknown role {said!r}; expected one of {known}")
    return Message(role=role, content=_content(turn, content_field, place))


def _content(turn: Any, field: str, place: str) -> str:
    """The text of a turn: text, or a list of parts that are all text."""
    value = turn.get(field)
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        return "".join(field_of(part, "text" if "text" in part else "value", place, str) for part in value)
    return field_of(turn, field, place, str)
