"""The verb that makes data: prepare."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show
from blockexpand.errors import UsageError

if TYPE_CHECKING:
    from blockexpand.corpus import PrepareRecipe
    from blockexpand.records.corpus import CorpusRecord, SourceCounts, SplitCounts

_CODE = frozenset(
    {".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".hs", ".java", ".jl", ".js", ".kt", ".lua", ".m", ".ml", ".php"}
    | {".pl", ".py", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts"}
)
_KINDS = {".txt": "text", ".md": "text", ".rst": "text", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
_RECORDS = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather")
_FILES_LOOKED_AT = 2000
_SECOND_KIND = 0.2
"""A folder with so many files of another kind, for each of the first, is a question; a README among data is none."""


def prepare(
    sources: Annotated[list[str], Parameter(negative="")],
    /,
    *,
    tokenizer: Path,
    out: Path,
    kind: Literal["text", "code", "python", "json", "parquet", "arrow", "chat", "huggingface"] | None = None,
    field: str | None = None,
    trained_turns: Literal["assistant", "all"] | None = None,
    row_tokens: int = 1024,
    held_out: float = 0.02,
    max_bad: float = 0.0,
    resume: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """Make packed token data from text, code or chats.

    Parameters
    ----------
    sources
        A recipe (.yaml), or files, folders and globs of one kind.
    tokenizer
        The model whose tokenizer is used.
    out
        The folder to write.
    kind
        What the files are; by their names and first records if not given. `huggingface` is a hub id or folder.
    field
        The field of each record that holds the text or the turns. Without a recipe only.
    trained_turns
        Of chats: whether the assistant's turns are trained, or all, by which packs know their questions.
    row_tokens
        Length of a packed row. Without a recipe only.
    held_out
        Share of the documents for each of the splits `validation` and `test`. Without a recipe only.
    max_bad
        Share of a source's records that may be unreadable; 0 stops at the first. Without a recipe only.
    resume
        Go on with what an interrupted run left beside the folder.
    workers
        Processes that tokenise; as many as there are cores if not given.
    overwrite
        Replace the folder, if blockexpand made it, or what an interrupted run left.
    """
    from blockexpand import corpus

    recipes = [source for source in sources if source.endswith((".yaml", ".yml"))]
    if recipes and (len(sources) > 1 or kind is not None or field is not None):
        raise UsageError(f"give either one recipe or files of one kind, got {' '.join(sources)}")
    if recipes and trained_turns is not None:
        raise UsageError(f"--trained-turns {trained_turns} beside a recipe; expected it in {recipes[0]}; set it there")
    if recipes:
        recipe = corpus.load_recipe(Path(recipes[0]))
    else:
        recipe = _recipe([_source(s, kind, field) for s in sources], row_tokens, held_out, max_bad)
        if trained_turns is not None:
            recipe = dataclasses.replace(recipe, trained_turns=trained_turns)
    record = corpus.prepare(recipe, tokenizer, out, overwrite, resume, workers)
    show(common, record, "\n".join(_summary(out, record)))
    return DONE


def _recipe(sources: list[dict[str, Any]], row_tokens: int, held_out: float, max_bad: float) -> PrepareRecipe:
    from blockexpand.corpus import PrepareRecipe
    from blockexpand.records import from_plain

    splits = {"train": 1 - 2 * held_out, "validation": held_out, "test": held_out}
    plain = {
        "sources": sources,
        "row_tokens": row_tokens,
        "splits": {name: {"share": share} for name, share in splits.items() if share > 0},
        "max_bad": max_bad,
    }
    return from_plain(PrepareRecipe, plain, "prepare")


# --- what a path holds ----------------------------------------------------------------------------------


def _source(path: str, kind: str | None, field: str | None) -> dict[str, Any]:
    chosen = kind or _guess(path)
    source: dict[str, Any] = {"kind": chosen, "path": path}
    if field is not None:
        source["field"] = field
    if chosen == "code":
        endings = sorted({_ending(name) for name in _names_in(path)} & _CODE)
        source["extensions"] = endings or [".py"]
    if chosen == "text" and Path(path).is_dir():
        texts = sorted({_ending(name) for name in _names_in(path)} & {e for e, k in _KINDS.items() if k == "text"})
        if len(texts) == 1:
            source["pattern"] = f"*{texts[0]}"
    return source


def _guess(path: str) -> str:
    """The kind of a file, or of what there is most of in a folder or glob."""
    counts = Counter(_kind_of(name) for name in _names_in(path))
    counts.pop(None, None)
    if not counts:
        if not Path(path).exists() and path.count("/") == 1 and not Path(path).suffix:
            raise UsageError(f"there is no file or folder {path}; for a data set of the hub add --kind huggingface")
        raise UsageError(
            f"cannot tell what {path} holds; add --kind text, code, json, parquet, arrow, chat or huggingface"
        )
    (kind, most), *others = counts.most_common()
    assert kind is not None, "unknown names were taken out"
    if others and others[0][1] >= _SECOND_KIND * most and kind != "code":
        found = ", ".join(f"{count} of {name}" for name, count in counts.most_common())
        raise UsageError(f"{path} holds files of several kinds ({found}); choose one with --kind, or name the files")
    if kind in ("json", "parquet", "arrow") and _holds_chats(path):
        return "chat"
    return kind


def _names_in(path: str) -> list[str]:
    import glob
    import itertools
    import os

    if Path(path).is_dir():
        found = (f"{parent}/{name}" for parent, _, names in os.walk(path) for name in names)
        return list(itertools.islice(found, _FILES_LOOKED_AT))
    return list(itertools.islice(glob.iglob(path, recursive=True), _FILES_LOOKED_AT)) if "*" in path else [path]


def _ending(name: str) -> str:
    return Path(name.removesuffix(".gz").removesuffix(".zst")).suffix.lower()


def _kind_of(name: str) -> str | None:
    ending = _ending(name)
    if ending in (".json", ".jsonl", ".ndjson"):
        return "json"
    return "code" if ending in _CODE else _KINDS.get(ending)


def _holds_chats(path: str) -> bool:
    from blockexpand.corpus.chats import chat_fields
    from blockexpand.corpus.reading import first_record

    for name in _names_in(path):
        if _ending(name) in _RECORDS and Path(name).is_file():
            record = first_record(Path(name))
            return isinstance(record, dict) and "text" not in record and bool(chat_fields(list(record)))
    return False


# --- what came of it ------------------------------------------------------------------------------------


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
        lines += _split_lines(name, split)
    return lines


def _source_lines(source: SourceCounts) -> list[str]:
    why = {
        "too short": source.num_too_short,
        **{f"by {rule}": count for rule, count in source.cleaned.items()},
        "duplicates": source.num_duplicates,
        "near duplicates": source.num_near_duplicates,
        "quote an evaluation text": source.num_contaminated,
        "unreadable": source.num_bad,
        "of splits not written": source.num_other_splits,
        "beyond max_tokens": source.num_beyond_limit,
    }
    said = ", ".join(f"{count:,} {words}" for words, count in why.items() if count)
    lines = [
        f"  {source.source['kind']} {source.source['path']}: {source.num_read:,} documents read, {source.num_kept:,} "
        f"kept{'; dropped: ' if said else ''}{said}"
    ]
    return lines + [f"    unreadable: {why}" for why in source.bad]


def _split_lines(name: str, split: SplitCounts) -> list[str]:
    files = f"{len(split.shards)} file{'s' if len(split.shards) > 1 else ''}"
    lines = [
        f"  {name:<12} {split.num_documents:>9,} documents {split.num_tokens:>15,} tokens {split.num_rows:>10,} rows  "
        f"{split.fill:.2%} full  {files}"
    ]
    return lines + [
        f"    {one.source}: {one.num_tokens:,} tokens, {one.got_epochs:.3f} epochs (wanted {one.wanted_epochs:.3f}), "
        f"{one.got_share:.2%} of the split (wanted {one.wanted_share:.2%})"
        for one in split.mix
    ]
