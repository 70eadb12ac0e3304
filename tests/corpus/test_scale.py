"""`prepare` at scale: killed anywhere, many processes, shards, weights, drops: the same bytes, and all is counted."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockexpand.corpus import filling, open_corpus, prepare, preparing
from blockexpand.corpus.recipe import DecontaminateRecipe, DuplicatesRecipe, PrepareRecipe, SplitRecipe
from blockexpand.corpus.sources import ChatSource, JsonSource
from blockexpand.corpus.spool import Spool, locked
from blockexpand.corpus.workers import Workers
from blockexpand.errors import CorpusError, StagingError
from helpers import tree
from lm_helpers import ROW_TOKENS, make_lm, sentences


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lm(tmp_path_factory.mktemp("lm") / "base")


def source(path: Path, texts: list[str], **settings: Any) -> JsonSource:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return JsonSource(kind="json", path=str(path), **settings)


def wide_recipe(tmp_path: Path) -> PrepareRecipe:
    """Two weighted sources, near copies, evaluation texts, small shards: everything at once."""
    texts = sentences(160, 1)
    near = [text + " the end" for text in texts[:10]]
    tasks = source(tmp_path / "tasks.jsonl", [texts[20]])
    return PrepareRecipe(
        sources=(
            source(tmp_path / "a.jsonl", [*texts, *near, texts[3]], epochs=1.5),
            source(tmp_path / "b.jsonl", sentences(90, 2), epochs=0.5),
        ),
        row_tokens=ROW_TOKENS,
        splits={"train": SplitRecipe(share=0.8), "test": SplitRecipe(share=0.2)},
        duplicates=DuplicatesRecipe(near=0.7),
        decontaminate=DecontaminateRecipe(against=(tasks,)),
        shard_tokens=60 * ROW_TOKENS,
    )


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_BATCH_DOCUMENTS", 16)


def killed(run: Callable[[], object], owner: Any, name: str, at_call: int) -> bool:
    """Run in a child that kills itself with SIGKILL at the n-th call of a function; whether it got there."""
    child = os.fork()
    if child == 0:
        # Threads do not survive a fork: the tokenizer's would be waited for for ever, where a test before used them.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        real, calls = vars(owner)[name], 0

        def counted(*arguments: Any, **words: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **words)

        setattr(owner, name, counted)
        try:
            run()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


POINTS = [
    (Spool, "append", 1), (Spool, "append", 200), (Spool, "commit", 1), (Spool, "commit", 2), (Spool, "commit", 4),
    (os, "replace", 2), (os, "replace", 6), (preparing, "write_shard", 1), (preparing, "write_shard", 3),
    (preparing, "publish_folder", 1), (preparing, "discard", 1),
]  # fmt: skip


def test_killed_anywhere_and_resumed_it_is_the_same_corpus(tmp_path: Path, model: Path) -> None:
    recipe = wide_recipe(tmp_path)
    prepare(recipe, model, tmp_path / "whole", workers=1)
    whole = tree(tmp_path / "whole")
    assert len(whole) > 4, "several shards"
    for number, (owner, name, at_call) in enumerate(POINTS):
        out = tmp_path / f"out{number}"
        run = lambda out=out: prepare(recipe, model, out, resume=True, workers=1)  # noqa: E731
        assert killed(run, owner, name, at_call), (name, at_call)
        assert out.exists() == (name == "discard")
        run()
        assert tree(out) == whole, (name, at_call)
        assert not out.with_name(f"{out.name}.partial").exists()


def test_killed_again_and_again_it_gets_there(tmp_path: Path, model: Path) -> None:
    recipe = wide_recipe(tmp_path)
    prepare(recipe, model, tmp_path / "whole", workers=1)
    run = lambda: prepare(recipe, model, tmp_path / "out", resume=True, workers=1)  # noqa: E731
    kills = 0
    while killed(run, Spool, "commit", 2):  # one commit further each time
        kills += 1
    assert kills >= 3
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_finished_work_is_not_done_again(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = wide_recipe(tmp_path)
    assert killed(lambda: prepare(recipe, model, tmp_path / "out", workers=1), preparing, "write_shard", 3)
    written = []
    real = preparing.write_shard
    monkeypatch.setattr(preparing, "write_shard", lambda path, *rest: (written.append(path.name), real(path, *rest))[1])
    monkeypatch.setattr(filling.Filling, "_read_source", lambda *_: pytest.fail("read again"))
    prepare(recipe, model, tmp_path / "out", resume=True, workers=1)
    assert "train-00001.arrow" not in written
    assert "train-00002.arrow" in written
    before = tree(tmp_path / "out")
    record = prepare(recipe, model, tmp_path / "out", resume=True)  # whole: nothing to do
    assert record == open_corpus(tmp_path / "out").record
    assert tree(tmp_path / "out") == before


def test_an_interrupt_keeps_what_is_done_and_says_so(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(wide_recipe(tmp_path), shard_tokens=1 << 26)  # nothing is committed by itself
    prepare(recipe, model, tmp_path / "whole", workers=1)
    real = Spool.append
    calls = 0

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 100:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"is kept in .*out.partial: go on with --resume"):
            prepare(recipe, model, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CorpusError, match=r"out.partial holds an unfinished prepare; go on with --resume"):
        prepare(recipe, model, tmp_path / "out")
    other = dataclasses.replace(recipe, min_chars=2)
    with pytest.raises(CorpusError, match="was begun with another recipe, tokenizer or version"):
        prepare(other, model, tmp_path / "out", resume=True)
    prepare(recipe, model, tmp_path / "out", resume=True, workers=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_files_that_changed_half_way_are_refused(tmp_path: Path, model: Path) -> None:
    recipe = wide_recipe(tmp_path)
    assert killed(lambda: prepare(recipe, model, tmp_path / "out", workers=1), Spool, "commit", 2)
    with (tmp_path / "a.jsonl").open("a") as stream:
        stream.write('{"text": "one more"}\n')
    with pytest.raises(CorpusError, match=r"the files of json .*a.jsonl have changed since .*out.partial was begun"):
        prepare(recipe, model, tmp_path / "out", resume=True)
    prepare(recipe, model, tmp_path / "out", overwrite=True, workers=1)
    prepare(recipe, model, tmp_path / "whole", workers=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_spool_that_was_cut_is_refused(tmp_path: Path, model: Path) -> None:
    recipe = wide_recipe(tmp_path)
    assert killed(lambda: prepare(recipe, model, tmp_path / "out", workers=1), Spool, "commit", 2)
    os.truncate(tmp_path / "out.partial" / "train.0.tokens", 10)
    with pytest.raises(CorpusError, match=r"train.0.tokens has 10 bytes, and .* were written; the folder was changed"):
        prepare(recipe, model, tmp_path / "out", resume=True)


def test_two_at_once_are_refused(tmp_path: Path, model: Path) -> None:
    with locked(tmp_path / "out.partial"):
        with pytest.raises(CorpusError, match=r"another prepare is filling .*out.partial"):
            prepare(wide_recipe(tmp_path), model, tmp_path / "out")


def test_processes_make_no_difference(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = wide_recipe(tmp_path)
    prepare(recipe, model, tmp_path / "one", workers=1)
    monkeypatch.setattr(preparing, "Workers", lambda job, count: Workers(job, count, alone_chars=0))
    prepare(recipe, model, tmp_path / "two", workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    with pytest.raises(CorpusError, match="workers is 0; expected 1 or more"):
        prepare(recipe, model, tmp_path / "three", workers=0)


def test_a_process_that_dies_is_told(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Doomed(Workers):
        def _start(self) -> None:
            super()._start()
            for process in self._started:
                process.kill()

    monkeypatch.setattr(preparing, "Workers", lambda job, count: Doomed(job, count, alone_chars=0))
    with pytest.raises(CorpusError, match=r"a process that prepares documents ended early, with -9"):
        prepare(wide_recipe(tmp_path), model, tmp_path / "out", workers=2)
    assert not (tmp_path / "out.partial").exists()


def test_weights_are_kept_and_recorded(tmp_path: Path, model: Path) -> None:
    record = prepare(wide_recipe(tmp_path), model, tmp_path / "out", workers=1)
    first, second = record.splits["train"].mix
    assert (first.wanted_epochs, second.wanted_epochs) == (1.5, 0.5)
    longest = 60  # tokens of the longest sentences
    assert abs(first.num_tokens - 1.5 * first.own_tokens) < longest
    assert abs(second.num_tokens - 0.5 * second.own_tokens) < longest
    assert first.got_share + second.got_share == pytest.approx(1, abs=1e-6)
    assert [one.got_epochs for one in record.splits["test"].mix] == [1.0, 1.0]  # held-out documents count once
    split = record.splits["train"]
    assert split.num_rows == sum(shard.num_rows for shard in split.shards)
    assert split.num_tokens == sum(shard.num_tokens for shard in split.shards)
    assert [shard.num_rows for shard in split.shards[:-1]] == [60] * (len(split.shards) - 1)
    rows = open_corpus(tmp_path / "out").rows("train")
    every = np.arange(rows.num_rows)
    assert rows.trained_NT(every).sum() == split.num_trained_tokens
    documents = [d for row in rows.documents(every) for d in row]
    assert set(documents) == set(range(split.num_documents))


def test_shares_end_reading_when_there_is_enough(tmp_path: Path, model: Path) -> None:
    recipe = PrepareRecipe(
        sources=(
            source(tmp_path / "a.jsonl", sentences(400, 1), share=0.75),
            source(tmp_path / "b.jsonl", sentences(100, 2), share=0.25),
        ),
        row_tokens=ROW_TOKENS,
        splits={"train": SplitRecipe(share=1.0, max_tokens=4000)},
    )
    record = prepare(recipe, model, tmp_path / "out", workers=1)
    assert [round(one.got_share, 2) for one in record.splits["train"].mix] == [0.75, 0.25]
    assert 3900 < sum(one.num_tokens for one in record.splits["train"].mix) <= 4000
    assert record.sources[0].num_read < 300


def test_what_was_dropped_is_counted_and_quoted(tmp_path: Path, model: Path) -> None:
    record = prepare(wide_recipe(tmp_path), model, tmp_path / "out", workers=1)
    first = record.sources[0]
    assert first.num_read == 171
    assert first.num_duplicates == 1
    assert first.num_near_duplicates >= 5
    assert first.num_contaminated == 1
    assert record.num_evaluation_texts == 1
    assert any("tasks.jsonl, line 1" in example and "a.jsonl, line 21" in example for example in first.examples)
    assert any("a near copy" in example for example in first.examples)
    assert (first.num_files, first.num_bytes) == (1, (tmp_path / "a.jsonl").stat().st_size)
    again = prepare(wide_recipe(tmp_path), model, tmp_path / "again", workers=1)
    assert again.sources[0].content_digest == first.content_digest
    assert len(first.content_digest) == 32
    assert first.content_digest != record.sources[1].content_digest


def bad_recipe(tmp_path: Path, count: int, **settings: Any) -> PrepareRecipe:
    found = source(tmp_path / "a.jsonl", sentences(count, 1))
    with (tmp_path / "a.jsonl").open("ab") as stream:
        stream.write(b'{"text": "cut\n{"txt": "a"}\n\xff\n')
    return PrepareRecipe(sources=(found,), row_tokens=ROW_TOKENS, **settings)


def test_bad_lines_stop_or_are_counted_and_quoted(tmp_path: Path, model: Path) -> None:
    with pytest.raises(CorpusError, match=r"line 61 is not JSON.*\(or allow a share of such records with max_bad\)"):
        prepare(bad_recipe(tmp_path, 60), model, tmp_path / "out", workers=1)
    with pytest.raises(CorpusError, match=r"a.jsonl: 3 of 63 records cannot be read, .* max_bad 0.04; the first: "):
        prepare(bad_recipe(tmp_path, 60, max_bad=0.04), model, tmp_path / "out", workers=1)
    assert not list(tmp_path.glob("out*"))
    record = prepare(bad_recipe(tmp_path, 60, max_bad=0.05), model, tmp_path / "out", workers=1)
    (counts,) = record.sources
    assert (counts.num_read, counts.num_kept, counts.num_bad) == (63, 60, 3)
    assert [why.partition("line ")[2][:2] for why in counts.bad] == ["61", "62", "63"]


def test_a_budget_is_looked_at_before_the_end(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_BUDGET_FROM", 20)
    path = tmp_path / "a.jsonl"
    source(path, sentences(200, 1))
    path.write_bytes(b"bad\n" * 20 + path.read_bytes())
    recipe = PrepareRecipe(sources=(JsonSource(kind="json", path=str(path)),), max_bad=0.5)
    with pytest.raises(CorpusError, match=r"\d\d of \d\d records cannot be read"):
        prepare(recipe, model, tmp_path / "out", workers=1)


def test_conversations_that_cannot_be_encoded_are_bad_records(tmp_path: Path, model: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "the cat."}]}
        for question in ("who sees the dog?", "say <|end|>", "who else?")
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = PrepareRecipe(sources=(ChatSource(kind="chat", path=str(path)),), row_tokens=ROW_TOKENS, max_bad=0.4)
    record = prepare(recipe, model, tmp_path / "out", workers=1)
    (counts,) = record.sources
    assert (counts.num_read, counts.num_kept, counts.num_bad) == (3, 2, 1)
    assert "line 2 contains the special token '<|end|>'" in counts.bad[0]
    with pytest.raises(CorpusError, match="line 2 contains the special token"):
        prepare(dataclasses.replace(recipe, max_bad=0.0), model, tmp_path / "none", workers=1)


def test_a_full_disk_keeps_what_is_done(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = wide_recipe(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "write_shard", full)
        with pytest.raises(StagingError, match=r"no space left .* is kept in .*out.partial: go on with --resume"):
            prepare(recipe, model, tmp_path / "out", workers=1)
    prepare(recipe, model, tmp_path / "out", resume=True, workers=1)
    prepare(recipe, model, tmp_path / "whole", workers=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
