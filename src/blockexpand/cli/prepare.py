"""The verb that makes data: prepare."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show
from blockexpand.errors import UsageError

if TYPE_CHECKING:
    from blockexpand.records.corpus import CorpusRecord, SourceCounts, SplitCounts


def prepare(
    sources: Annotated[list[str], Parameter(negative="")],
    /,
    *,
    tokenizer: Path,
    out: Path,
    kind: Literal["auto", "text", "code", "table", "chat"] = "auto",
    trained_turns: Literal["assistant", "all"] | None = None,
    row_tokens: int | None = None,
    held_out: float | None = None,
    max_bad: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """Make packed token data from text, code, tables or chats.

    Parameters
    ----------
    sources
        A recipe (.yaml), or files, folders, globs and data sets of the hub (owner/name); reviews.csv:body names the
        column to read, where there are several.
    tokenizer
        The model whose tokenizer is used.
    out
        The folder to write.
    kind
        What the sources are; by their names and first records if not given.
    trained_turns
        Of chats: whether the assistant's turns are trained, or all, by which packs know their questions.
    row_tokens
        Length of a packed row; 1024 if not given.
    held_out
        Share of the documents for each of the splits `validation` and `test`; 0.02 if not given, 0 = neither.
    max_bad
        Share of a source's records that may be unreadable; 0 if not given: prepare stops at the first.
    resume
        Go on with what an interrupted run left beside the folder.
    overwrite
        Replace the folder, if blockexpand made it, or what an interrupted run left.
    """
    from blockexpand import corpus

    recipes = [source for source in sources if source.endswith((".yaml", ".yml"))]
    if recipes and (len(sources) > 1 or kind != "auto"):
        raise UsageError(f"give either one recipe or sources, got {' '.join(sources)}; --kind is for sources")
    record = corpus.prepare(
        corpus.load_recipe(Path(recipes[0]))
        if recipes
        else [dataclasses.replace(corpus.source_of(source), kind=kind) for source in sources],
        tokenizer,
        out,
        row_tokens=row_tokens,
        held_out=held_out,
        max_bad=max_bad,
        trained_turns=trained_turns,
        overwrite=overwrite,
        resume=resume,
    )
    show(common, record, "\n".join(_summary(out, record)))
    return DONE


def _summary(out: Path, record: CorpusRecord) -> list[str]:
    lines = [f"{out}: rows of {record.row_tokens:,} tokens"]
    for source in record.sources:
        lines += _source_lines(source)
    if record.num_evaluation_texts:
        lines.append(
            f"  held against {record.num_evaluation_texts:,} evaluation texts "
            f"({record.num_evaluation_texts_skipped:,} more were too short)"
        )
    for name, split in record.splits.items():
        lines += _split_lines(name, split, "spans" if record.gap_tokens else "documents")
    if record.gap_tokens:
        lines.append(
            f"  so few texts were cut, a span for each split, {record.gap_tokens} tokens between them left out; with "
            "more of them the splits hold whole documents"
        )
    return lines


def _source_lines(source: SourceCounts) -> list[str]:
    why = {
        "empty": source.num_empty,
        "duplicates": source.num_duplicates,
        "near duplicates": source.num_near_duplicates,
        "quote an evaluation text": source.num_contaminated,
        "unreadable": source.num_bad,
        "of splits not written": source.num_other_splits,
        "beyond max_tokens": source.num_beyond_limit,
    }
    said = ", ".join(f"{count:,} {words}" for words, count in why.items() if count)
    known, between = source.source, source.source.get("separator", "end of file")
    told = [known["kind"], known.get("field", "")]
    told += {"blank lines": ["documents begin at blank lines"], "end of file": []}.get(
        between, [f"between {between!r}"]
    )
    of = f" ({', '.join(filter(None, told))})"
    lines = [
        f"  {known['path']}{of}: {source.num_read:,} documents read, {source.num_kept:,} kept"
        f"{'; dropped: ' if said else ''}{said}"
    ]
    return lines + [f"    unreadable: {why}" for why in source.bad]


def _split_lines(name: str, split: SplitCounts, units: str) -> list[str]:
    files = f"{len(split.shards)} file{'s' if len(split.shards) > 1 else ''}"
    lines = [
        f"  {name:<12} {split.num_documents:>9,} {units} {split.num_tokens:>15,} tokens {split.num_rows:>10,} rows  "
        f"{split.fill:.2%} full  {files}"
    ]
    return lines + [
        f"    {one.source}: {one.num_tokens:,} tokens, {one.got_epochs:.3f} epochs (wanted {one.wanted_epochs:.3f}), "
        f"{one.got_share:.2%} of the split (wanted {one.wanted_share:.2%})"
        for one in split.mix
    ]
