"""The tokens that end an answer: those that a model's settings name, the tokenizer's own, and the end of a chat's turn.

In: a folder, or a loaded tokenizer and what the model's settings name. Out: token ids. Every program that draws text
from a model stops at these, and at no others. Neither torch nor transformers is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockexpand.errors import CheckpointError, RecordError
from blockexpand.records import read_json, write_json

GENERATION = "generation_config.json"
_ANSWER = "blockexpandanswer"
"""Letters alone, so that no template or tokenizer takes any of it for markup."""


def end_tokens(tokenizer: Any, stated: Any) -> list[int]:
    """The tokens that end an answer, each once.

    Args:
        tokenizer: of transformers.
        stated: `eos_token_id` as the model's generation settings have it: one, several, or None.
    """
    listed = stated if isinstance(stated, list | tuple) else [stated]
    found = [tokenizer.eos_token_id, *listed, end_of_turn(tokenizer)]
    return [token for token in dict.fromkeys(found) if isinstance(token, int)]


def stated_ends(folder: Path) -> list[int]:
    """The tokens that a folder's settings name: those of generation_config.json, or else of config.json.

    Raises:
        CheckpointError: a file cannot be read.
    """
    for name in (GENERATION, "config.json"):
        if (folder / name).is_file():
            entries = _read(folder / name)
            text = entries.get("text_config")
            stated = entries.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
            if stated is not None:
                return [token for token in (stated if isinstance(stated, list) else [stated]) if isinstance(token, int)]
    return []


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that the chat template puts behind an assistant's answer; None where it puts none, or there is none."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template is a program of the model's maker, and may raise anything
        return None
    _, found, behind = text.rpartition(_ANSWER)
    if not found:
        return None
    behind = behind.lstrip()
    known = {str(token): number for token, number in tokenizer.get_added_vocab().items()}
    known |= dict(zip(map(str, tokenizer.all_special_tokens), tokenizer.all_special_ids, strict=True))
    begins = [token for token in known if token and behind.startswith(token)]
    return known[max(begins, key=len)] if begins else None


def declare_end(folder: Path, token: int) -> str | None:
    """Add a token to those that a folder's generation_config.json names; the file's text before, where it had one.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path, stated = folder / GENERATION, stated_ends(folder)
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    if token not in stated:
        entries = _read(path) if before is not None else {}
        write_json(path, {**entries, "eos_token_id": [*stated, token] if stated else token})
    return before


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, constants=True)
    except RecordError as error:
        raise CheckpointError(f"{error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; expected a JSON object; mend the file")
    return found
