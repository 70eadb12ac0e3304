"""What people state for a card: licence, base, languages, and what they come from when nobody states them.

In: options, the mark of an earlier card, a record, and the base's own card. Out: one `Said`. What is stated now counts
before what was stated earlier, that before the record, and that before what the base's own card says of its licence
and languages, which a checkpoint that holds the base has to keep. Refused: values the hub could not have.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockexpand.errors import PublishError, RecordError
from blockexpand.packs import Card
from blockexpand.publishing.subject import Published, hub_base
from blockexpand.records import MAX_TEXT_BYTES, from_plain

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
LANGUAGE = re.compile(r"[a-zA-Z][a-zA-Z-]{1,19}")
OTHER = "other"
"""The hub's word for a licence that it does not list."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What was stated for the card."""

    card: Card = field(default_factory=Card)
    """Description, licence, base, languages, data sets, tags."""
    licence_name: str | None = None
    """The name of a licence that the hub does not list; then `licence` is `other`."""
    licence_link: str | None = None
    """Where that licence can be read: an address, or a file of the folder."""
    repo: str | None = None
    """Where it is to be on the hub, `org/name`; for the lines that load it."""

    @property
    def states_licence(self) -> bool:
        """Whether somebody who finds it knows what they may do with it."""
        named = self.licence_name is not None and self.licence_link is not None
        return self.card.licence is not None and (self.card.licence != OTHER or named)


def gather(published: Published, now: Said, earlier: dict[str, Any], base_card: Path | None) -> Said:
    """What counts, of all that was stated.

    Raises:
        PublishError: a value that the hub could not have.
    """
    try:
        before = from_plain(Said, earlier)
    except RecordError:
        before = Said()
    recorded = Said(
        card=dataclasses.replace(published.card, base_model=published.card.base_model or hub_base(published)[0])
    )
    check_said(now)
    found = now
    for other in (before, recorded, *((_of_base(base_card),) if base_card else ())):
        found = _filled(found, other)
    return found


def _filled(first: Said, second: Said) -> Said:
    """The first, with what it does not say taken from the second; a licence comes with its name and link."""
    both = (vars(first.card), vars(second.card))
    card = {name: both[0][name] or both[1][name] for name in both[0]}
    licence = first if first.card.licence else second
    return Said(
        card=Card(**card),
        licence_name=licence.licence_name,
        licence_link=licence.licence_link,
        repo=first.repo or second.repo,
    )


def metadata_of(card: Path) -> dict[str, Any]:
    """The YAML at the head of a card, anybody's; empty where there is none."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        if card.stat().st_size > MAX_TEXT_BYTES // 100:
            return {}
        return ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return {}


def _of_base(card: Path) -> Said:
    data = metadata_of(card)

    def text(key: str) -> str | None:
        value = data.get(key)
        return value if isinstance(value, str) and 0 < len(value) <= 500 else None

    licence, languages = text("license"), data.get("language")
    listed = languages if isinstance(languages, list) else [languages]
    return Said(
        card=Card(
            licence=licence if licence and LICENCE.fullmatch(licence) else None,
            languages=tuple(one for one in listed[:200] if isinstance(one, str) and LANGUAGE.fullmatch(one)),
        ),
        licence_name=text("license_name"),
        licence_link=text("license_link"),
    )


def check_said(said: Said) -> None:
    """Refuse what the hub could not have.

    Raises:
        PublishError: with the value.
    """
    card = said.card
    pairs = [
        ("licence", card.licence, LICENCE, "one as the hub spells it, e.g. apache-2.0, or other"),
        ("base model", card.base_model, HUB_ID, "its name on the hub, org/name"),
        ("repository", said.repo, HUB_ID, "its name on the hub, org/name"),
        *(("language", one, LANGUAGE, "a code, e.g. en") for one in card.languages),
    ]
    for what, value, pattern, expected in pairs:
        if value is not None and not pattern.fullmatch(value):
            raise PublishError(f"the card's {what} is {value!r}; expected {expected}; give it so, or leave it out")
    if card.licence == OTHER and not said.states_licence:
        raise PublishError(
            "the card's licence is 'other' without saying which; expected its name and where it can be read; add "
            "--licence-name and --licence-link"
        )
