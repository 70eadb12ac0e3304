"""Evaluation: losses are those of the model, and pairs are of the same documents."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from blockexpand.corpus import open_corpus
from blockexpand.errors import CorpusError, EvaluationError
from blockexpand.evaluation.harness import Options
from blockexpand.evaluation.held_out import document_losses
from blockexpand.evaluation.measurement import evaluate, model_digest, subject_of
from blockexpand.evaluation.verdict import compare_records
from blockexpand.live.device import choose_device, computes_in_bfloat16, own_dtype
from blockexpand.records.evaluation import read_evaluation
from blockexpand.records.intervals import mean_difference, ratio_difference
from helpers import load
from lm_helpers import make_corpus, make_lm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lm(tmp_path_factory.mktemp("lm") / "base")


@pytest.fixture(scope="module")
def corpus(model: Path) -> Path:
    return make_corpus(model.parent / "corpus", model)


def test_losses_are_those_of_each_document_alone(model: Path, corpus: Path) -> None:
    """Piece by piece through transformers' own forward, one document at a time, nothing packed."""
    opened = open_corpus(corpus)
    rows = opened.rows("test")
    loaded = load(model, torch.float32)
    found = document_losses(loaded, rows, 3, "test")
    every = np.arange(rows.num_rows)
    tokens = rows.tokens_NT(every)
    expected: dict[int, float] = {}
    counts: dict[int, int] = {}
    for n, (lengths, documents) in enumerate(zip(rows.lengths(every), rows.documents(every), strict=True)):
        at = 0
        for length, document in zip(lengths, documents, strict=True):
            piece = torch.tensor(tokens[n, at : at + length])[None]
            if length > 1:
                with torch.no_grad():
                    nats = loaded(piece, labels=piece).loss.item() * (length - 1)
                expected[document] = expected.get(document, 0.0) + nats
                counts[document] = counts.get(document, 0) + length - 1
            at += length
    order = sorted(expected)
    np.testing.assert_allclose(found.nats_M, [expected[d] for d in order], rtol=1e-4)
    assert found.tokens_M.tolist() == [counts[d] for d in order]
    split = opened.record.splits["test"]
    summary = found.summary(split.num_bytes)
    assert summary.num_tokens == split.num_trained_tokens
    assert summary.num_documents == split.num_documents
    assert summary.loss == pytest.approx(sum(expected.values()) / sum(counts.values()), rel=1e-4)
    assert summary.perplexity == pytest.approx(math.exp(summary.loss))
    assert summary.bits_per_byte == pytest.approx(sum(expected.values()) / math.log(2) / split.num_bytes, rel=1e-4)


def test_the_size_of_a_pass_does_not_matter(model: Path, corpus: Path) -> None:
    rows = open_corpus(corpus).rows("test")
    loaded = load(model, torch.float32)
    one, many = (document_losses(loaded, rows, size, "") for size in (1, 7))
    np.testing.assert_allclose(one.nats_M, many.nats_M, rtol=1e-5)


def test_records_are_read_back(model: Path, corpus: Path, tmp_path: Path) -> None:
    record = evaluate(model, {"general": corpus}, tmp_path / "out")
    back = read_evaluation(tmp_path / "out")
    assert back.record == record
    assert back.losses["general"].nats_M.sum() / back.losses["general"].tokens_M.sum() == pytest.approx(
        record.held_out["general"].loss
    )
    assert record.model_digest.startswith("sha256:")


def test_the_same_model_differs_from_itself_by_nothing(model: Path, corpus: Path, tmp_path: Path) -> None:
    other = make_lm(tmp_path / "other", seed=1)
    for name, folder in (("a", model), ("b", model), ("c", other)):
        evaluate(folder, {"general": corpus}, tmp_path / name)
    same = compare_records(tmp_path / "a", tmp_path / "b")
    assert set(same) == {"general"}
    assert all(one.ours == one.theirs and one.is_noise for one in same.values())
    apart = compare_records(tmp_path / "a", tmp_path / "c")["general"].interval
    assert apart is not None
    assert apart.difference != 0
    assert apart.low <= apart.difference <= apart.high


def test_what_cannot_be_paired_or_measured_is_refused(model: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="nothing to measure: give at least one corpus"):
        evaluate(model, {}, tmp_path / "o")
    foreign = make_lm(tmp_path / "foreign", vocabulary=300)
    with pytest.raises(EvaluationError, match=r"the corpus 'general' \(.*\) was prepared with another tokenizer"):
        evaluate(foreign, {"general": corpus}, tmp_path / "o")
    with pytest.raises(CorpusError, match="has no split 'tset'"):
        evaluate(model, {"general": corpus}, tmp_path / "o", split="tset")
    with pytest.raises(EvaluationError, match="is not a folder of records"):
        read_evaluation(tmp_path)
    assert not (tmp_path / "o").exists()
    assert not [n for n in os.listdir(tmp_path) if n.startswith(".")]
    evaluate(model, {"general": corpus}, tmp_path / "a")
    evaluate(model, {"general": make_corpus(tmp_path / "c2", model, seed=8)}, tmp_path / "b")
    with pytest.raises(EvaluationError, match="the corpus 'general' is another"):
        compare_records(tmp_path / "a", tmp_path / "b")
    evaluate(model, {"domain": corpus}, tmp_path / "d")
    with pytest.raises(EvaluationError, match="nothing in common with general"):
        compare_records(tmp_path / "a", tmp_path / "d")


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """95 % intervals of a known difference: 200 draws, of which about 190 hold it."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        tokens = rng.integers(20, 60, 80)
        base = rng.normal(3, 1, 80) * tokens
        ours = base - (0.2 + rng.normal(0, 0.3, 80)) * tokens
        interval = ratio_difference(base, ours, tokens)
        held += interval.low <= 0.2 <= interval.high
    assert 178 <= held <= 199


def test_intervals_of_shares() -> None:
    right = np.array([1] * 70 + [0] * 30)
    wrong = np.array([1] * 40 + [0] * 60)
    interval = mean_difference(right, wrong)
    assert interval.difference == pytest.approx(0.3)
    assert 0.15 < interval.low < 0.3 < interval.high < 0.45
    assert not interval.is_noise
    assert mean_difference(right, right).is_noise


def test_a_limit_is_of_documents_too(model: Path, corpus: Path, tmp_path: Path) -> None:
    whole = evaluate(model, {"code": corpus}, tmp_path / "whole")
    few = evaluate(model, {"code": corpus}, tmp_path / "few", options=Options(limit=3))
    losses = [read_evaluation(tmp_path / name).losses["code"] for name in ("few", "whole")]
    assert losses[0].nats_M == pytest.approx(losses[1].nats_M[:3], rel=1e-2)
    assert losses[0].tokens_M.tolist() == losses[1].tokens_M[:3].tolist()
    assert (few.limit, few.held_out["code"].num_documents, few.held_out["code"].bits_per_byte) == (3, 3, None)
    assert whole.held_out["code"].bits_per_byte
    with pytest.raises(EvaluationError, match="--limit is 3"):
        compare_records(tmp_path / "few", tmp_path / "whole")


def test_weights_are_computed_in_the_checkpoint_s_own_type(model: Path, corpus: Path, tmp_path: Path) -> None:
    slow = not computes_in_bfloat16(choose_device())
    stored = str(own_dtype(model)).removeprefix("torch.")
    expected = "float32" if slow and stored == "bfloat16" else stored
    assert evaluate(model, {"code": corpus}, tmp_path / "own").dtype == expected
    wide = evaluate(subject_of(model, dtype="float32"), {"code": corpus}, tmp_path / "wide")
    assert wide.dtype == "float32"


def test_a_run_s_folder_is_the_model_in_it(model: Path, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(model, run / "model")
    (run / "blockexpand.json").write_text('{"format": "blockexpand.run"}')
    assert evaluate(run, {"code": corpus}, tmp_path / "o").model_digest == model_digest(model)
