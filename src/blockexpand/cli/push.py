"""The verbs that give work to others: card, push."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show
from blockexpand.errors import UsageError

if TYPE_CHECKING:
    from blockexpand.packs import Card
    from blockexpand.publishing import Pushed, Records, Written

Names = Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")]
Flag = Annotated[bool, Parameter(negative="")]


def card(
    folder: Path,
    *,
    licence: str | None = None,
    licence_name: str | None = None,
    licence_link: str | None = None,
    base_model: str | None = None,
    description: str = "",
    language: Names = None,
    dataset: Names = None,
    tag: Names = None,
    repo: str | None = None,
    results: Path | None = None,
    against: Path | None = None,
    model: Path | None = None,
    overwrite: Flag = False,
    common: Shared = DEFAULTS,
) -> int:
    """Write the model card of a pack, a run or a checkpoint: README.md, with what the hub reads.

    Parameters
    ----------
    folder
        A pack, a run folder, or a folder that expand, train or pack attach wrote.
    licence
        As the hub spells it, e.g. apache-2.0. Of a checkpoint, if not given, what the base's own card says.
    licence_name
        With --licence other: its name.
    licence_link
        With --licence other: where it can be read.
    base_model
        The base's name on the hub; known already where the base came from there.
    description
        What the blocks were trained for.
    language
        Language codes.
    dataset
        What they were trained on.
    tag
        Words to find it by.
    repo
        Where it is to be on the hub, org/name, for the lines that load it.
    results
        A folder of records of it that `blockexpand eval` wrote, for the table.
    against
        The base's records, to show gain and forgetting.
    model
        Of a pack: the folder that was measured, if it was not the base with --pack.
    overwrite
        Replace a README.md that somebody wrote, or wrote into.
    """
    from blockexpand import publishing

    stated = card_of(description, licence, base_model, language, dataset, tag)
    said = publishing.Said(card=stated, licence_name=licence_name, licence_link=licence_link, repo=repo)
    written = publishing.write_card(folder, said, _records(results, against, model), overwrite=overwrite)
    show(common, written, told(written))
    return DONE


def card_of(
    description: str,
    licence: str | None,
    base_model: str | None,
    language: list[str] | None,
    dataset: list[str] | None,
    tag: list[str] | None,
) -> Card:
    """What the options of `card` and `pack extract` state."""
    from blockexpand import packs

    return packs.Card(
        description=description,
        licence=licence,
        base_model=base_model,
        languages=tuple(language or ()),
        datasets=tuple(dataset or ()),
        tags=tuple(tag or ()),
    )


def _records(results: Path | None, against: Path | None, model: Path | None) -> Records | None:
    from blockexpand.publishing import Records

    if results is None:
        given = {"--against": against, "--model": model}
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} {value} is about results; expected --results RECORDS, too; add it")
        return None
    return Records(model=results, base=against, measured=model)


def told(written: Written) -> str:
    """A card in a few lines."""
    lines = [f"{written.card}: licence {written.licence or 'not stated'}, {written.num_figures} figures"]
    lines += [f"  the base's own card is {written.kept} beside it"] if written.kept else []
    lines += [f"  it lacks {', '.join(written.missing)}"] if written.missing else []
    return "\n".join(lines)


def push(
    folder: Path,
    repo: str,
    *,
    private: Flag = False,
    revision: str | None = None,
    message: str | None = None,
    create_pr: Flag = False,
    base: Path | None = None,
    token_variable: str = "HF_TOKEN",
    dry_run: Flag = False,
    common: Shared = DEFAULTS,
) -> int:
    """Check a pack, a run or a checkpoint, and send it to the hub in one commit.

    Parameters
    ----------
    folder
        A pack, a run folder, or a folder that expand, train or pack attach wrote; with its card.
    repo
        Where to: org/name or user/name; made if it is not there.
    private
        Make a new repository private.
    revision
        The branch; the main one if not given.
    message
        Of the commit.
    create_pr
        Open a pull request in place of writing to the branch.
    base
        Of a pack stored as delta: the folder of its base, without which only what does not start
        from the base's numbers is held against its digest.
    token_variable
        The environment variable that holds the hub's key, with write access.
    dry_run
        Check everything, and print what would be sent; the network is not touched.
    """
    from blockexpand import publishing
    from blockexpand.cli.main import secret

    destination = publishing.Destination(
        repo=repo, private=private, revision=revision, message=message, create_pr=create_pr
    )
    done = publishing.push(folder, destination, None if dry_run else lambda: secret(token_variable), base)
    show(common, done, _sent(done))
    return DONE


def _sent(done: Pushed) -> str:
    verb = "sent to" if done.url else "would be sent to"
    total = sum(done.files.values())
    lines = [f"{total:,} bytes in {len(done.files)} files {verb} {done.url or done.repo}"]
    lines += [f"  {size:>15,}  {name}" for name, size in done.files.items()]
    lines += [f"  removed there: {', '.join(done.removed)}"] if done.removed else []
    lines += [f"  stays here: {', '.join(done.stays)}"] if done.stays else []
    lines.append(f"  checked: {done.checked}")
    lines += [f"  {note}" for note in done.notes]
    return "\n".join(lines)
