"""The verb push: the model card, and the way to the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show
from blockexpand.errors import UsageError

if TYPE_CHECKING:
    from blockexpand.packs import Card
    from blockexpand.publishing import Pushed

Names = Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")]
Flag = Annotated[bool, Parameter(negative="")]


@Parameter(name="*", group=Group("Model card", sort_key=50))
@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What the maker states for the model card."""

    licence: str | None = None
    """As the hub spells it, e.g. apache-2.0."""
    licence_name: str | None = None
    """With --licence other: its name."""
    licence_link: str | None = None
    """With --licence other: where it can be read."""
    base_model: str | None = None
    """The base's name on the hub; known already where the base came from there."""
    description: str = ""
    """What the blocks were trained for."""
    language: Names = None
    """Language codes."""
    dataset: Names = None
    """What they were trained on."""
    tag: Names = None
    """Words to find it by."""

    def card(self) -> Card:
        """The same as records have it."""
        from blockexpand.packs import Card

        return Card(
            description=self.description,
            licence=self.licence,
            licence_name=self.licence_name,
            licence_link=self.licence_link,
            base_model=self.base_model,
            languages=tuple(self.language or ()),
            datasets=tuple(self.dataset or ()),
            tags=tuple(self.tag or ()),
        )


NOTHING_STATED = CardOptions()
Stated = Annotated[CardOptions, Parameter(name="*")]


def push(
    folder: Path,
    repo: str,
    *,
    stated: Stated = NOTHING_STATED,
    results: Path | None = None,
    against: Path | None = None,
    private: Flag = False,
    revision: str | None = None,
    message: str | None = None,
    create_pr: Flag = False,
    token_variable: str = "HF_TOKEN",
    dry_run: Flag = False,
    common: Shared = DEFAULTS,
) -> int:
    """Check a pack, a run or a checkpoint, write its model card, and send both to the hub in one commit.

    Parameters
    ----------
    folder
        A pack, a run folder, or a folder that expand, train or pack attach wrote.
    repo
        Where to: org/name or user/name; made if it is not there.
    results
        A folder of records of it that `blockexpand eval` wrote, for the card's table.
    against
        The base's records, to show gain and forgetting.
    private
        Make a new repository private.
    revision
        The branch; the main one if not given.
    message
        Of the commit.
    create_pr
        Open a pull request in place of writing to the branch.
    token_variable
        The environment variable that holds the hub's key, with write access.
    dry_run
        Check everything, and print the card and what would be sent; the network is not touched.
    """
    from blockexpand import publishing
    from blockexpand.cli.main import secret

    if against is not None and results is None:
        raise UsageError(f"--against {against} is about results; expected --results RECORDS, too; add it")
    destination = publishing.Destination(
        repo=repo, private=private, revision=revision, message=message, create_pr=create_pr
    )
    records = publishing.Records(model=results, base=against) if results is not None else None
    key = None if dry_run else lambda: secret(token_variable)
    done = publishing.push(folder, destination, key, stated.card(), records)
    show(common, done, _sent(done))
    return DONE


def _sent(done: Pushed) -> str:
    verb = "sent to" if done.url else "would be sent to"
    lines = [] if done.url else [done.card]
    lines.append(f"{sum(done.files.values()):,} bytes in {len(done.files)} files {verb} {done.url or done.repo}")
    lines += [f"  {size:>15,}  {name}" for name, size in done.files.items()]
    lines += [f"  removed there: {', '.join(done.removed)}"] if done.removed else []
    lines += [f"  stays here: {', '.join(done.stays)}"] if done.stays else []
    lines.append(f"  checked: {done.checked}")
    lines += [f"  {note}" for note in done.notes]
    return "\n".join(lines)
