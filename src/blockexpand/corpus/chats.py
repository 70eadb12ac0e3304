"""Chats: records become turns, turns become text and tokens. The one way of it in the whole program.

In: a record with `messages` ([{role, content}]), ShareGPT's `conversations` ([{from, value}]) or Alpaca's
`instruction`, `input`, `output`; or a list of turns. Out: turns with the roles system, user and assistant, and what the
tokenizer's chat template makes of them. Refused, always as a CorpusError of one line: other roles, tool calls, turns
without text, chats in which nobody answers, and whatever a template raises.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blockexpand.errors import CorpusError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
"""One turn: `role` (system, user or assistant) and `content`."""

TURN_FIELDS = ("messages", "conversations")
_PAIRS = (("instruction", "output"), ("instruction", "response"), ("prompt", "completion"))
"""Columns of a question and its answer: Alpaca's, Dolly's, TRL's."""
_CONTEXTS = ("input", "context")
_ROLES = ("system", "user", "assistant")
_SHAREGPT = {"human": "user", "gpt": "assistant"}


# --- records into turns ---------------------------------------------------------------------------------


def chat_fields(columns: Sequence[str]) -> tuple[str, ...]:
    """Which of a table's columns make a chat; none where it holds no chats."""
    for field in TURN_FIELDS:
        if field in columns:
            return (field,)
    for pair in _PAIRS:
        if set(pair) <= set(columns) and "text" not in columns:
            return (*pair, *(c for c in (*_CONTEXTS, "system") if c in columns))
    return ()


def messages_of(row: Any, place: str, field: str | None = None) -> tuple[Message, ...]:
    """The turns that a record holds.

    Args:
        row: The record.
        place: Where it stands, for messages.
        field: The column of the turns; found by its name if not given.

    Raises:
        CorpusError: it holds none, has a role that is not known, a turn without text, or no turn of the assistant.
    """
    if not isinstance(row, Mapping):
        raise CorpusError(f"{place} is {row!r:.60}; expected a record with {' or '.join(TURN_FIELDS)}")
    present = [name for name in row if row[name] is not None]
    fields = (field,) if field is not None else chat_fields(present)
    if not fields or fields[0] not in row:
        asked = repr(field) if field else "messages, conversations, or instruction and output"
        raise CorpusError(f"{place} holds no chat: it has {', '.join(map(str, row))}; expected {asked}")
    if len(fields) > 1:
        return _question_and_answer(row, fields, place)
    turns = row[fields[0]]
    if not isinstance(turns, list | tuple):
        raise CorpusError(f"{place}: {fields[0]!r} is {turns!r:.60}; expected a list of turns")
    messages = tuple(_message(turn, f"{place}, turn {number}") for number, turn in enumerate(turns, 1))
    if not any(message["role"] == "assistant" for message in messages):
        raise CorpusError(f"{place} has no assistant turn, so nothing in it could be trained; remove it")
    return messages


def _question_and_answer(row: Mapping[str, Any], fields: tuple[str, ...], place: str) -> tuple[Message, ...]:
    question, answer, *more = fields
    if isinstance(row[question], list) and isinstance(row[answer], list):  # TRL's prompt and completion, as turns
        return messages_of({"messages": [*row[question], *row[answer]]}, place)
    said = content_text(row[question], f"{place}, {question!r}")
    context = "".join(content_text(row[c], f"{place}, {c!r}") for c in more if c in _CONTEXTS and row[c])
    system = row.get("system") if "system" in more else None
    first = [{"role": "system", "content": content_text(system, f"{place}, 'system'")}] if system else []
    asked = f"{said}\n\n{context}" if context else said
    reply = content_text(row[answer], f"{place}, {answer!r}")
    return (*first, {"role": "user", "content": asked}, {"role": "assistant", "content": reply})


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise CorpusError(f"{place} is {turn!r:.60}; expected a role and its content")
    name, content = ("from", "value") if "from" in turn else ("role", "content")
    role = turn.get(name)
    role = _SHAREGPT.get(role, role) if isinstance(role, str) else role
    if role not in _ROLES:
        known = ", ".join((*_ROLES, *_SHAREGPT))
        raise CorpusError(f"{place} has the role {role!r}; expected one of {known} (tools' turns are not trained)")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise CorpusError(f"{place} calls a tool; expected text: chats with tool calls are not trained, remove it")
    return {"role": role, "content": content_text(turn.get(content), f"{place}, {content!r}")}


def content_text(content: Any, place: str) -> str:
    """The text of a turn: text, or parts that are all text, which a line end joins.

    Raises:
        CorpusError: it is something else.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple) and content and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("text", part.get("value")) for part in content if part.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "\n".join(texts)
    raise CorpusError(f"{place} is {content!r:.80}; expected text")


# --- turns into text ------------------------------------------------------------------------------------


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that has no chat template to choose.

    Raises:
        CorpusError: it has none, or several of which none is called default.
    """
    template = tokenizer.chat_template
    if not template:
        raise CorpusError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template, which chats need; put a "
            "chat_template.jinja beside it"
        )
    if isinstance(template, dict) and "default" not in template:
        raise CorpusError(
            f"the tokenizer of {tokenizer.name_or_path} has the chat templates {', '.join(template)}; expected one "
            "called default: name one so in tokenizer_config.json"
        )


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], *, prompt: bool) -> str:
    """The text of some turns by the chat template.

    Args:
        tokenizer: Whose template is used.
        messages: Turns, each a `role` and a `content` (text, or parts of text).
        prompt: Whether the text ends where the assistant begins to answer.

    Raises:
        CorpusError: there is no template, a turn has no text, or the template raises something.
    """
    check_template(tokenizer)
    turns = [{**m, "content": content_text(m["content"], f"the {m['role']}'s turn")} for m in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # a template is a program, and raises what it likes
        why = " ".join(str(error).split())[:200] or type(error).__name__
        roles = ", ".join(str(turn["role"]) for turn in turns) or "no turns"
        raise CorpusError(f"the chat template refuses turns of {roles}: {why}") from None


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], num_embeddings: int | None = None
) -> list[int]:
    """The tokens that a model is given to answer: what `prepare` puts before an answer, token for token.

    Args:
        tokenizer: Whose template is used.
        messages: The turns so far, the last one the user's.
        num_embeddings: How many tokens the model knows, where that is to be checked.

    Raises:
        CorpusError: as `render`, or a token is beyond the model's embeddings.
    """
    tokens = tokens_of(tokenizer, render(tokenizer, messages, prompt=True))
    if num_embeddings is not None:
        check_embeddings(max(tokens, default=0), num_embeddings, tokenizer)
    return tokens


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a rendered chat: the template has written its own begin token, if it wants one."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def check_embeddings(largest_token: int, num_embeddings: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a token that the model has no row for.

    Raises:
        CorpusError: the token is beyond the embeddings.
    """
    if largest_token >= num_embeddings:
        name = tokenizer.convert_ids_to_tokens(largest_token)
        raise CorpusError(
            f"the tokenizer of {tokenizer.name_or_path} gives token {largest_token} ({name!r}), and the model has "
            f"{num_embeddings:,} embeddings, 0 to {num_embeddings - 1}; expected a tokenizer made for it: enlarge the "
            "embeddings (resize_token_embeddings), or take the tokenizer it came with"
        )


def answer_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], place: str
) -> tuple[str, list[tuple[int, int]]]:
    """The chat's text, and the [start, end) characters of the assistant's turns in it, in order.

    A span begins after the generation prompt (what the model is given) and ends after whatever the template closes
    the turn with, so that the model learns to stop. A turn that the template writes otherwise once more turns follow
    (it leaves out earlier thoughts, say) has no span; the last answer always has one.

    Raises:
        CorpusError: as `render`, or no answer can be found in the text.
    """
    try:
        full = render(tokenizer, messages, prompt=False)
    except CorpusError as error:
        raise CorpusError(f"{place}: {error}") from None
    last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    spans = []
    refusal = "its answers are not in it"
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            before = render(tokenizer, messages[:number], prompt=True)
            after = full if number + 1 == len(messages) else render(tokenizer, messages[: number + 1], prompt=False)
        except CorpusError as error:  # e.g. a chat that begins with the assistant: nothing can stand before it
            refusal = str(error)
            continue
        if full.startswith(after) and after.startswith(before):
            spans.append((len(before), len(after)))
        elif number == last:
            begin = sum(
                1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(full, before, strict=False))
            )
            end = full.rfind(message["content"].strip()) + len(message["content"].strip())
            if end > begin:
                spans.append((begin, len(full) if number + 1 == len(messages) else end))
    if not any(full[begin:end].strip() for begin, end in spans):
        raise CorpusError(f"{place}: nothing can be trained in what the chat template makes of it: {refusal}")
    return full, spans
