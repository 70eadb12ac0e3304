"""Studies: the recipes that ship, generated tasks, tasks in a row, tables that claim no more than they may."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from blockexpand.comparison import CompareRecipe, compare
from blockexpand.corpus import open_corpus
from blockexpand.errors import RecordError, StudyError, TrainingError
from blockexpand.packs import load_with_packs, read_pack
from blockexpand.packs.in_memory import only
from blockexpand.packs.route import route
from blockexpand.records import from_plain, read_record
from blockexpand.records.pack import Rule
from blockexpand.records.run import BlocksArm, DataSettings, FullArm, OptimizerSettings, ParallelArm
from blockexpand.reporting.sequences import read_sequence, sequence_sentence
from blockexpand.studies import Finding, known_studies, load_study, study
from blockexpand.studies.hits import document_hits
from blockexpand.studies.outcomes import record_of
from blockexpand.studies.recipe import BaseRecipe, MethodRecipe, SequenceRecipe, StudyRecipe
from blockexpand.studies.sequence import (
    Chain,
    SequenceResult,
    backward_transfer,
    overall,
    run_sequence,
    with_own_packs,
)
from blockexpand.studies.tables import comparison_tables, sequence_tables
from blockexpand.studies.tasks import TASKS, make_task
from blockexpand.training.arms import load_model
from comparison_ground import Place
from lm_helpers import make_chats, make_lm

RULE = Rule(prompt_tokens=8, evidence=0.0)
"""Any difference in the last words decides."""
STUDIES = ("depth", "frontier", "init", "perplexity", "placement", "scale", "sequence", "shift", "strategies")


def test_the_nine_studies_are_there_and_can_be_read() -> None:
    assert tuple(known_studies()) == STUDIES
    for name in STUDIES:
        recipe = load_study(name)[1]
        assert recipe.question.endswith("?")
        assert "7B:" in known_studies()[name].read_text() or "larger bases" in known_studies()[name].read_text()
        if recipe.compare:
            plain = {**recipe.compare, "base": "b", "out": "o", "data": {"domain": "d", "general": "g"}}
            made = from_plain(CompareRecipe, plain, name)
            assert len({arm.name for arm in made.arms}) == len(made.arms) > 1
    sequence = load_study("sequence")[1].sequence
    assert sequence is not None
    assert len(sequence.tasks) >= 5
    for task in sequence.tasks:  # each has as many questions as the recipe asks for
        assert len(make_task(task, sequence.num_train, sequence.num_test)[0]) == sequence.num_train
    told = [(m.told, m.trained_turns) for m in sequence.methods if m.per_task]
    assert told == [(True, "assistant"), (False, "assistant"), (False, "all")]


def test_settings_replace_a_studys_own() -> None:
    _, recipe = load_study("depth", ["compare.seeds=[3, 4]", "texts.test_tokens=99"])
    assert (recipe.compare["seeds"], recipe.texts.test_tokens) == ([3, 4], 99)


def test_an_unknown_study_is_refused() -> None:
    with pytest.raises(StudyError, match="no study 'depht'; expected one that ships .* did you mean 'depth'"):
        load_study("depht")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("compare: {}", r"study: expected exactly one of compare and sequence, got \[\]"),
        ("compare: {out: x, runs: y}", r"compare: expected no base, out, data or runs.*got \['out', 'runs'\]"),
        ("compare: {a: 1}\nbases: [{name: x, hidden_size: 6, num_heads: 2, new_blocks: 1}]", "hidden_size: .*got 6"),
        ("compare: {a: 1}\nbases: [{name: x, new_blocks: 0}]", "new_blocks: expected more than 0, got 0"),
    ],
)
def test_studies_that_make_no_sense_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"title: t\nquestion: q\npaper: p\n{text}\n")
    with pytest.raises(RecordError, match=words):
        load_study(path)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_tasks_are_made_here_and_hold_questions_out(name: str) -> None:
    train, test = make_task(name, 200, 40)
    assert (len(train), len(test)) == (200, 40)
    assert not {one.prompt for one in train} & {one.prompt for one in test}
    assert make_task(name, 200, 40) == (train, test)
    assert make_task(name, 200, 40, seed=1)[0] != train
    assert all(one.answer for one in train)


def test_answers_are_right() -> None:
    for one in make_task("sums", 50, 5)[0]:
        assert int(one.answer) == sum(map(int, one.prompt.removesuffix(" =").split(" + ")))
    for one in make_task("stories", 50, 5)[0]:
        assert int(one.answer) == sum(int(word) for word in one.prompt.split() if word.isdigit())
    for one in make_task("extraction", 50, 5)[0]:
        assert one.answer in one.prompt


def test_unknown_tasks_and_too_many_questions_are_refused() -> None:
    with pytest.raises(StudyError, match="no task 'sum'; expected one of those that are made here; did you mean 's"):
        make_task("sum", 1, 1)
    with pytest.raises(StudyError, match=r"the task 'sums' has \d+ questions to learn from .*expected 5000 and 5"):
        make_task("sums", 5000, 5)


def test_op_and_bwt_are_traces() -> None:
    matrix_TT = np.array([[0.9, 0.1, 0.0], [0.5, 0.8, 0.2], [0.3, 0.6, 0.7]])
    assert overall(matrix_TT) == pytest.approx((0.3 + 0.6 + 0.7) / 3)
    assert backward_transfer(matrix_TT) == pytest.approx(((0.3 - 0.9) + (0.6 - 0.8) + 0.0) / 3)


def test_a_pack_for_each_task_answers_only_its_own() -> None:
    scores_TTQ = np.arange(8.0).reshape(2, 2, 2)
    base_TQ = np.array([[-1.0, -2.0], [-3.0, -4.0]])
    own_TTQ = with_own_packs(scores_TTQ, base_TQ)
    assert own_TTQ.tolist() == [[[0, 1], [-3, -4]], [[0, 1], [6, 7]]]
    assert backward_transfer(own_TTQ.mean(axis=2)) == 0.0


def method(name: str, **changes: object) -> MethodRecipe:
    values: dict = {"name": name, "arm": BlocksArm(), "blocks": 1, "lr": 1e-2, "optimizer": OptimizerSettings()}
    return MethodRecipe(**(values | changes))


def test_tasks_in_a_row(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockexpand.studies.sequence.ROW_TOKENS", 64)
    recipe = SequenceRecipe(
        tasks=("sums", "code"),
        num_train=24,
        num_test=6,
        tokens_per_task=4 * 64 * 2,
        general_rows=1,
        methods=(
            method("one set"),
            method("each its own", per_task=True),
            method("full", arm=FullArm(kind="full"), blocks=None, lr=1e-3),
        ),
    )
    data = DataSettings(domain=str(place.domain), general=str(place.general))
    found = run_sequence(recipe, place.base, data, tmp_path)
    assert {chain.method: chain.scores_TTQ.shape for chain in found.chains} == {
        "one set": (2, 2, 6),
        "each its own": (2, 2, 6),
        "full": (2, 2, 6),
    }
    one_set, own, full = found.chains
    assert found.tokens_M.sum() < 64 < open_corpus(place.general).record.splits["test"].num_tokens
    assert backward_transfer(own.matrix_TT) == 0.0
    assert np.array_equal(own.scores_TTQ[0, 1], found.base_TQ[1])
    assert own.num_trainable_parameters == 2 * one_set.num_trainable_parameters
    assert not np.array_equal(one_set.general_TM[0], found.base_general_M)
    assert not np.array_equal(full.general_TM[0], full.general_TM[1])
    before = (tmp_path / "runs" / "full-seed0" / "2-code" / "blockexpand.json").stat().st_mtime_ns
    again = run_sequence(recipe, place.base, data, tmp_path)
    assert np.array_equal(again.chains[2].scores_TTQ, full.scores_TTQ)
    assert (tmp_path / "runs" / "full-seed0" / "2-code" / "blockexpand.json").stat().st_mtime_ns == before
    fewer = dataclasses.replace(recipe, general_rows=2)  # other text to measure on: measured again, not trained again
    wider = run_sequence(fewer, place.base, data, tmp_path)
    assert wider.tokens_M.sum() > found.tokens_M.sum()
    assert np.array_equal(wider.chains[2].scores_TTQ, full.scores_TTQ)
    assert (tmp_path / "runs" / "full-seed0" / "2-code" / "blockexpand.json").stat().st_mtime_ns == before
    assert len(list((tmp_path / "tasks").iterdir())) == 2
    with pytest.raises(TrainingError, match="begun with other settings: data.domain"):  # not the old questions
        run_sequence(dataclasses.replace(recipe, num_train=23), place.base, data, tmp_path)
    assert len(list((tmp_path / "tasks").iterdir())) == 4
    packs = [tmp_path / "runs" / "each-its-own-seed0" / stage / "pack" for stage in ("1-sums", "2-code")]
    assert [read_pack(pack).record.name for pack in packs] == ["sums", "code"]
    record = record_of(found, StudyRecipe(title="t", question="q?", paper="p", sequence=recipe), place.base)
    assert [method.packs for method in record.methods] == [False, True, False]
    assert record.methods[1].bwt.mean == 0.0
    assert record.methods[2].chains[0].matrix == tuple(map(tuple, full.matrix_TT.tolist()))
    assert record.methods[0].trains == "1 new block, interleaved"
    assert len(set(record.methods[0].chains[0].runs)) == 2
    rise = found.chains[2].general_TM[-1].sum() / found.base_general_M.sum() - 1
    assert record.methods[2].rise.mean == pytest.approx(rise)
    text = sequence_tables(record)
    assert "| one set against |" in text
    assert "with a pack on, 0 without" in text
    assert "| R of full | sums | code |" in text


def test_one_model_with_all_packs_answers_as_each_pack_alone(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockexpand.studies.sequence.ROW_TOKENS", 64)
    recipe = SequenceRecipe(
        tasks=("sums", "code"),
        num_train=24,
        num_test=6,
        tokens_per_task=4 * 64 * 2,
        methods=(method("packs", per_task=True, lr=3e-2),),
    )
    alone = []
    monkeypatch.setattr(
        "blockexpand.studies.sequence.with_own_packs",
        lambda scores_TTQ, base_TQ: alone.append(scores_TTQ.copy()) or with_own_packs(scores_TTQ, base_TQ),
    )
    data = DataSettings(domain=str(place.domain), general=str(place.general))
    chain = run_sequence(recipe, place.base, data, tmp_path).chains[0]
    own = np.arange(2)
    assert alone[0][own, own].any()
    assert np.array_equal(chain.final_TQ, alone[0][own, own])


def test_questions_choose_among_the_packs_that_are_there(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each score is that of the pack that `route` gives the question itself, of the packs that were learnt so far."""
    monkeypatch.setattr("blockexpand.studies.sequence.ROW_TOKENS", 64)
    monkeypatch.setattr("blockexpand.studies.scoring.Rule", lambda: RULE)
    packs = [method("told", per_task=True, lr=3e-2, trained_turns="all")]
    packs.append(dataclasses.replace(packs[0], name="chosen", told=False))
    recipe = SequenceRecipe(
        tasks=("sums", "code"), num_train=24, num_test=6, tokens_per_task=4 * 64 * 4, methods=tuple(packs)
    )
    data = DataSettings(domain=str(place.domain), general=str(place.general))
    told, chosen = run_sequence(recipe, place.base, data, tmp_path).chains
    answers = method("answers", per_task=True)
    run_sequence(dataclasses.replace(recipe, methods=(answers,)), place.base, data, tmp_path)
    for task in (tmp_path / "tasks").iterdir():
        trained = [
            open_corpus(task / name).record.splits["train"].num_trained_tokens for name in ("train", "train-all")
        ]
        assert trained[0] < trained[1], "answers alone are learnt from another folder"
    assert chosen.runs == told.runs, "the packs are the same"
    assert not (tmp_path / "runs" / "chosen-seed0" / "1-sums").exists()
    folders = [tmp_path / "runs" / "told-seed0" / run / "pack" for run in ("1-sums", "2-code")]
    model = load_with_packs(place.base, folders)
    names = [("base", ()), ("sums", ("sums",)), ("code", ("code",))]
    expected_TTQ, counts_TC = np.zeros((2, 2, 6)), np.zeros((2, 3))
    for task, name in enumerate(recipe.tasks):
        (test,) = (tmp_path / "tasks").glob(f"{name}-*/test")
        rows = open_corpus(test).rows("test")
        scores = {}
        for _, on in names:
            with only(model, *on):
                hits = document_hits(model, rows)
                scores[on] = hits.whole_M if TASKS[name].measure == "whole" else hits.share_M
        every = np.arange(rows.num_rows)
        tokens, trained = rows.tokens_NT(every), rows.trained_NT(every)
        for n, (lengths, documents) in enumerate(zip(rows.lengths(every), rows.documents(every), strict=True)):
            at = 0
            for length, document in zip(lengths, documents, strict=True):
                prompt = tokens[n, at : at + int(trained[n, at : at + length].argmax())]
                at += length
                for learnt in range(2):
                    menu = [on for _, on in names[: learnt + 2]]
                    on = route(model, prompt.tolist(), RULE, menu).names
                    expected_TTQ[learnt, task, document] = scores[on][document]
                counts_TC[task, menu.index(on)] += 1
    assert np.array_equal(chosen.scores_TTQ, expected_TTQ)
    assert chosen.chosen_TC is not None
    assert chosen.chosen_TC.tolist() == (counts_TC / 6).tolist()
    assert (counts_TC.sum(axis=0) > 0).sum() > 1, "or nothing was chosen at all"
    assert not np.array_equal(chosen.general_TM[0], chosen.general_TM[1])
    record = record_of(run_sequence(recipe, place.base, data, tmp_path), study_of(recipe), place.base)
    assert [(m.one_on, m.told) for m in record.methods] == [(True, True), (False, False)]
    assert "| pack chosen, chosen | the base | sums | code |" in sequence_tables(record)
    losses = record.methods[1].chains[0].general_losses
    base_loss = record.base_general_loss
    assert record.methods[1].rise.mean == pytest.approx(losses[-1] / base_loss - 1)


def study_of(recipe: SequenceRecipe) -> StudyRecipe:
    return StudyRecipe(title="t", question="q?", paper="p", sequence=recipe)


def test_scores_of_the_likeliest_tokens_are_those_of_greedy_answers(tmp_path: Path) -> None:
    import torch

    base = make_lm(tmp_path / "base")
    rows = open_corpus(make_chats(tmp_path / "chats", base)).rows("validation")
    model = load_model(base, torch.float32)
    hits = document_hits(model, rows)
    right, tokens = 0, 0
    for chosen in range(rows.num_rows):
        some = np.array([chosen])
        ids, trained = rows.tokens_NT(some)[0], rows.trained_NT(some)[0]
        at = 0
        for length in rows.lengths(some)[0]:
            piece, counts = torch.from_numpy(ids[at : at + length])[None], trained[at : at + length]
            with torch.no_grad():
                best = model(piece).logits[0].argmax(-1).numpy()
            right += int((best[:-1] == ids[at + 1 : at + length])[counts[1:]].sum())
            tokens += int(counts.sum())
            at += length
    assert (int(hits.right_M.sum()), int(hits.tokens_M.sum())) == (right, tokens)
    assert hits.share_M.tolist() == (hits.right_M / hits.tokens_M).tolist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.0}, "lr: expected more than 0"),
        ({"blocks": None}, "blocks: expected a number for `blocks`"),
        ({"arm": FullArm(kind="full"), "blocks": None, "per_task": True}, "per_task: expected false"),
        ({"told": False}, "told: expected true, but for blocks for each task, got False"),
        ({"arm": ParallelArm(kind="parallel", blocks=(1,)), "blocks": None}, "arm: expected one that .*'parallel'"),
    ],
)
def test_methods_that_make_no_sense_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(RecordError, match=words):
        method("x", **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ("sums",)}, "tasks: expected tasks that differ, at least two"),
        ({"num_test": 0}, "num_test: expected more than 0, got 0"),
        ({"methods": ()}, "methods: expected names that differ, at least one"),
        ({"seeds": (1, 1)}, "seeds: expected seeds that differ"),
    ],
)
def test_sequences_have_bounds(changes: dict, words: str) -> None:
    values: dict = {"tasks": ("sums", "code"), "num_train": 1, "num_test": 1, "tokens_per_task": 1}
    with pytest.raises(RecordError, match=words):
        SequenceRecipe(**({"methods": (method("x"),)} | values | changes))


def chain(name: str, shift: float, seed: int = 0) -> Chain:
    random = np.random.default_rng(seed)
    scores_TTQ = np.clip(random.uniform(0.3, 0.5, (2, 2, 30)) + shift, 0, 1)
    return Chain(
        method=name, seed=seed, scores_TTQ=scores_TTQ, general_TM=np.full((2, 5), 3.0), num_trainable_parameters=7,
        cpu_seconds=1.0, runs=("sha256:a", "sha256:b"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shift", "word", "sentence"),
    [(0.4, "less", "lower than with theirs"), (0.0, "noise", "not to be told apart from theirs"),
     (-0.3, "more", "higher than with theirs")],
)  # fmt: skip
def test_a_sequence_claims_what_its_interval_says(place: Place, shift: float, word: str, sentence: str) -> None:
    methods = (method("ours"), method("theirs"))
    found = SequenceResult(
        tasks=("sums", "code"),
        methods=methods,
        base_TQ=np.zeros((2, 30)),
        base_general_M=np.full(5, 3.0),
        tokens_M=np.ones(5),
        chains=(chain("ours", 0.0), dataclasses.replace(chain("theirs", shift, 1), seed=0)),
    )
    sequence = SequenceRecipe(tasks=found.tasks, num_train=3, num_test=30, tokens_per_task=9, methods=methods)
    recipe = StudyRecipe(title="t", question="q?", paper="p", sequence=sequence)
    record = record_of(found, recipe, place.base)
    rows = sequence_tables(record).splitlines()
    row = next(line for line in rows if line.startswith(("| theirs | +0.", "| theirs | -0.")))
    assert row.split(" | ")[2] == word
    assert sequence_sentence(record).endswith(f"Its mean score is {sentence}.")


def test_several_seeds_have_an_interval_over_seeds(place: Place) -> None:
    methods = (method("ours"),)
    chains = tuple(dataclasses.replace(chain("ours", 0.1 * seed, seed), seed=seed) for seed in range(3))
    found = SequenceResult(
        tasks=("sums", "code"), methods=methods, base_TQ=np.zeros((2, 30)), base_general_M=np.full(5, 3.0),
        tokens_M=np.ones(5), chains=chains,
    )  # fmt: skip
    sequence = SequenceRecipe(
        tasks=found.tasks, num_train=3, num_test=30, tokens_per_task=9, methods=methods, seeds=(0, 1, 2)
    )
    op = record_of(found, StudyRecipe(title="t", question="q?", paper="p", sequence=sequence), place.base).methods[0].op
    values = np.array([overall(one.matrix_TT) for one in chains])
    assert op.mean == pytest.approx(values.mean())
    assert (op.high - op.low) / 2 == pytest.approx(4.30265 * values.std(ddof=1) / 3**0.5, rel=1e-4)


def test_a_sequence_ends_in_a_page(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockexpand.studies.sequence.ROW_TOKENS", 64)
    recipe = tmp_path / "row.yaml"
    recipe.write_text(
        f"""
title: A row
question: What is left?
paper: nothing
base: {place.base}
texts: {{domain: {place.domain}, general: {place.general}}}
sequence:
  tasks: [sums, code]
  num_train: 8
  num_test: 4
  tokens_per_task: 128
  methods: [{{name: full, arm: {{kind: full}}, lr: 1e-3}}]
"""
    )
    found = study(recipe, tmp_path / "all")
    page = Path(found.pages[0])
    assert page == tmp_path / "all" / "row-report" / "index.html"
    assert sequence_sentence(read_sequence(tmp_path / "all" / "row")) in page.read_text().replace("\u00a0", " ")


def test_a_study_of_ones_own(place: Place, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"""
title: Mine
question: Which?
paper: nothing
base: {place.base}
texts: {{domain: {place.domain}, general: {place.general}, validation_rows: 2}}
compare:
  domain_tokens: 192
  rows_per_step: 4
  retention: {{replay: 0.5}}
  measure_every_steps: 3
  examine: {{num_prompts: 4, prompt_tokens: 8, new_tokens: 4, ablation_rows: 4}}
  arms:
    - {{name: new, arm: {{kind: blocks}}, plan: {{blocks: 1}}, lrs: [1e-2]}}
    - {{name: full, arm: {{kind: full}}, lrs: [1e-3]}}
"""
    )
    found = study(recipe, tmp_path / "all")
    assert found == read_record(Finding, tmp_path / "all" / "mine" / "finding.json")
    assert "| new against | gain, difference |" in found.text
    assert "| new | after3.0 |" in found.text
    assert Path(found.pages[0]).is_file()
    assert (tmp_path / "all" / "shared" / "base" / "runs").is_dir()


def test_a_study_of_scale_compares_each_base_with_blocks_of_its_own(place: Place, tmp_path: Path) -> None:
    other = make_lm(tmp_path / "other", blocks=2)
    recipe = tmp_path / "sizes.yaml"
    recipe.write_text(
        f"""
title: Sizes
question: Does it grow?
paper: nothing
texts: {{domain: {place.domain}, general: {place.general}, validation_rows: 2}}
bases:
  - {{name: four, folder: {place.base}, new_blocks: 2}}
  - {{name: two, folder: {other}, new_blocks: 1}}
compare:
  domain_tokens: 128
  rows_per_step: 2
  retention: {{replay: 0.5}}
  arms:
    - {{name: new, arm: {{kind: blocks}}, plan: {{blocks: 9}}, lrs: [1e-2]}}
    - {{name: LoRA, arm: {{kind: lora, trainable_parameters: 1}}, lrs: [1e-3]}}
"""
    )
    found = study(recipe, tmp_path / "all")
    assert len(found.pages) == 2
    assert "| four |" in found.text
    assert "| two |" in found.text
    sizes = {
        name: [t.num_trainable_parameters for t in compare_of(tmp_path / "all" / "sizes" / name)]
        for name in ("four", "two")
    }
    assert sizes["four"][0] == 2 * sizes["two"][0]
    assert sizes["four"][1] == pytest.approx(sizes["four"][0], rel=0.1)


def compare_of(folder: Path):
    from blockexpand.comparison import read_comparison

    return read_comparison(folder).trials


def test_a_base_is_made_with_the_tiny_bases_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from blockexpand.demonstration import BASE
    from blockexpand.studies import bases

    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "the house stood by the river number {n}"}}\n' for n in range(200)))
    from blockexpand.corpus import PrepareRecipe, SplitRecipe, prepare
    from blockexpand.corpus.sources import JsonSource

    recipe = PrepareRecipe(
        sources=(JsonSource(kind="json", path=str(text)),), row_tokens=64, splits={"train": SplitRecipe(share=1.0)}
    )
    prepare(recipe, BASE, tmp_path / "text")
    monkeypatch.setattr(bases, "_text", lambda _tokens, _root: tmp_path / "text")
    wish = BaseRecipe(name="mini", hidden_size=16, num_blocks=2, num_heads=2, tokens=1024, new_blocks=1)
    made = bases.make_base(wish, tmp_path / "mini", tmp_path)
    assert (made / "tokenizer.json").read_bytes() == (BASE / "tokenizer.json").read_bytes()
    assert made.name == "mini"
    model = load_model(made, torch.float32)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (16, 2)
    assert bases.make_base(wish, tmp_path / "mini", tmp_path) == made


def test_a_comparisons_table_has_every_figure(place: Place, tmp_path: Path) -> None:
    text = comparison_tables(compare(place.recipe(tmp_path / "out")), None)
    assert "| the base |" in text
    assert "| new | 0.01 |" in text
    assert "| full | " in text
