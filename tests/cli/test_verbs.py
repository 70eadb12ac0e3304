"""The verbs as a person types them: what they print, leave behind and exit with. One chain from plan to report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from blockexpand.cli.main import run
from blockexpand.expansion import verify
from lm_helpers import make_chats, make_lm, sentences

Said = tuple[int, str, str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]):
    """`say(*words)`: run the command line; exit code, standard output, standard error."""

    def typed(*words: object) -> Said:
        capsys.readouterr()
        code = run([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return typed


def one_line(said: Said) -> str:
    """The error of a refusal: exit code 2, nothing on standard output, one line after those of progress."""
    code, out, err = said
    assert code == 2, (out, err)
    assert out == ""
    *progress, line = err.splitlines()
    assert not any(other.startswith("blockexpand") for other in progress), err
    assert line.startswith("blockexpand: ")
    return line


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and texts."""
    folder = tmp_path_factory.mktemp("ground")
    make_lm(folder / "base")
    for name, seed in (("domain", 1), ("general", 2)):
        rows = [json.dumps({"text": text}) for text in sentences(200, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def recipe(ground: Path) -> dict[str, Any]:
    return {
        "model": str(ground / "deeper"),
        "data": {"domain": str(ground / "domain"), "validation_rows": 2, "general_split": "train"},
        "domain_tokens": 4 * 4 * 32,
        "rows_per_step": 4,
        "rows_per_pass": 4,
        "measure_every_steps": 2,
        "retention": {"replay": 0.0, "kl_weight": 0.0},
    }


def test_from_a_plan_to_a_page(ground: Path, recipe: dict[str, Any], tmp_path: Path, say) -> None:
    base, deeper = ground / "base", ground / "deeper"
    code, out, _ = say("plan", base, "--blocks", 2, "--out", tmp_path / "plan.json")
    assert code == 0
    assert "after1.0" in out
    assert "copy of old 3" in out
    code, out, _ = say("expand", base, deeper, "--plan", tmp_path / "plan.json", "--prove")
    assert code == 0
    assert "6 blocks, 2 of them new (2, 5)" in out
    assert "proved: " in out
    code, out, _ = say("verify", base, deeper, "--json")
    assert code == 0
    assert all(check["passed"] for check in json.loads(out)["checks"])

    for name in ("domain", "general"):
        words = ("--tokenizer", base, "--row-tokens", 32, "--held-out", 0.2, "--out", ground / name)
        code, out, _ = say("prepare", ground / f"{name}.jsonl", *words)
        assert code == 0
        assert "200 documents read" in out
    settings = {**recipe, "out": str(tmp_path / "run")}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    code, out, _ = say("train", tmp_path / "train.yaml", "--dry-run", "--processes", 2)
    assert code == 0
    assert "would train 2 of 6 blocks" in out
    assert "4 of 4 rows of 32 tokens" in out
    assert not (tmp_path / "run").exists()
    code, out, _ = say("train", tmp_path / "train.yaml", "arm.kind=blocks", "optimizer.lr=3e-3")
    assert code == 0
    assert f"{tmp_path / 'run'}/model" in out
    assert verify(base, tmp_path / "run" / "model").passed

    data = ("--data", f"domain={ground / 'domain'}", "--data", f"general={ground / 'general'}")
    assert say("eval", base, "--out", tmp_path / "before", *data)[0] == 0
    words = (*data, "--against", tmp_path / "before")
    code, out, _ = say("eval", tmp_path / "run" / "model", "--out", tmp_path / "after", *words)
    assert code == 0
    assert "pairs" in out
    assert say("report", tmp_path / "before", tmp_path / "after", deeper, "--out", tmp_path / "page")[0] == 0
    assert "<html" in (tmp_path / "page" / "index.html").read_text()


def test_conversations_are_tuned_from_the_command_line(
    ground: Path, recipe: dict[str, Any], tmp_path: Path, say
) -> None:
    base = make_lm(tmp_path / "base")
    chats = make_chats(tmp_path / "chats", base)
    settings = {**recipe, "model": str(base), "data": {"domain": str(chats), "validation_rows": 2}}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump({**settings, "out": str(tmp_path / "run")}))
    code, out, _ = say("train", tmp_path / "sft.yaml", "--dry-run", "--json")
    assert code == 0
    cost = json.loads(out)["cost"]
    assert cost["num_trained_parameters"] == cost["num_parameters"]
    code, out, _ = say("train", tmp_path / "sft.yaml", "--json")
    assert code == 0
    assert json.loads(out)["settings"]["arm"]["kind"] == "full"


def test_a_checkpoint_that_is_not_the_base_exits_with_1(ground: Path, tmp_path: Path, say) -> None:
    other = make_lm(tmp_path / "other", seed=1)
    assert say("expand", ground / "base", tmp_path / "deeper", "--blocks", 1)[0] == 0
    code, out, _ = say("verify", other, tmp_path / "deeper")
    assert code == 1
    assert "NOT PROVED" in out
    assert "FAIL old tensors" in out


REFUSED = [
    (("plan", "nowhere", "--blocks", "2"), ("nowhere",)),
    (("plan", "{base}"), ("neither of blocks (None)",)),
    (("plan", "{base}", "--blocks", "0"), ("blocks is 0",)),
    (("plan", "{base}", "--blocks", "-3"), ("blocks is -3",)),
    (("plan", "{base}", "--after", "1,9"), ("no block 9", "0 to 3")),
    (("plan", "{base}", "--after", "one"), ("--after 'one'", "--after 3,7,11")),
    (("plan", "{base}", "--blocks", "two"), ("two", "int")),
    (("plan", "{base}", "--blocks", "2", "--placement", "middle"), ("middle", "interleaved")),
    (("plan", "{base}", "--block", "2"), ("--block", "--blocks")),
    (("expnad", "{base}"), ("expnad", "expand")),
    (("expand", "{base}", "{out}", "--plan", "plan.json", "--blocks", "2"), ("already says where",)),
    (("expand", "{base}", "{base}", "--blocks", "2"), ("is the base",)),
    (("verify", "{base}", "{base}"), ("blockexpand.json",)),
    (("prepare", "{texts}", "--tokenizer", "{base}", "--kind", "video", "--out", "{out}"), ("video", "code")),
    (("prepare", "words.bin", "--tokenizer", "{base}", "--out", "{out}"), ("words.bin", "a folder")),
    (("prepare", "a.yaml", "b.yaml", "--tokenizer", "{base}", "--out", "{out}"), ("one recipe",)),
    (("prepare", "{empty}", "--tokenizer", "{base}", "--out", "{out}"), ("no document", "give more text")),
    (("prepare", "{latin}", "--tokenizer", "{base}", "--out", "{out}"), ("not UTF-8", "character 3")),
    (("train", "{recipe}"), ("'retnetion'", "retention")),
    (("train", "{recipe}", "retnetion=null", "domain_tokens=many"), ("retnetion",)),
    (("train", "{wrong}"), ("domain_tokens", "many", "whole number")),
    (("train", "{wrong}", "domain_tokens=5", "arm.kind=lara"), ("'lara'", "'lora'")),
    (("train", "{out}"), ("out",)),
    (("compare", "{recipe}"), ("unknown key 'model'", "known: arms, base")),
    (("compare", "{compare}"), ("'arm' is missing", "'old-blocks', 'full'")),
    (("eval", "{base}", "--out", "{out}", "--data", "general"), ("name=folder",)),
    (("eval", "{base}", "--out", "{out}"), ("data",)),
    (("report", "{base}", "--out", "{out}"), ("base",)),
    (("demo", "--out", "{base}"), ("already exists",)),
    (("learn", "{base}-none", "stdlib"), ("base-none",)),
    (("learn", "{base}", "stdlib", "--keep", "2"), ("2",)),
]


@pytest.mark.parametrize(("words", "expected"), REFUSED, ids=lambda part: " ".join(part)[:60])
def test_bad_input_is_one_line_and_leaves_nothing(
    words: tuple[str, ...], expected: tuple[str, ...], ground: Path, tmp_path: Path, say
) -> None:
    places = {"base": ground / "base", "texts": ground / "domain.jsonl", "out": tmp_path / "out"}
    for name, content in {
        "empty": b"",
        "latin": "caf\xe9".encode("latin1"),
        "recipe": b"model: x\nout: y\ndata: {domain: z}\ndomain_tokens: 5\nretnetion: {replay: 0.5}\n",
        "compare": b"base: x\nout: y\ndata: {domain: z}\ndomain_tokens: 5\narms: [{name: a, lrs: [1e-3]}]\n",
        "wrong": b"model: x\nout: y\ndata: {domain: z}\ndomain_tokens: many\n",
    }.items():
        places[name] = tmp_path / f"{name}{'.yaml' if b': ' in content else '.txt'}"
        places[name].write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    line = one_line(say(*(word.format(**places) for word in words)))
    for part in expected:
        assert part in line
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_where_an_error_came_from(ground: Path) -> None:
    from blockexpand.errors import PlanError

    with pytest.raises(PlanError, match="blocks is 0"):
        run(["plan", str(ground / "base"), "--blocks", "0", "--debug"])


def test_json_is_all_that_standard_output_holds(ground: Path, say) -> None:
    code, out, _ = say("plan", ground / "base", "--blocks", 2, "--json")
    assert code == 0
    assert json.loads(out)["format"] == "blockexpand.plan"


def test_version_and_help(say) -> None:
    from blockexpand import __version__

    assert say("--version")[1].strip() == __version__
    assert "Prove that the deeper checkpoint is the base" in say("--help")[1]
    assert say()[0] == 0
