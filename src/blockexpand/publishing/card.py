"""A model card written into a pack or a checkpoint: README.md, with metadata that the hub reads.

In: a folder, what people state, results. Out: README.md; where a base's own README.md came along with its files, that
is kept beside it as README.base.md, and `pack detach` gives it back as README.md. Refused: a README.md that somebody
wrote, or wrote into, unless it may be replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockexpand.errors import PublishError, RecordError
from blockexpand.expansion import CARD, CardMark, is_untouched, read_mark, signed
from blockexpand.families import known_families
from blockexpand.publishing.figures import Figure, Records, Results, read_results
from blockexpand.publishing.statements import HUB_ID, LANGUAGE, LICENCE, Said, gather
from blockexpand.publishing.subject import Published, read_published
from blockexpand.publishing.wording import card_text
from blockexpand.records import from_plain, to_plain
from blockexpand.staging import staged_file

_TAGS = ("block-expansion", "llama-pro", "blockexpand")


@dataclass(frozen=True, kw_only=True)
class Written:
    """A card that was written."""

    card: str
    """Its path."""
    kept: str
    """The name that the base's own card has beside it; empty where there is none."""
    licence: str | None
    """The licence that it states."""
    num_figures: int
    """Rows of its results table."""
    missing: tuple[str, ...]
    """What a reader would look for in vain."""


def write_card(
    folder: str | Path, said: Said | None = None, records: Records | None = None, *, overwrite: bool = False
) -> Written:
    """Write the model card of a pack, a run or a checkpoint, or write it again.

    Args:
        folder: a pack, a run folder, or a folder that `expand`, `train` or `pack attach` wrote.
        said: licence, base and the like; what an earlier card of ours was told counts on.
        records: the results for its table; those of an earlier card are kept while the blocks are the same.
        overwrite: replace a README.md that somebody wrote, or wrote into.

    Raises:
        PublishError: a README.md of somebody's, results of another model, a statement the hub could not have.
    """
    published = read_published(folder)
    path = published.folder / CARD
    mark = read_mark(path)
    own = mark is not None and mark.blocks == published.blocks
    if own and not is_untouched(path) and not overwrite:
        raise PublishError(
            f"somebody wrote in {path} since blockexpand did; expected its card unchanged; mend the text by hand, or "
            "add --overwrite to write it anew"
        )
    earlier = mark if own else None
    base_card = earlier.base_card if earlier else _base_card(published, overwrite)
    results = _results(published, records, earlier)
    kept = published.folder / base_card if base_card else None
    there = kept if kept and kept.is_file() else path if kept else None
    whole = gather(published, said or Said(), earlier.said if earlier else {}, there)
    if kept is not None and not kept.is_file():
        _write(kept, path.read_bytes())
    text = f"---\n{metadata(published, whole, results)}\n---\n\n{card_text(published, whole, results, base_card)}"
    fresh = CardMark(
        blocks=published.blocks,
        state=published.state,
        text="",
        base_card=base_card,
        said=to_plain(whole),
        results=to_plain(results),
    )
    _write(path, signed(text, fresh).encode())
    return Written(
        card=str(path),
        kept=base_card,
        licence=whole.card.licence,
        num_figures=len(results.figures) if results else 0,
        missing=_missing(whole, results),
    )


def said_in(folder: str | Path) -> Said:
    """What was stated for the card of ours in a folder, but where that one is to be; nothing where there is none."""
    mark = read_mark(Path(folder) / CARD)
    try:
        return dataclasses.replace(from_plain(Said, mark.said), repo=None) if mark else Said()
    except RecordError:
        return Said()


def _write(path: Path, data: bytes) -> None:
    with staged_file(path) as stream:
        stream.write(data)


def _base_card(published: Published, overwrite: bool) -> str:
    """The name under which the base's README.md is kept, or is to be; empty where the base had none.

    Raises:
        PublishError: the README.md is neither the base's nor ours.
    """
    path = published.folder / CARD
    copied = published.record.files_copied if published.record else ()
    number = 1
    while (name := f"README.base{f'-{number}' if number > 1 else ''}.md") in copied:
        number += 1
    is_kept = published.record is not None and (published.folder / name).is_file()
    if not path.is_file():
        return name if is_kept else ""
    of_base = CARD in copied and (not is_kept or (published.folder / name).read_bytes() == path.read_bytes())
    if not of_base and not overwrite:
        raise PublishError(
            f"{path} is somebody's, neither a card of ours nor the base's; expected one of these, or none; move it "
            "away, or add --overwrite"
        )
    return name if of_base or is_kept else ""


def _results(published: Published, records: Records | None, earlier: CardMark | None) -> Results | None:
    if records is not None:
        return read_results(published, records)
    if earlier is None or earlier.results is None or earlier.state != published.state:
        return None
    try:
        return from_plain(Results, earlier.results)
    except RecordError:
        return None


def metadata(published: Published, said: Said, results: Results | None) -> str:
    """The YAML that the hub reads, without its lines of dashes."""
    from huggingface_hub import ModelCardData

    card = said.card
    family = known_families().get(published.plan.base.family)
    licence = card.licence if card.licence and LICENCE.fullmatch(card.licence) else None
    base_model = card.base_model if card.base_model and HUB_ID.fullmatch(card.base_model) else None
    # The hub's words for what became of a base (hub docs, "Specifying a base model"): adapter, finetune, merge,
    # quantized. Blocks that are as they were inserted are none of these.
    relation = "adapter" if published.kind == "pack" else "finetune"
    trained = published.training is not None
    figures = results.figures if results else ()
    data = ModelCardData(
        license=licence,
        license_name=said.licence_name if licence else None,
        license_link=said.licence_link if licence else None,
        base_model=base_model,
        base_model_relation=relation if base_model and (trained or published.kind == "pack") else None,
        language=[one for one in card.languages if LANGUAGE.fullmatch(one)] or None,
        datasets=[one for one in card.datasets if HUB_ID.fullmatch(one)] or None,
        library_name="blockexpand" if published.kind == "pack" else "transformers",
        pipeline_tag="text-generation" if family is None or family.loader == "text" else "image-text-to-text",
        tags=list(dict.fromkeys((*_TAGS, *card.tags))),
        model_name=published.name if figures else None,
        eval_results=_eval_results(figures) or None,
    )
    return data.to_yaml()


def _eval_results(figures: Sequence[Figure]) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=one.name,
            dataset_name=f"{one.name} ({one.suite})"
            if one.suite
            else f"{one.name} (held out, {one.samples:,} documents)",
            metric_type="loss" if one.held_out else one.metric,
            metric_name=one.metric,
            metric_value=round(one.ours, 6),
        )
        for one in figures
    ]


def _missing(said: Said, results: Results | None) -> tuple[str, ...]:
    lacking = [
        (said.states_licence, "a licence (--licence)"),
        (said.card.base_model, "the base's name on the hub (--base-model)"),
        (results is not None, "results (--results)"),
    ]
    return tuple(what for there, what in lacking if not there)
