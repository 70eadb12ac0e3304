"""How far structural discovery carries: on the families that have files, and on every causal model type that has none.

    python benchmarks/discovery.py [ANSWERS.json [kept]]

With a file for the answers, a run that was cut off goes on; with `kept`, the page is written of what is there.

With files, as if there were none: each language model of the zoo (tests/families/zoo.py) is looked at by structure
alone, and the tensors found to write to the residual stream are compared with the file's, for the tensors that its
checkpoint holds. Without files: each further type for which the installed transformers has a causal language model is
made small from its config's defaults, written in bfloat16, planned, expanded and proved. The page is docs/discovery.md.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "families")]

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402
from zoo import ZOO, Case, write  # noqa: E402

from blockexpand.checkpoint import open_checkpoint  # noqa: E402
from blockexpand.errors import BlockexpandError, FamilyError, PlanError  # noqa: E402
from blockexpand.expansion import expand, plan  # noqa: E402
from blockexpand.families import Family, family_for, known_families, refused_model_types  # noqa: E402
from blockexpand.families.discovery import discover, effective, find_stack, small_model  # noqa: E402
from blockexpand.families.discovery.trial_model import attempted  # noqa: E402
from blockexpand.families.modules import no_progress_bars  # noqa: E402
from blockexpand.families.registry import common, refuse_more_than_text  # noqa: E402
from blockexpand.records.plan import Plan  # noqa: E402

REQUESTS = (
    (2, "interleaved"),
    (1, "suffix"),
    (1, "prefix"),
)
"""Placements that are tried in turn: where kinds of block follow from numbers, not every one can be stated."""
NOT_RUN = ("not run", "")
"""The answer that is not there."""
HEAD = """\
# Discovery

Written by `python benchmarks/discovery.py`; do not edit. What it does: [proof.md](proof.md), "Families without a file".
transformers {transformers}, torch {torch}, {machine}, one thread.

## On families that have a file, as if they had none

{same} of {models} tiny models: the writers are the file's. {other} another identity, {refused} refused.

| family | settings | found |
| --- | --- | --- |
"""
REST = """
## On causal model types that have no file

{types} types, tiny models from the config's defaults: {proved} proved, {refused} refused, {left} not run.

| model_type | found | residual writers, or why it is refused |
| --- | --- | --- |
"""


def main() -> None:
    """Look at all, write the page."""
    torch.set_num_threads(1)
    rows = [row for row in ZOO if row.text is None]
    kept = Kept(Path(sys.argv[1]) if len(sys.argv) > 1 else None, only=sys.argv[2:] == ["kept"])
    listed = [(row, kept.get(f"{i} {row.id}", lambda row=row: against_its_file(row))) for i, row in enumerate(rows)]
    unlisted = [(name, kept.get(name, lambda name=name: without_a_file(name))) for name in types_without_a_file()]
    counts = {word: sum(found.startswith(word) for _, found in listed) for word in ("same", "another", "refused")}
    head = HEAD.format(
        transformers=transformers.__version__,
        torch=torch.__version__,
        machine=platform.machine(),
        models=len(listed),
        same=counts["same"],
        other=counts["another"],
        refused=counts["refused"],
    )
    proved, refused = (sum(verdict == word for _, (verdict, _) in unlisted) for word in ("proved", "refused"))
    rest = REST.format(proved=proved, types=len(unlisted), refused=refused, left=len(unlisted) - proved - refused)
    lines = [f"| {row.family} | {settings(row)} | {found} |\n" for row, found in listed]
    more = [f"| {name} | {verdict} | {words} |\n" for name, (verdict, words) in unlisted]
    (ROOT / "docs" / "discovery.md").write_text("".join([head, *lines, rest, *more]), encoding="utf-8")
    print(f"with files: {counts}; without: {proved} of {len(unlisted)} proved")


class Kept:
    """Answers that a file keeps, so that a run that was cut off goes on where it was."""

    def __init__(self, path: Path | None, *, only: bool) -> None:
        """Keep answers in this file, if there is to be one; with `only`, ask for no new ones."""
        self._only = only
        self._path = path
        self._answers: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}

    def get(self, key: str, find: Callable[[], Any]) -> Any:
        """The answer that is kept, or the one that is found now."""
        if key not in self._answers and self._only:
            return NOT_RUN
        if key not in self._answers:
            print(key, flush=True)
            self._answers[key] = find()
            if self._path:
                self._path.write_text(json.dumps(self._answers, indent=1))
        return self._answers[key]


def settings(row: Case) -> str:
    """What sets a row apart, in short."""
    small = {k: v for k, v in row.settings.items() if isinstance(v, bool | str | int) and "size" not in k}
    return ", ".join(f"{k} {v}" for k, v in small.items()) or "plain"


def against_its_file(row: Case) -> str:
    """Whether the writers found are those of the file."""
    with tempfile.TemporaryDirectory() as folder, no_progress_bars():
        checkpoint = open_checkpoint(write(row, Path(folder) / "base", torch.float32))
        own = family_for(checkpoint.config, "zoo", checkpoint.tensors)
        try:
            found = discover(checkpoint.config, common().not_per_layer)
        except FamilyError as error:
            return f"refused: {error}".replace("|", "/")
    places = [own.locate(name) for name in checkpoint.tensors]
    tails = sorted({place.tail for place in places if place.block is not None})
    expected, seen = (writers(family, tails) for family in (own, found))
    if expected == seen:
        return "same"
    return f"another: {', '.join(sorted(seen - expected))} instead of {', '.join(sorted(expected - seen))}"


def writers(family: Family, tails: Iterable[str]) -> set[str]:
    """What starts silent, and how."""
    starts = {tail: family.starts(tail) for tail in tails}
    return {f"`{tail}`{' -1' if start == 'minus-one' else ''}" for tail, start in starts.items() if start != "donor"}


def types_without_a_file() -> list[str]:
    """The causal model types of transformers that no file serves or refuses."""
    served = {model_type for family in known_families().values() for model_type in family.model_types}
    return [t for t in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if t not in served and t not in refused_model_types()]


def without_a_file(model_type: str) -> tuple[str, str]:
    """The verdict on a type, and its writers or the reason."""
    with tempfile.TemporaryDirectory() as folder, no_progress_bars():
        base = Path(folder) / "base"
        try:
            whole = effective({"model_type": model_type})
            refuse_more_than_text(whole, model_type)
            _, model = small_model(whole, find_stack(whole, common().not_per_layer))
            model.to(torch.bfloat16).save_pretrained(base)
            made = planned(base)
            with attempted("the proof could not be run"):
                expand(base, Path(folder) / "out", made)
        except BlockexpandError as error:
            reason = str(error).replace(folder, "").replace("|", "/")
            return "refused", reason.partition("cannot be used: ")[2].partition("; expected one of")[0] or reason
    return "proved", ", ".join(f"`{name}`" for name in made.silent_words)


def planned(base: Path) -> Plan:
    """The first of the placements that can be stated."""
    for blocks, placement in REQUESTS[:-1]:
        try:
            return plan(base, blocks, placement=placement)
        except PlanError:
            continue
    return plan(base, REQUESTS[-1][0], placement=REQUESTS[-1][1])


if __name__ == "__main__":
    main()
