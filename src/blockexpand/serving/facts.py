"""What is known of a model that somebody talks to: its blocks, its packs, what it gained and lost.

In: its folder and packs. Out: `Facts`, read from records that training and packing left there; nothing is measured.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from blockexpand.errors import RecordError
from blockexpand.records.expansion import RECORD_NAME
from blockexpand.records.plan import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """For people who want to know whom they talk to."""

    name: str
    """The folder's name; the run's for the model of a run."""

    is_expanded: bool
    """Whether there is a base inside to switch to."""

    blocks: tuple[str, ...]
    """From the first block to the last: the name of a new one, empty for an old one."""

    measured: tuple[str, ...]
    """Gain and forgetting, a sentence for each record that has them."""


def gather_facts(folder: str | Path, blocks: tuple[str, ...], packs: list[tuple[str, Any]]) -> Facts:
    """What the record of the run beside the folder and those of the packs (name, evaluation) say."""
    folder, whole = Path(folder), Path(folder).resolve()
    sentences = [_sentence("this run", _run_beside(folder))]
    sentences += [_sentence(f"pack {name}", (evaluation or {}).get("run")) for name, evaluation in packs]
    return Facts(
        name=whole.parent.name if whole.name == "model" else whole.name,
        is_expanded=any(blocks),
        blocks=blocks,
        measured=tuple(sentence for sentence in sentences if sentence),
    )


def stack(plan: Plan) -> tuple[str, ...]:
    """The blocks bottom to top, new ones by name."""
    new = {block.position: block.id for block in plan.new_blocks}
    return tuple(new.get(index, "") for index in range(plan.base.num_blocks + len(new)))


def _run_beside(folder: Path) -> dict[str, Any] | None:
    """The record of the run whose shipped model this is."""
    path = folder.parent / RECORD_NAME
    if folder.name != "model" or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}; remove it or mend it") from None
    return record if isinstance(record, dict) else None


def _sentence(who: str, record: dict[str, Any] | None) -> str:
    best, base = ((record or {}).get(key) for key in ("best", "base"))
    if not (isinstance(best, dict) and isinstance(base, dict)):
        return ""
    try:
        gain, forgetting = float(base["domain"]) - float(best["domain"]), float(best["rise"])
    except (KeyError, TypeError, ValueError):
        return ""
    return f"{who}: gain {gain:+.3f} nats a token on the domain, forgetting {forgetting:+.2%} of general loss"
