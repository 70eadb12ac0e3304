"""Data order: every epoch sees every row once, and steps do not depend on how they are cut."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st

from blockexpand.corpus.rows import open_corpus
from blockexpand.errors import CorpusError, TrainingError
from blockexpand.records.run import DataSettings, RetentionSettings
from blockexpand.training.budget import LEAST_DOCUMENTS
from blockexpand.training.data import HeldOut, attention_cost, deal, open_data, shuffled
from blockexpand.training.processes import World
from helpers import edit_json
from lm_helpers import make_corpus, make_lm
from training_ground import KEEPING, Ground

CPU = World(device=torch.device("cpu"))


def test_every_epoch_sees_every_row_once_in_another_order() -> None:
    whole = shuffled(7, 0, 21, (0, 0))
    epochs = whole.reshape(3, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    pieces = np.concatenate([shuffled(7, start, 3, (0, 0)) for start in range(0, 21, 3)])
    assert np.array_equal(whole, pieces)
    assert not np.array_equal(whole, shuffled(7, 0, 21, (1, 0)))
    assert not np.array_equal(whole, shuffled(7, 0, 21, (0, 1)))


def test_the_order_of_an_epoch_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = np.random.default_rng

    def counting(seed: object) -> np.random.Generator:
        made.append(seed)
        return real(seed)

    monkeypatch.setattr(np.random, "default_rng", counting)
    for step in range(25):
        shuffled(1001, 100 * step, 100, (7, 3))
    assert len(made) == 3  # 2,500 rows of 1,001 lie in three epochs


def test_a_step_is_the_same_however_it_is_cut(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path, retention=RetentionSettings(replay=0.5))
    whole = open_data(settings, CPU).passes(3)
    cut = open_data(dataclasses.replace(settings, rows_per_pass=1), CPU).passes(3)
    assert [p.num_domain_rows for p in whole] == [2]
    assert [p.num_domain_rows for p in cut] == [1, 1, 0, 0]
    assert torch.equal(whole[0].batch.tokens_BT, torch.cat([p.batch.tokens_BT for p in cut]))
    assert torch.equal(whole[0].batch.positions_BT, torch.cat([p.batch.positions_BT for p in cut]))


def test_the_domain_rows_do_not_depend_on_retention(ground: Ground, tmp_path: Path) -> None:
    """Arms of a comparison see the same domain rows in the same order, replay or not."""
    with_replay = ground.settings(tmp_path, retention=RetentionSettings(replay=0.5))
    without = ground.settings(tmp_path, rows_per_step=2, rows_per_pass=2)
    for step in range(4):
        (a,), (b,) = open_data(with_replay, CPU).passes(step), open_data(without, CPU).passes(step)
        assert torch.equal(a.batch.tokens_BT[:2], b.batch.tokens_BT)


def test_what_the_run_steers_by_is_always_the_same(ground: Ground, tmp_path: Path) -> None:
    first = open_data(ground.settings(tmp_path), CPU).validation["general"]
    again = open_data(ground.settings(tmp_path, seed=9), CPU).validation["general"]
    assert np.array_equal(first.chosen_K, again.chosen_K)
    assert len(first.chosen_K) == 4
    whole, halves = (list(first.batches(size, CPU)) for size in (4, 2))
    assert torch.equal(whole[0][0].tokens_BT, torch.cat([batch.tokens_BT for batch, _ in halves]))
    assert np.array_equal(whole[0][1], np.concatenate([documents for _, documents in halves]))


def test_documents_that_test_the_budget_steered_nothing(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path, retention=KEEPING)
    data = open_data(settings, CPU)
    steering, testing = data.validation["general"], data.calibration["general"]

    def texts(found: HeldOut) -> set[int]:
        """The numbers in the split of the documents that count."""
        numbers: set[int] = set()
        for row, counts in zip(found.chosen_K, found.documents_KT >= 0, strict=True):
            (lengths,), (documents,) = found.rows.lengths(row[None]), found.rows.documents(row[None])
            flat = np.repeat(documents, lengths)
            numbers |= set(flat[counts[: len(flat)]].tolist())
        return numbers

    assert not texts(steering) & texts(testing)
    assert len(texts(testing)) == testing.num_documents >= LEAST_DOCUMENTS
    (batch, documents_R), *_ = testing.batches(10**6, CPU)
    assert np.array_equal(np.bincount(documents_R), testing.tokens_N)
    assert len(batch.targets_R) == testing.tokens_N.sum()


def test_a_budget_on_too_few_documents_is_refused_before_training(ground: Ground, tmp_path: Path) -> None:
    few = make_corpus(tmp_path / "few", ground.base, documents=120)
    data = DataSettings(domain=str(ground.domain), general=str(few))
    settings = ground.settings(tmp_path / "run", data=data, retention=KEEPING)
    with pytest.raises(TrainingError, match=f"a bound takes {LEAST_DOCUMENTS}"):
        open_data(settings, CPU)


def test_several_kinds_of_general_text_are_rehearsed_and_measured_each(ground: Ground, tmp_path: Path) -> None:
    data = DataSettings(
        domain=str(ground.domain), general=str(ground.general), more_general={"code": str(ground.domain)}
    )
    found = open_data(ground.settings(tmp_path, data=data, retention=RetentionSettings(replay=0.5)), CPU)
    assert list(found.validation) == ["domain", "general", "code"]
    assert found.general is not None
    parts = [open_corpus(folder).rows("replay") for folder in (ground.general, ground.domain)]
    assert found.general.num_rows == sum(part.num_rows for part in parts)
    last = np.array([found.general.num_rows - 1])
    assert np.array_equal(found.general.tokens_NT(last), parts[1].tokens_NT(np.array([parts[1].num_rows - 1])))


def test_without_a_split_to_replay_the_general_text_is_replayed_whole(ground: Ground, tmp_path: Path) -> None:
    """`prepare` without a recipe writes train, validation and test; README and the recipes go on with that."""
    folder = tmp_path / "general"
    shutil.copytree(ground.general, folder)
    edit_json(folder / "blockexpand.json", lambda record: record["splits"].pop("replay"))
    whole = DataSettings(domain=str(ground.domain), general=str(folder))
    settings = ground.settings(tmp_path / "run", data=whole, retention=RetentionSettings(replay=0.5))
    replayed, train = open_data(settings, CPU).general, open_corpus(ground.general).rows("train")
    assert replayed is not None
    every = np.arange(train.num_rows)
    assert np.array_equal(replayed.tokens_NT(every), train.tokens_NT(every))
    given = dataclasses.replace(settings, data=dataclasses.replace(whole, general_split="rehearsed"))
    with pytest.raises(CorpusError, match="no split 'rehearsed'"):
        open_data(given, CPU)


def test_data_that_do_not_fit_are_refused(ground: Ground, tmp_path: Path) -> None:
    other = make_lm(tmp_path / "other", vocabulary=300)
    foreign = make_corpus(tmp_path / "foreign", other)
    data = DataSettings(domain=str(foreign))
    with pytest.raises(TrainingError, match=r"foreign was prepared with another tokenizer than the one in .*expanded"):
        open_data(ground.settings(tmp_path, data=data), CPU)
    with pytest.raises(TrainingError, match=r"general has rows of 32 tokens, the domain's have 64"):
        data = DataSettings(domain=str(ground.chats), general=str(ground.general))
        open_data(ground.settings(tmp_path, data=data), CPU)
    with pytest.raises(CorpusError, match="is not a prepared corpus"):
        open_data(ground.settings(tmp_path, data=DataSettings(domain=str(tmp_path))), CPU)
    with pytest.raises(CorpusError, match="has no split 'learn'"):
        data = DataSettings(domain=str(ground.domain), domain_split="learn")
        open_data(ground.settings(tmp_path, data=data), CPU)


COSTS = st.lists(st.integers(1, 1000), max_size=30)


@tried(max_examples=200, deadline=None)
@given(general=COSTS, domain=COSTS, size=st.integers(1, 9))
def test_every_row_goes_to_one_process_and_numbers_are_even(general: list[int], domain: list[int], size: int) -> None:
    hands = deal(general, domain, size)
    assert len(hands) == size
    assert sorted(row for of_general, _ in hands for row in of_general) == list(range(len(general)))
    assert sorted(row for _, of_domain in hands for row in of_domain) == list(range(len(domain)))
    for counts in ([len(g) for g, _ in hands], [len(g) + len(d) for g, d in hands]):
        assert max(counts) - min(counts) <= 1
    assert hands == deal(general, domain, size)


def test_the_costliest_rows_are_kept_apart() -> None:
    costs = [attention_cost(lengths) for lengths in ([8], [1] * 8, [8], [2] * 4, [4, 4], [1] * 8)]
    assert costs == [64, 8, 64, 16, 32, 8]
    loads = [sum(costs[row] for row in rows) for _, rows in deal([], costs, 2)]
    assert loads == [64 + 32 + 8, 64 + 16 + 8]  # in the order they come it would be 136 and 56
