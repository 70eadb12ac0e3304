"""`--route auto` in eval: every figure is that of the packs that were chosen, and the records say which."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockexpand.cli.main import run
from blockexpand.corpus import open_corpus
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.evaluation import lm as lm_module
from blockexpand.evaluation import routes as routes_module
from blockexpand.evaluation.harness import Options
from blockexpand.evaluation.held_out import document_losses
from blockexpand.evaluation.measurement import Subject, evaluate, subject_of
from blockexpand.evaluation.routes import Router, count_of, routed_losses
from blockexpand.evaluation.suites import load_suites
from blockexpand.live.forward import RowBatch, cross_entropies
from blockexpand.packs import attach, load_with_packs
from blockexpand.packs.in_memory import enabled, only
from blockexpand.packs.route import route
from blockexpand.records.evaluation import EvaluationRecord, read_evaluation, read_samples
from blockexpand.records.pack import Names, Rule, name_of
from lm_helpers import ROW_TOKENS, make_chats, make_corpus, make_lm
from packs_ground import make_pack, make_trained
from suite_ground import OWN, make_suite

RULE = Rule(prompt_tokens=9, evidence=0.0)
"""Short, for rows of 32 tokens; any difference decides."""
SETS: tuple[Names, ...] = ((), ("a",), ("b",))


@dataclasses.dataclass(frozen=True)
class Ground:
    base: Path
    packs: tuple[str, str]
    corpus: Path

    def subject(self, rule: Rule | None = RULE) -> Subject:
        return subject_of(self.base, self.packs, "float32", rule)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("routed")
    base = make_lm(folder / "base")
    packs = [
        str(make_pack(make_trained(base, folder / n, seed, after=(1,)), folder / f"{n}.p", n).folder)
        for seed, n in enumerate("ab")
    ]
    return Ground(base, (packs[0], packs[1]), make_corpus(folder / "corpus", base))


@pytest.fixture
def model(ground: Ground) -> Any:
    return load_with_packs(ground.base, ground.packs, torch.float32)


def router_of(model: Any, ground: Ground, rule: Rule = RULE) -> Router:
    return Router(model, load_tokenizer(ground.base), rule)


def test_a_document_counts_under_the_base_first_and_then_under_what_was_chosen(model: Any, ground: Ground) -> None:
    """Against whole passes with the packs switched by hand, bit for bit, and the library's own choice of each piece."""
    rows = open_corpus(ground.corpus).rows("test")
    found, figures = routed_losses(router_of(model, ground), rows, 16, "")
    every = np.arange(rows.num_rows)
    tokens, positions, trained = rows.tokens_NT(every), rows.positions_NT(every), rows.trained_NT(every)
    batch = RowBatch.of(tokens, positions, trained, torch.device("cpu"))
    always: dict[Names, np.ndarray] = {}
    for names in SETS:
        with only(model, *names):
            always[names] = cross_entropies(model, batch).double().numpy()
    nats: dict[int, float] = {}
    chosen, short, at = [], 0, 0
    for n, (lengths, documents) in enumerate(zip(rows.lengths(every), rows.documents(every), strict=True)):
        start = 0
        for length, document in zip(lengths, documents, strict=True):
            piece = tokens[n, start : start + length].tolist()
            names = route(model, piece[:9], RULE).names
            cut = min(8, length - 1)
            counted = np.concatenate([always[()][at : at + cut], always[names][at + cut : at + length - 1]])
            nats[document] = nats.get(document, 0.0) + float(counted.sum())
            chosen += [name_of(names)] if length > 9 else []
            short += 1 < length <= 9
            start, at = start + length, at + length - 1
    assert at == len(always[()]), "every token but each piece's first counts"
    assert found.nats_M.tolist() == [nats[d] for d in sorted(nats)]
    plain = document_losses(model, rows, 16, "")
    assert found.tokens_M.tolist() == plain.tokens_M.tolist()
    assert figures.chosen == {name: chosen.count(name) for name in sorted(set(chosen))}
    assert len(figures.chosen) >= 2, "one choice for all would prove nothing"
    assert figures.num_short == short > 0
    assert enabled(model) == ("a", "b"), "the switches stay"


def test_what_each_candidate_gave_after_the_prompts_stands_beside_it(model: Any, ground: Ground) -> None:
    rows = open_corpus(ground.corpus).rows("test")
    by_evidence = {}
    for evidence in (0.0, 1e9):
        rule = dataclasses.replace(RULE, evidence=evidence)
        by_evidence[evidence] = routed_losses(router_of(model, ground, rule), rows, 4, "")
    figures = by_evidence[0.0][1]
    assert set(figures.after) == {"routed", "base", "a", "b"}
    assert figures.after["routed"] < max(figures.after.values())
    losses, never = by_evidence[1e9]
    assert never.chosen == {"base": sum(figures.chosen.values())}
    assert never.after["routed"] == never.after["base"] == pytest.approx(figures.after["base"])
    with only(model):
        assert losses.nats_M == pytest.approx(document_losses(model, rows, 4, "").nats_M, rel=1e-12)


def test_of_a_chat_the_question_is_the_prompt(model: Any, ground: Ground, tmp_path: Path) -> None:
    """What is trained is the answer: all of it counts under the packs that the question asks for."""
    rows = open_corpus(make_chats(tmp_path / "chats", ground.base)).rows("validation")
    rule = dataclasses.replace(RULE, prompt_tokens=2 * ROW_TOKENS)
    found, figures = routed_losses(router_of(model, ground, rule), rows, 16, "")
    assert figures.num_tokens == found.tokens_M.sum()
    assert figures.num_short == 0
    every = np.arange(rows.num_rows)
    chosen = []
    for tokens, trained, lengths in zip(
        rows.tokens_NT(every), rows.trained_NT(every), rows.lengths(every), strict=True
    ):
        start = 0
        for length in lengths:
            first = int(trained[start : start + length].argmax())
            chosen.append(name_of(route(model, tokens[start : start + first].tolist(), rule).names))
            start += length
    assert figures.chosen == {name: chosen.count(name) for name in sorted(set(chosen))}


def test_of_a_long_question_its_end_is_scored() -> None:
    """As many tokens as the rule reads, before the first that is trained: 4 losses of 5 tokens here, the fifth to the
    eighth; a is likelier before them, b in them."""
    tally = routes_module.Tally(dataclasses.replace(RULE, prompt_tokens=5), SETS)
    trained_L = np.arange(12) >= 8
    before_L, within_L = np.arange(12) < 4, (np.arange(12) >= 4) & ~trained_L
    losses = {(): np.full(12, 2.0), ("a",): 2.0 - 99.0 * before_L, ("b",): 2.0 - 1.0 * within_L}
    tally.add(routes_module.Piece(document=0, trained_L=trained_L, losses=losses))
    assert (tally.figures().chosen, tally.figures().num_tokens) == ({"b": 1}, 4)


def test_a_router_reads_the_end_of_a_text_and_each_text_once(
    model: Any, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = router_of(model, ground)
    texts = [[(7 * n + 3 * k) % 300 + 5 for k in range(9)] for n in range(40)]
    names = [router.of_tokens(text) for text in texts]
    other = next(n for n, one in enumerate(names) if one != names[0])
    assert router.of_tokens(texts[0] + texts[other]) == names[other]
    assert router.of_tokens(texts[other] + texts[0]) == names[0]
    asked: list[int] = []
    monkeypatch.setattr(routes_module, "route", lambda *_: asked.append(1))
    assert [router.of_tokens(text) for text in texts] == names
    assert asked == [], "each text once"
    assert router.record().passes == (2 + 2 + 3 + 3) / 4
    both = router_of(model, ground, dataclasses.replace(RULE, together=True))
    assert both.sets == (*SETS, ("a", "b"))
    assert both.record().candidates == ("base", "a", "b", "a+b")
    assert count_of([None, "b", "a", None, "b"]) == {"a": 1, "b": 2}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_suite(tmp_path_factory.mktemp("suite"), 10)


OPTIONS = Options(batch_size=1, shots=0)
"""One sequence a pass, so that the bits are the same whoever else is asked."""


@pytest.fixture(scope="module")
def whole(ground: Ground, own: Path) -> Path:
    """The records of a routed run."""
    evaluate(ground.subject(), {}, own.parent / "whole", suites=load_suites([str(own)]), options=OPTIONS)
    return own.parent / "whole"


def test_suites_score_what_the_chosen_packs_score(
    model: Any, ground: Ground, own: Path, whole: Path, tmp_path: Path
) -> None:
    (own.parent / "asked.yaml").write_text(OWN.replace("  - {kind: text", "  # "))
    suites, record = load_suites([str(own.parent / "asked.yaml")]), read_evaluation(whole).record
    for names in SETS:
        with only(model, *names):
            one = Subject(name="m", tokenizer=ground.base, digest=lambda: "m", load=lambda: model)
            evaluate(one, {}, tmp_path / name_of(names), suites=suites, options=OPTIONS)
    for task in ("deeds", "words"):
        by_name = {name_of(names): read_samples(tmp_path / name_of(names), task) for names in SETS}
        routed = read_samples(whole, task)
        for number, one in enumerate(routed):
            assert one.route is not None
            assert one.output == by_name[one.route][number].output
            assert by_name[one.route][number].route is None
        counts = {name: sum(one.route == name for one in routed) for name in {str(one.route) for one in routed}}
        assert record.routing is not None
        assert record.routing.suites[task] == counts
        assert len(counts) > 1
    assert record.routing is not None
    assert (record.routing.rule, record.routing.candidates) == (RULE, ("base", "a", "b"))


def test_a_text_counts_under_the_base_first(model: Any, ground: Ground, own: Path, whole: Path) -> None:
    tokenizer = load_tokenizer(ground.base)
    lm = lm_module.LoadedLM(model, tokenizer, OPTIONS)
    texts = [json.loads(line)["text"] for line in (own.parent / "rows/tales/test.jsonl").read_text().splitlines()]
    seen = set()
    for text, one in zip(texts, read_samples(whole, "tales"), strict=True):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        names = route(model, tokens[:9], RULE).names
        seen.add(one.route)
        assert one.route == name_of(names)
        with only(model):
            first = lm._nats_of(tokens[:9])
        with only(model, *names):
            rest = lm._nats_of(tokens) - lm._nats_of(tokens[:9])
        assert one.output[0] == pytest.approx(first + rest, rel=1e-6)
    assert len(seen) > 1


def question(number: int, context: str, choice: str) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, (context, choice), 0, ("t", number, 1))


def test_all_choices_of_a_question_have_one_route(model: Any, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each has a context of its own."""
    router = router_of(model, ground)
    lm = lm_module.RoutedLM(router, load_tokenizer(ground.base), Options(batch_size=4))
    texts: list[str] = []
    of_text = router.of_text
    monkeypatch.setattr(router, "of_text", lambda text: (texts.append(text), of_text(text))[1])
    first = [question(0, "the cat sees the ", " dog"), question(0, "the cat sees the ", " old bird")]
    second = [question(1, "the fish hears a", " tree"), question(1, "the fish hears the", " tree")]
    bare = [question(1, "", " tree")]  # as tasks ask that compare with a choice alone
    lm.loglikelihood([*first, *second, *bare])
    assert texts == ["the cat sees the "] * 2 + ["the fish hears "] * 3
    assert set(lm.routes) == {("t", 0), ("t", 1)}


def told_by(record: Path) -> EvaluationRecord:
    return read_evaluation(record).record


def test_the_verb_with_packs_and_without_suites(
    ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Always on it is the trained model; routed the record says so; an attached folder routes like base and packs."""
    common = ["--data", f"general={ground.corpus}", "--quiet"]
    trained = ground.base.parent / "a"
    both = [word for pack in ground.packs for word in ("--pack", pack)]
    assert run(["eval", str(ground.base), *both[:2], *common, "--out", str(tmp_path / "always")]) == 0
    evaluate(trained, {"general": ground.corpus}, tmp_path / "trained")
    assert told_by(tmp_path / "always").held_out == told_by(tmp_path / "trained").held_out
    assert told_by(tmp_path / "always").routing is None
    assert "routing" not in json.loads((tmp_path / "always/blockexpand.json").read_text())
    capsys.readouterr()
    routed = ["eval", str(ground.base), *both, "--route", "auto", *common, "--out"]
    assert run([*routed, str(tmp_path / "routed")]) == 0
    shown = capsys.readouterr().out
    record = told_by(tmp_path / "routed")
    assert record.routing is not None
    assert record.routing.rule == Rule()
    assert f"packs chosen by what is read, at {record.routing.passes:.2f} passes of the base's blocks" in shown
    assert "after the prompts, nats/token: nothing" in shown, "rows of 32 tokens end within a prompt of 128"
    assert record.model == " + ".join([str(ground.base), *ground.packs])
    attach(ground.base, list(ground.packs), tmp_path / "attached")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        if not (tmp_path / "attached" / file).exists():
            shutil.copy(ground.base / file, tmp_path / "attached" / file)
    again = ["eval", str(tmp_path / "attached"), "--route", "auto", *common, "--out", str(tmp_path / "again")]
    assert run(again) == 0
    assert told_by(tmp_path / "again").routing == record.routing
    assert told_by(tmp_path / "again").held_out == record.held_out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--route", "auto", "--data", "a=b"],
            "base has no packs to choose among; expected a folder that `pack attach`",
        ),
        (["--route", "auto", "--suite", "gsm8k"], "give --pack PACK, or leave out --route auto"),
        (["--route", "on", "--suite", "gsm8k"], '"on"'),
        (
            ["--endpoint", "http://localhost:1", "--suite", "gsm8k", "--route", "auto"],
            "http://localhost:1 is an address",
        ),
    ],
)
def test_wrong_words_are_one_line(
    ground: Ground, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", str(ground.base), *words, "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()
