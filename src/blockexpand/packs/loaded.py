"""Models with packs for others to use: loaded at once, or put on what is there. torch is imported when it is needed.

In: a base (folder, hub id) or a model, and packs. Out: a model in memory, or a folder. The two ways of each verb, on
disk and in memory, meet here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexpand.checkpoint import Checkpoint, digest_tensors, open_checkpoint
from blockexpand.errors import PackError
from blockexpand.packs.attachment import attach_on_disk, combined_for
from blockexpand.packs.compatibility import check_digests, in_order
from blockexpand.packs.detachment import detach_on_disk
from blockexpand.packs.pack import Pack

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def attach(base: Any, packs: Pack | str | Path | Sequence[Pack | str | Path], out: str | Path | None = None) -> Any:
    """Put packs on a model in memory, in place, and return it; or, with `out`, on a checkpoint, and return its record.

    Raises:
        PackError: a pack does not belong to this base.
    """
    chosen = [packs] if isinstance(packs, Pack | str | Path) else list(packs)
    if isinstance(base, str | Path | Checkpoint):
        if out is None:
            raise PackError(
                f"no output for {base if not isinstance(base, Checkpoint) else base.source}; expected the folder to "
                "write; give `out`, or load the model and attach to that"
            )
        return attach_on_disk(base, chosen, out)
    from blockexpand.packs.in_memory import attach_to_model

    return attach_to_model(base, chosen)


def detach(model: Any, out: str | Path | None = None, names: Sequence[str] = ()) -> Any:
    """Take packs off a model in memory and return it; or, with `out`, off a folder, and return what came back.

    Raises:
        PackError: there is no such pack.
    """
    if isinstance(model, str | Path):
        if out is None:
            raise PackError(f"no output for the base inside {model}; expected the folder to write; give `out`")
        return detach_on_disk(model, out, names)
    from blockexpand.packs.in_memory import detach_from_model

    return detach_from_model(model, names)


def load_with_packs(
    base: str | Path | Checkpoint,
    packs: Sequence[Pack | str | Path],
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> PreTrainedModel:
    """The base with these packs in memory, in eval mode; every tensor of both is checked by its digest as it is read.

    Without a `dtype` weights are of the checkpoint's own type. With no packs it is the base.

    Raises:
        PackError: a pack does not belong to this base.
        CheckpointError, LiveError: the base cannot be read or loaded.
    """

    from blockexpand.families import family_for
    from blockexpand.families.modules import load_model
    from blockexpand.packs.in_memory import attach_to_model

    checkpoint = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    ordered = in_order(packs) if packs else ()
    if ordered:
        combined_for(ordered, checkpoint)
        digests = {name: found.digest for name, found in digest_tensors(checkpoint).items()}
        for pack in ordered:
            check_digests(pack, digests, checkpoint.source)
    loader = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors).loader
    model: Any = load_model(checkpoint.folder, dtype=dtype, device=device, loader=loader)
    # The files' numbers are the base's; those in memory may be rounded, and are not looked at again.
    if ordered:
        attach_to_model(model, ordered, verify="files")
    return model


def load_attached(folder: str | Path, dtype: torch.dtype | None = None, device: str = "cpu") -> PreTrainedModel:
    """The model of a folder that `attach` wrote, each of its packs to be switched by name.

    Raises:
        PackError: no packs are recorded there.
    """

    from blockexpand import live
    from blockexpand.packs.in_memory import adopt_attached
    from blockexpand.records.expansion import read_expansion

    record = read_expansion(folder)
    if not record.packs:
        raise PackError(
            f"{folder} was expanded, and holds no packs to switch; expected a folder that `pack attach` wrote; use "
            "blockexpand.load"
        )
    model: Any = live.load(folder, dtype, device)[0]
    adopt_attached(model, record.packs)
    return model
