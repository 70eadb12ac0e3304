"""Suites: what the harness gives, resumed after a kill, refused when something does not fit."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its common name

from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.errors import EvaluationError
from blockexpand.evaluation import lm as lm_module
from blockexpand.evaluation.harness import Options, build_work
from blockexpand.evaluation.measurement import subject_of
from blockexpand.evaluation.suites import known_suites, load_suites
from blockexpand.records.evaluation import read_evaluation, read_samples
from helpers import load
from lm_helpers import make_lm
from packs_ground import make_pack, make_trained
from suite_ground import GSM8K, LABELLED, OWN, Scripted, figures, make_suite, measure, scripted, write_rows

lm_eval = pytest.importorskip("lm_eval")
TASKS = Path(lm_eval.__file__).parent / "tasks"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lm(tmp_path_factory.mktemp("lm") / "base")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return make_suite(tmp_path / "own")


def test_every_suite_reads_and_every_task_is_there() -> None:
    import lm_eval

    root = Path(lm_eval.__file__).parent / "tasks"
    assert sorted(known_suites()) == ["choice", "code", "general", "law", "math", "paper", "perplexity"]
    for name in known_suites():
        (chosen,) = load_suites([name])
        assert chosen.suite.suite == name
        for task in chosen.suite.tasks:
            if task.kind == "harness":
                assert list(root.glob(task.files)), task.files
            elif task.kind == "file":
                assert (chosen.folder / task.file).is_file()
    (general,) = load_suites(["general"])
    shots = {task.task: (task.shots, task.metric) for task in general.suite.tasks}
    assert shots == {
        "arc_challenge": (25, "acc_norm"),
        "hellaswag": (10, "acc_norm"),
        "mmlu": (5, "acc"),
        "truthfulqa_mc2": (0, "acc"),
        "winogrande": (5, "acc"),
    }
    (mmlu,) = [task for task in general.suite.tasks if task.kind == "harness" and task.task == "mmlu"]
    assert len(list(root.glob(mmlu.files))) == 57


def test_figures_and_samples_are_the_harness_alone(model: Path, own: Path, tmp_path: Path) -> None:
    """The same tasks through the harness's own evaluator and its own model class."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    record = measure(model, [str(own)], tmp_path / "out")
    works = build_work(load_suites([str(own)]), Options())
    lm = HFLM(pretrained=load(model, torch.float32), tokenizer=load_tokenizer(model), batch_size=16)  # ty: ignore[invalid-argument-type]
    alone = evaluate(lm, {"tasks": {w.entry.task: w.parts[0].task for w in works[:2]}}, bootstrap_iters=0)
    assert alone is not None
    for name in ("deeds", "words"):
        metric = figures(record)[name].metric
        assert figures(record)[name].value == pytest.approx(alone["results"][name][f"{metric},none"])
        ours, theirs = read_samples(tmp_path / "out", name), alone["samples"][name]
        assert [one.scores[metric] for one in ours] == [one[metric] for one in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            said = [r[0][0] if isinstance(r[0], tuple) else r[0] for r in other["resps"]]
            assert mine.output == (pytest.approx(said, abs=1e-4) if name == "deeds" else said)
    assert figures(record)["deeds"].shots == 1
    assert read_evaluation(tmp_path / "out").record == record


@pytest.mark.parametrize(("window", "stride"), [(None, None), (24, 8), (16, 16)])
def test_bits_per_byte_are_those_of_sliding_windows(
    model: Path, own: Path, tmp_path: Path, window: int | None, stride: int | None
) -> None:
    """Each token once, from at most `window` tokens before it, the first from the beginning-of-text token."""
    record = measure(model, [str(own)], tmp_path / "out", limit=3, window_tokens=window, stride_tokens=stride)
    assert record.suites is not None
    width, step = record.suites.window_tokens, record.suites.stride_tokens
    assert (width, step) == ((64, 32) if window is None else (window, stride))
    assert width is not None
    assert step is not None
    loaded, tokenizer = load(model, torch.float32), load_tokenizer(model)
    nats = num_bytes = 0.0
    for row in map(json.loads, (own.parent / "rows/tales/test.jsonl").read_text().splitlines()[:3]):
        tokens = [tokenizer.bos_token_id, *tokenizer(row["text"], add_special_tokens=False)["input_ids"]]
        assert len(tokens) > 64
        num_bytes += len(row["text"].encode())
        done = 1
        while done < len(tokens):
            end = min(done + (width if done == 1 else step), len(tokens))
            start = max(0, end - 1 - width)
            with torch.no_grad():
                logits = loaded(torch.tensor([tokens[start : end - 1]])).logits[0]
            each = F.cross_entropy(logits, torch.tensor(tokens[start + 1 : end]), reduction="none")
            nats += each[done - start - 1 :].sum().item()
            done = end
    assert figures(record)["tales"].value == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-4)


def plain(folder: Path, task: str) -> list[dict[str, Any]]:
    return [vars(one) for one in read_samples(folder, task)]


def test_a_killed_run_goes_on_and_asks_nothing_twice(
    model: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(model, [str(own)], tmp_path / "whole", batch_size=4)
    asked: list[int] = []
    ask = lm_module.HFLM.generate_until

    def killed(self: Any, requests: list, disable_tqdm: bool = False) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(lm_module.HFLM, "generate_until", killed)
        with pytest.raises(KeyboardInterrupt):
            measure(model, [str(own)], tmp_path / "out", batch_size=4)
    assert not (tmp_path / "out").exists()
    for more, said in (({}, "--resume"), ({"resume": True, "shots": 0}, "another model, other suites or settings")):
        with pytest.raises(EvaluationError, match=said):
            measure(model, [str(own)], tmp_path / "out", **more)
    monkeypatch.setattr(
        lm_module.HFLM, "generate_until", lambda s, r, **more: (asked.append(len(r)), ask(s, r, **more))[1]
    )
    monkeypatch.setattr(lm_module.HFLM, "loglikelihood", None)  # what was told is known
    again = measure(model, [str(own)], tmp_path / "out", resume=True, batch_size=4)
    assert asked == [8]
    assert not (tmp_path / "out.partial").exists()
    assert again == whole
    for task in ("words", "tales", "deeds"):
        assert plain(tmp_path / "out", task) == plain(tmp_path / "whole", task)
    (tmp_path / "o.partial").mkdir()
    (tmp_path / "o.partial" / "letters").write_text("mine")
    with pytest.raises(EvaluationError, match="o.partial is not an unfinished evaluation"):
        measure(model, [str(own)], tmp_path / "o", overwrite=True)


def test_types_and_templates_are_the_suite_s_to_ask_for(model: Path, own: Path, tmp_path: Path) -> None:
    from blockexpand.evaluation.suites import dtype_of

    own.write_text(OWN.replace("version: 3", "version: 3\ndtype: float16"))
    assert dtype_of(load_suites([str(own)])) == "float16"
    with pytest.raises(EvaluationError, match="own: float16, perplexity: auto"):
        dtype_of(load_suites([str(own), "perplexity"]))
    bare = shutil.copytree(model, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    edited = json.loads((bare / "tokenizer_config.json").read_text())
    edited.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(edited))
    assert measure(model, [str(own)], tmp_path / "with", limit=1, chat=True).limit == 1
    with pytest.raises(EvaluationError, match="has no chat template"):
        measure(bare, [str(own)], tmp_path / "without", limit=1, chat=True)


def test_files_are_listed_before_anything_is_fetched(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    from blockexpand.cli.main import run

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert run(["eval", "--list", "--suite", f"{own},humaneval", "--data-dir", str(own.parent / "rows")]) == 0
    said = capsys.readouterr().out
    assert "own: 4 of 4 files are there" in said
    assert "humaneval/test.jsonl" in said
    with pytest.raises(EvaluationError, match=r"humaneval/test\.jsonl.*mbpp/prompt\.jsonl|mbpp/test"):
        build_work(load_suites(["code"]), Options(data_dir=tmp_path))
    with pytest.raises(EvaluationError, match="no network"):
        build_work(load_suites(["humaneval"]), Options(hub=True))


def test_questions_with_choices_are_read_as_people_have_them(model: Path, tmp_path: Path) -> None:
    """Index, letter or text as the answer; choices in a column or a template; MMLU's own archive."""
    rows = {
        "piqa_val": {"question": "the cat", "choices": ["sees", "likes"], "answer": 1},
        "agieval_sat-en": {"passage": None, "question": "the dog", "options": ["(A)a", "(B)b"], "label": "B"},
        "commonsenseqa_dev": {
            "answerKey": "A",
            "question": {"stem": "the", "choices": [{"label": "A", "text": "cat"}, {"label": "B", "text": "dog"}]},
        },
    }  # fmt: skip
    for name, row in rows.items():
        write_rows(tmp_path / "data" / f"{name}.jsonl", [row] * 9)
    with zipfile.ZipFile(tmp_path / "data" / "mmlu.zip", "w") as archive:
        subjects = (path.stem.removeprefix("mmlu_") for path in TASKS.glob("mmlu/default/mmlu_*.yaml"))
        for subject in subjects:
            for split, count in (("test", 1), ("dev", 5)):
                archive.writestr(f"data/{split}/{subject}_{split}.csv", 'the cat,"a, b",b,c,d,C\n' * count)
    names = ["piqa", "agieval_sat-en", "commonsenseqa", "mmlu"]
    record = measure(model, names, tmp_path / "out", data=str(tmp_path / "data"), shots=0)
    found = figures(record)
    assert [found[name].chance for name in ("piqa", "agieval_sat-en", "commonsenseqa", "mmlu")] == [0.5, 0.5, 0.5, 0.25]
    assert (found["mmlu"].num_samples, len(found["mmlu"].parts)) == (57, 57)
    assert found["piqa"].value in (0.0, 1.0)
    assert found["piqa"].low is not None
    assert found["piqa"].low < found["piqa"].high


def test_what_a_server_did_not_answer_is_no_wrong_answer(own: Path, tmp_path: Path) -> None:
    """Three right answers, five errors: all answered are right."""
    (own.parent / "own.yaml").write_text(OWN.replace("  - {kind: choice", "  # ").replace("  - {kind: text", "  # "))
    rows = [json.loads(line) for line in (own.parent / "rows/words/test.jsonl").read_text().splitlines()]
    rows = [{**row, "text": f"{n} {row['text']}"} for n, row in enumerate(rows)]
    write_rows(own.parent / "rows/words/test.jsonl", rows)
    known = {f"{row['text']} the": row["word"] for row in rows}
    script = Scripted(lambda p: known[p] + ".\nmore" if p < "3" else TimeoutError("out of time"))
    record = scripted(script, own, tmp_path / "out")
    one = figures(record)["words"]
    assert (one.value, one.num_samples, one.num_errors) == (1.0, 3, 5)
    assert record.model_digest == "endpoint:http://script#m"
    samples = read_samples(tmp_path / "out", "words")
    assert [s.scores for s in samples[3:]] == [{}] * 5
    assert {s.error for s in samples[3:]} == {"out of time"}
    assert samples[0].output == [rows[0]["word"] + "."]  # what follows the stop is not the answer's
    nobody = scripted(Scripted(lambda _: ValueError("500")), own, tmp_path / "nobody")
    assert figures(nobody)["words"].value is None


def test_likelihoods_are_not_asked_of_an_address(own: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="deeds needs likelihoods, and the chat interface at http://script gives"):
        scripted(Scripted(lambda _: ""), own, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reference_answers_of_gsm8k_are_all_parsed(tmp_path: Path) -> None:
    write_rows(tmp_path / "data/gsm8k/test.jsonl", GSM8K)
    write_rows(tmp_path / "data/gsm8k/train.jsonl", GSM8K[::-1])
    known = {row["question"]: row["answer"] for row in GSM8K}

    def answer(prompt: str) -> str:
        return " " + known[prompt.rpartition("Question: ")[2].removesuffix("\nAnswer:")]

    record = scripted(Scripted(answer), "gsm8k", tmp_path / "out", data=str(tmp_path / "data"))
    assert figures(record)["gsm8k"].value == 1.0
    wrong = scripted(Scripted(lambda p: answer(p) + "1"), "gsm8k", tmp_path / "wrong", data=str(tmp_path / "data"))
    assert figures(wrong)["gsm8k"].value == 0.0


def test_unfair_clauses_are_judged_by_likelihood_per_token(model: Path, tmp_path: Path) -> None:
    from blockexpand.evaluation.lm import Likelihood
    from blockexpand.evaluation.scorers.law import amount, unfair_tos

    some = [Likelihood(-9.0, False, 9), *[Likelihood(-4.0, False, 2)] * 7]
    assert unfair_tos({"labels": [0, 6]}, some) == {"acc": 1.0}
    assert unfair_tos({"labels": [1]}, some) == {"acc": 0.0}
    assert [amount({"answer": "$27,181"}, [x])["acc"] for x in ("$27000 a year", "20000", "none")] == [1, 0, 0]
    write_rows(tmp_path / "data/unfair_tos/test.jsonl", LABELLED)
    write_rows(tmp_path / "data/unfair_tos/train.jsonl", LABELLED)
    record = measure(model, ["unfair_tos"], tmp_path / "out", data=str(tmp_path / "data"), shots=1)
    assert figures(record)["unfair_tos"].num_samples == 2  # a clause without a label cannot be right


def test_a_base_with_its_pack_scores_what_the_trained_model_does(model: Path, own: Path, tmp_path: Path) -> None:
    trained = make_trained(model, tmp_path / "trained", blocks=2)
    pack = make_pack(trained, tmp_path / "pack", "ours").folder
    with_pack = measure(subject_of(model, [pack], "float32"), [str(own)], tmp_path / "with")
    whole, base = measure(trained, [str(own)], tmp_path / "whole"), measure(model, [str(own)], tmp_path / "without")
    for task in ("deeds", "words", "tales"):
        assert plain(tmp_path / "with", task) == plain(tmp_path / "whole", task)
    assert figures(with_pack)["tales"].value == figures(whole)["tales"].value != figures(base)["tales"].value
    assert with_pack.model == f"{model} + {pack}"
    assert with_pack.model_digest not in (base.model_digest, whole.model_digest)


def test_prompts_that_do_not_fit_are_counted(model: Path, own: Path, tmp_path: Path) -> None:
    own.write_text(OWN.replace('"{{text}} the"', '"{{text * 40}} the"').replace('"{{text}} it"', '"{{text * 40}} it"'))
    record = measure(model, [str(own)], tmp_path / "out", limit=2)
    assert [figures(record)[name].num_cut for name in ("deeds", "words")] == [2, 2]
    assert all(one.cut_tokens > 0 for one in read_samples(tmp_path / "out", "words"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("kind: text", "kind: txet"), "expected 'kind' to be one of .*got 'txet'"),
        (("side: domain", "sdie: domain"), "unknown key 'sdie'; did you mean 'side'"),
        (("format: blockexpand.suite", "format: other"), "is not a suite: expected a mapping with 'format: blockexp"),
        (("format_version: 1", "format_version: 9"), "format_version 9, this blockexpand reads 1"),
        (("task: words", "task: deeds"), "tasks: expected each name once, got 'deeds'"),
        (("task: words", "task: 'a/b'"), "expected letters, digits, '-' and '_', got 'a/b'"),
        (("shots: 1", "shots: 99"), "shots: expected 0 to 64, got 99"),
    ],
)
def test_suites_are_read_strictly(own: Path, change: tuple[str, str], words: str) -> None:
    own.write_text(OWN.replace(*change))
    with pytest.raises(EvaluationError, match=words):
        load_suites([str(own)])


def test_unknown_names_are_met_with_the_nearest(own: Path) -> None:
    with pytest.raises(EvaluationError, match="no suite or task is called 'genral'; did you mean 'general'"):
        load_suites(["genral"])
    with pytest.raises(EvaluationError, match="is called 'human_eval'; did you mean 'humaneval'"):
        load_suites(["human_eval"])
    with pytest.raises(EvaluationError, match="the task 'gsm8k' is asked for twice in math, gsm8k"):
        load_suites(["math", "gsm8k"])
    with pytest.raises(EvaluationError, match="no such file: absent"):
        load_suites(["absent.yaml"])
    for change, words in [
        (("answer: deed", "answer: deed, metric: acurracy"), "deeds has no metric 'acurracy'; known: acc, acc_norm"),
        (("answer: deed", "answer: deed, filter: strict"), "deeds has no filter 'strict'; known: none"),
        (('"{{text}} it"', '"{{text} it"'), "deeds: '{{text} it' is not a template"),
        (('"{{text}} it"', '"{{txet}} it"'), r"row 1 has no column 'txet'; expected deed, txet, got deed, text, word"),
        (("kind: text, task: tales", "kind: file, task: tales, file: no.yaml"), "'tales' has no file at .*no.yaml"),
        (("kind: text, task: tales", "kind: harness, task: tales, files: no.yaml"), "no task at 'no.yaml'"),
        (
            ("data: rows", "data: nowhere"),
            r"4 files of data are missing.*nowhere/deeds/test\.jsonl.*nowhere/words/test",
        ),
        (("shots: 1", "shots: 5"), "deeds shows 5 examples, its split 'train' has 4 rows; bring more, or lower"),
        (
            ("[sees, likes, finds]", "[sees, likes]"),
            r"row 3: the answer 'finds' is none of the choices \['sees', 'likes",
        ),
    ]:
        own.write_text(OWN.replace(*change))
        with pytest.raises(EvaluationError, match=words):
            build_work(load_suites([str(own)]), Options())


def test_parts_of_one_file_are_told_apart(tmp_path: Path) -> None:
    """MATH's seven subjects stand in one file; a candidate without rows would change the figure unseen."""
    names = ["Algebra", "Counting & Probability", "Geometry", "Intermediate Algebra", "Number Theory", "Prealgebra"]
    rows = [{"problem": f"{n}?", "solution": rf"\boxed{{{n}}}", "type": n} for n in [*names, "Precalculus"]]
    write_rows(tmp_path / "hendrycks_math/test.jsonl", rows)
    known = {row["problem"]: row["type"] for row in rows[:-1]}
    script = Scripted(lambda p: f"${known.get(p.splitlines()[0].removeprefix('Problem: '))}$")
    one = figures(scripted(script, "hendrycks_math", tmp_path / "out", data=str(tmp_path)))["hendrycks_math"]
    assert {name.removeprefix("hendrycks_math_"): part.value for name, part in one.parts.items()} == {
        "algebra": 1.0,
        "counting_and_prob": 1.0,
        "geometry": 1.0,
        "intermediate_algebra": 1.0,
        "num_theory": 1.0,
        "prealgebra": 1.0,
        "precalc": 0.0,
    }
    assert one.value == pytest.approx(6 / 7)
    write_rows(tmp_path / "hendrycks_math/test.jsonl", rows[:-1])
    with pytest.raises(EvaluationError, match="has no row whose type is 'precalculus'; expected all parts of hendryc"):
        build_work(load_suites(["hendrycks_math"]), Options(data_dir=tmp_path))


def test_a_missing_harness_is_said_with_the_line_that_installs_it(
    model: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(EvaluationError, match=r"which is not installed; .*pip install .*'blockexpand\[evaluation\]'"):
        measure(model, [str(own)], tmp_path / "out")
