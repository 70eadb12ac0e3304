"""The base inside an expanded folder, as a checkpoint of its own: names and config are the base's, bytes stay where
they are.

In: an expanded folder, or a run's. Out: a `Checkpoint` that every reader takes for the base. Refused: what is no
expanded folder, by what it is; tensors that the plan does not have. Whether the old blocks' bytes are still the base's
is for the reader to check: they are hashed as they are read.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from blockexpand.checkpoint import CONFIG, Checkpoint, open_checkpoint
from blockexpand.digests import digest_json
from blockexpand.errors import PackError, RecordError
from blockexpand.families import Family, entry, family_for, with_entries
from blockexpand.records import parse_json, read_json
from blockexpand.records.expansion import ExpansionRecord, FileText, read_expansion
from blockexpand.records.plan import Plan
from blockexpand.staging import PACK_NAME, RECORD_NAME

_RUN = "blockexpand.run"
_MOST_CHANGES = 8
"""Entries that a plan changes: the ways to undo them are tried one by one, and eight have 256."""


def open_expanded(source: str | Path) -> tuple[Checkpoint, ExpansionRecord]:
    """The checkpoint with new blocks in a folder, or in a run's `model`, and its record.

    Raises:
        PackError: it is something else; it says what.
        CheckpointError, RecordError: it cannot be read.
    """
    folder = Path(source)
    if (folder / PACK_NAME).is_file():
        raise PackError(
            f"{source} is a pack, the new blocks alone; expected a model that holds them; put it on its base with "
            f"`blockexpand pack attach BASE {source} OUT` first"
        )
    if run_of(source) is not None:
        folder = folder / "model"
        if not (folder / RECORD_NAME).is_file():
            raise PackError(
                f"{source} is a run that trained no new blocks; expected one of the arm blocks, or an expanded folder"
            )
    if not (folder / RECORD_NAME).is_file():
        what = "is a model without new blocks, a base" if (folder / CONFIG).is_file() else "is no model"
        raise PackError(
            f"{source} {what} (it has no {RECORD_NAME}); expected a folder that expand, train or pack attach wrote; "
            "check the order of the arguments"
        )
    return open_checkpoint(folder), read_expansion(folder)


def run_of(source: str | Path) -> dict[str, Any] | None:
    """The run's record, where the folder is a run's."""
    path = Path(source) / RECORD_NAME
    found = read_json(path) if path.is_file() else None
    return found if isinstance(found, dict) and found.get("format") == _RUN else None


def base_within(expanded: Checkpoint, record: ExpansionRecord) -> Checkpoint:
    """The base inside an expanded folder.

    Raises:
        PackError: the weights are not those of the folder's plan, or its config is not the base's with the plan's
            changes.
    """
    names = old_names(expanded, record.plan)
    return dataclasses.replace(
        expanded,
        config=_base_config(expanded, record),
        tensors={old: expanded.tensors[new] for new, old in names.items()},
    )


def old_names(expanded: Checkpoint, plan: Plan) -> dict[str, str]:
    """What each tensor that is not a new block's was called in the base, by its name in the expanded folder.

    Raises:
        PackError: a block of the plan is missing, or there are more.
    """
    family = _family(expanded)
    olds, extra = plan.new_to_old, plan.num_blocks - plan.base.num_blocks
    names, held = {}, set()
    for name in expanded.tensors:
        place = family.locate(name)
        if place.block is None:
            names[name] = name
            continue
        held.add(place.block)
        old = olds[place.block] if place.block < plan.num_blocks else place.block - extra
        if old is not None:
            names[name] = family.name_of(old, place.tail)
    if not held >= set(range(plan.num_blocks)):
        absent = min(set(range(plan.num_blocks)) - held)
        raise PackError(
            f"{expanded.source}: the weights lack block {absent} of the {plan.num_blocks} that its record names; "
            "expected the folder as blockexpand wrote it; expand or attach again"
        )
    return names


def new_names(expanded: Checkpoint, plan: Plan) -> dict[str, str]:
    """What each tensor of the plan's new blocks is called in the expanded folder, by its block's id and tail.

    Raises:
        PackError: one of them is missing.
    """
    family = _family(expanded)
    names = {}
    for block in plan.new_blocks:
        for tensor in plan.tensors_of(block.donor):
            name = family.name_of(block.position, tensor.tail)
            entry = expanded.tensors.get(name)
            if entry is None or (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
                found = f"{entry.dtype} {list(entry.shape)}" if entry else "no such tensor"
                raise PackError(
                    f"{expanded.source}: {name!r} of the new block {block.id} is {found}; expected {tensor.dtype} "
                    f"{list(tensor.shape)}, as the record says; use the folder as blockexpand wrote it"
                )
            names[f"{block.id}.{tensor.tail}"] = name
    return names


def _family(expanded: Checkpoint) -> Family:
    return family_for(expanded.config, expanded.source, expanded.tensors)


def _base_config(expanded: Checkpoint, record: ExpansionRecord) -> dict[str, Any]:
    """The base's config: the recorded text of it, or this one's with the changed entries as they were, or missing."""
    wanted = record.plan.base.config_digest
    candidates = [*_recorded(record.base_files), *_undone(expanded.config, record.plan)]
    for config in candidates:
        if digest_json(config) == wanted:
            return config
    raise PackError(
        f"{expanded.source}: its config.json is not the base's with the plan's changes (digest {wanted}); expected it "
        "as blockexpand wrote it; undo what was changed in config.json since"
    )


def _has_parents(config: dict[str, Any], path: str) -> bool:
    parent = path.rpartition(".")[0]
    return not parent or isinstance(entry(config, parent), dict)


def _recorded(files: tuple[FileText, ...]) -> list[dict[str, Any]]:
    try:
        return [parse_json(file.text, file.name, constants=True) for file in files if file.name == CONFIG]
    except RecordError:
        return []


def _undone(config: dict[str, Any], plan: Plan) -> list[dict[str, Any]]:
    """The ways in which the base can have said it: each changed entry as it was in force, or missing."""
    found = []
    if len(plan.config_before) > _MOST_CHANGES or not all(_has_parents(config, path) for path in plan.config_before):
        return []
    for count in range(len(plan.config_before) + 1):
        for left_out in itertools.combinations(plan.config_before, count):
            one = with_entries(config, plan.config_before)
            for path in left_out:
                *parents, leaf = path.split(".")
                part = one
                for name in parents:
                    part = part[name]
                part.pop(leaf, None)
            found.append(one)
    return found
