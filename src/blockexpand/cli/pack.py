"""The verbs of packs: extract, attach, detach, scale, show. None of them imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show
from blockexpand.cli.push import NOTHING_STATED, Names, Stated
from blockexpand.errors import UsageError


def extract(
    source: Path,
    out: Path,
    *,
    name: str | None = None,
    pack: str | None = None,
    results: Path | None = None,
    stated: Stated = NOTHING_STATED,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """Take the new blocks out of a run or an expanded folder, as a pack.

    Parameters
    ----------
    source
        A run folder, or a folder that expand, train or pack attach wrote.
    out
        The folder to write.
    name
        What the pack is called (the output's name, if not given); packs on the same block stand in the order of names.
    pack
        Which pack, where several are attached in the folder.
    results
        The JSON of a measurement, e.g. the blockexpand.json of `blockexpand eval`, to carry along unchecked; for the
        card's table see `blockexpand push`.
    overwrite
        Replace the folder, if blockexpand made it.
    """
    from blockexpand import packs

    about = packs.About(name=name, evaluation=results, card=stated.card())
    made = packs.extract(source, out, about, pack=pack, overwrite=overwrite)
    show(common, made.record, packs.describe(made))
    return DONE


def attach(
    base: str,
    packs_and_out: Annotated[list[Path], Parameter(negative="")],
    *,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """Write the base with the blocks of one or more packs, as a plain checkpoint.

    Parameters
    ----------
    base
        The base: a folder, or a hub id like org/name.
    packs_and_out
        The packs' folders, in any order, and last the folder to write.
    overwrite
        Replace the folder, if blockexpand made it.
    """
    from blockexpand import packs

    *chosen, out = packs_and_out
    if not chosen:
        raise UsageError(f"only {out} given after the base; expected one or more packs and the folder to write, last")
    record = packs.attach_on_disk(base, chosen, out, overwrite=overwrite)
    blocks = ", ".join(f"{block.id} at {block.position}" for block in record.plan.new_blocks)
    names = ", ".join(pack.name for pack in record.packs)
    show(common, record, f"{out}: {record.plan.num_blocks} blocks, those of {names} among them: {blocks}")
    return DONE


def detach(source: Path, out: Path, *, pack: Names = None, common: Shared = DEFAULTS) -> int:
    """Give back the base, or with --pack the base and the other packs.

    Parameters
    ----------
    source
        A run folder, or a folder that expand, train or pack attach wrote.
    out
        The folder to write.
    pack
        The packs to take off; all, if not given.
    """
    from blockexpand import packs

    done = packs.detach_on_disk(source, out, pack or ())
    checked = "held against its recorded digest" if done.checked else "not checked: the folder has no digests"
    if done.packs_left:
        text = f"{out}: the base with {', '.join(done.packs_left)}; each of its {done.num_tensors} tensors {checked}"
    else:
        files = "its own files, byte for byte" if done.same_files else "the same tensors and config in new files"
        text = f"{out}: the base, {files}; each of its {done.num_tensors} tensors {checked}"
    show(common, done, text)
    return DONE


def scale(
    pack: Path,
    out: Path,
    *,
    by: float,
    name: str | None = None,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """Write a pack whose blocks write a multiple of what this one's write to the residual stream.

    Parameters
    ----------
    pack
        The pack's folder.
    out
        The folder to write.
    by
        The gain, 0.001 to 1000; 0.5 is the gentlest measured way to have two packs on at once.
    name
        What the new pack is called; as the pack is, if not given.
    overwrite
        Replace the folder, if blockexpand made it.
    """
    from blockexpand import packs

    source = packs.read_pack(pack)
    made = packs.scale_on_disk(source, out, by, name=name, overwrite=overwrite)
    text = packs.describe(made)
    if source.record.evaluation is not None and made.record.evaluation is None:
        text += "\n  what was measured of the pack was left out: it is not true of these blocks; measure them with eval"
    show(common, made.record, text)
    return DONE


def show_pack(pack: Path, *, common: Shared = DEFAULTS) -> int:
    """Say what a pack is. Reads its record and the header of its weights alone, so it is safe for a stranger's.

    Parameters
    ----------
    pack
        The pack's folder.
    """
    from blockexpand import packs

    opened = packs.read_pack(pack)
    show(common, opened.record, packs.describe(opened))
    return DONE
