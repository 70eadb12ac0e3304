"""Which README.md is the model card that was written for this folder, and which the base's own.

A card of ours ends with a line that people do not see: a comment with a `CardMark`. In: a folder, and the plan of its
blocks. Out: the mark, or that the README.md is somebody else's; and the folder's other files as the base had them. A
base may itself have been expanded and have a card of ours: the mark says for which blocks it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexpand.digests import digest_bytes, digest_json
from blockexpand.errors import RecordError
from blockexpand.records import from_plain, parse_json, read_text, to_plain
from blockexpand.records.plan import Plan

CARD = "README.md"
_OPEN, _CLOSE = "<!-- blockexpand.card ", " -->"


@dataclass(frozen=True, kw_only=True)
class CardMark:
    """What a card of ours says of itself, for us to read."""

    blocks: str
    """The digest of the new blocks' places and of the base, or a pack's fingerprint: what the card is for."""
    state: str
    """The digest of how the blocks were trained: another one, and the card is out of date."""
    text: str
    """The digest of the card's text: another one, and somebody wrote in it."""
    base_card: str
    """The name under which the base's README.md is kept beside it; empty where it had none."""
    said: dict[str, Any]
    """What people stated."""
    results: dict[str, Any] | None
    """The figures of the results table."""


def identity_of(plan: Plan) -> str:
    """The digest of a plan's new blocks and its base, without anything that differs between machines."""
    blocks = [[block.id, block.donor, block.after] for block in plan.new_blocks]
    return digest_json({"base": [plan.base.config_digest, plan.base.layout_digest], "blocks": blocks})


def signed(text: str, mark: CardMark) -> str:
    """The card's text with the mark behind it; `mark.text` is set here."""
    body = text.rstrip("\n") + "\n"
    plain = to_plain(mark) | {"text": digest_bytes(body.encode())}
    # A comment ends with the first `-->`, values come from people, and only they can have a `>`.
    shown = json.dumps(plain, sort_keys=True).replace(">", "\\u003e").replace("<", "\\u003c")
    return f"{body}\n{_OPEN}{shown}{_CLOSE}\n"


def read_mark(path: Path) -> CardMark | None:
    """The mark of a card of ours; None for any other file, and for none."""
    return _parted(path)[1]


def is_untouched(path: Path) -> bool:
    """Whether a card of ours is as we wrote it."""
    body, mark = _parted(path)
    return mark is not None and digest_bytes(body.encode()) == mark.text


def _parted(path: Path) -> tuple[str, CardMark | None]:
    try:
        text = read_text(path)
        body, found, rest = text.rpartition("\n" + _OPEN)
        shown, ended, _ = rest.partition(_CLOSE)
        if not found or not ended:
            return text, None
        return body, from_plain(CardMark, parse_json(shown, str(path)))
    except RecordError:
        return "", None


def without_card(folder: Path, plan: Plan, names: Iterable[str]) -> dict[str, str]:
    """A folder's other files as they were before it got its card: each name, and where the file is now."""
    listed = tuple(names)
    mark = read_mark(folder / CARD)
    if CARD not in listed or mark is None or mark.blocks != identity_of(plan):
        return {name: name for name in listed}
    kept = {name: name for name in listed if name not in (CARD, mark.base_card)}
    return dict(sorted((kept | ({CARD: mark.base_card} if mark.base_card in listed else {})).items()))
