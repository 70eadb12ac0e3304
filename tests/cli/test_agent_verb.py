"""`agent` from the command line: a loaded model, one behind an address, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockexpand.cli.main import run
from blockexpand.sandbox import describe
from helpers import edit_config
from lm_helpers import make_lm
from servers import Raw, closed_port_url, completion, failure, serving

walls = pytest.mark.skipif(describe().startswith("sandbox: none"), reason=describe())


def refused(capsys: pytest.CaptureFixture[str], *tokens: str | Path) -> str:
    assert run(["agent", *map(str, tokens)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@walls
def test_a_loaded_model_is_counted_by_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = edit_config(make_lm(tmp_path / "m"), max_position_embeddings=4096)
    arguments = [str(model), "--out", str(tmp_path / "run"), "--puzzles", "4", "--max-tokens", "8", "--no-example"]
    assert run(["agent", *arguments, "--turns", "1", "--turns", "2"]) == 0
    shown = capsys.readouterr().out
    assert "      1  all                 0  4        0.0%  0.0% to 49.0%" in shown
    assert "out of turns 4" in shown
    assert str(tmp_path / "run" / "episodes.jsonl") in shown
    record = json.loads((tmp_path / "run" / "blockexpand.json").read_text())
    assert record["format"] == "blockexpand.agent"
    assert record["settings"]["speaker"]["digest"].startswith("sha256:")
    assert record["settings"]["speaker"]["packs"] == {}
    assert record["ends"] == {"1": {"turns": 4}, "2": {"turns": 4}}


@walls
def test_a_server_is_asked_with_the_key_of_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-hidden")
    tasks = tmp_path / "gsm8k.jsonl"
    tasks.write_text(json.dumps({"id": 1, "prompt": "2 + 3?", "reference": "5"}) + "\n")

    def reply(body: dict) -> Raw:
        advising = "watch a learner" in body["messages"][0]["content"]
        turn = sum(m["role"] == "assistant" for m in body["messages"])
        return completion("add them" if advising else ["?", "<solution>5</solution>"][min(turn, 1)])

    with serving(reply) as server:
        address = [
            "--endpoint", server.url, "--model", "big", "--key-variable", "MY_KEY", "--feedback", "informed",
            "--feedback-model", "teacher", "--feedback-endpoint", server.url,
        ]  # fmt: skip
        arguments = [*address, "--tasks", str(tasks), "--turns", "2", "--out", str(tmp_path / "run"), "--json"]
        assert run(["agent", *arguments]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(r["budget"], r["num_solved"]) for r in shown["rates"]] == [(2, 1)]
    assert shown["settings"]["speaker"] == {"model": "big", "endpoint": server.url, "digest": None, "packs": {}}
    assert shown["settings"]["adviser"]["model"] == "teacher"
    assert {h.get("authorization") for h in server.headers} == {"Bearer sk-hidden", None}
    assert {body["model"] for body in server.asked} == {"big", "teacher"}
    written = b"".join(p.read_bytes() for p in (tmp_path / "run").iterdir())
    assert b"sk-hidden" not in written
    assert b"add them" in written


def test_what_agent_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "run")
    assert "agent needs MODEL; expected" in refused(capsys, *out)
    assert "agent needs --out; expected" in refused(capsys, "m")
    assert "--feedback blind with --feedback-model None" in refused(capsys, "m", *out, "--feedback", "blind")
    assert "--feedback none with --feedback-model t" in refused(capsys, "m", *out, "--feedback-model", "t")
    assert "(--key-variable K) is for a server" in refused(capsys, "m", *out, "--key-variable", "K")
    assert "there is no task" in refused(capsys, make_lm(tmp_path / "m"), *out, "--puzzles", "0")
    assert "cannot make -3 puzzles" in refused(capsys, "m", *out, "--puzzles", "-3")
    behind = ("--endpoint", "http://localhost:1", "--pack", "p")
    assert "--pack p is for a model in a folder" in refused(capsys, "m", *out, *behind)
    assert "none" in refused(capsys, tmp_path / "m", *out, "--pack", tmp_path / "none")
    unset = ("--endpoint", "http://localhost:1", "--key-variable", "NO_SUCH_KEY")
    assert "environment variable NO_SUCH_KEY is not set" in refused(capsys, "m", *out, *unset)
    url = closed_port_url()
    assert f"cannot reach {url}" in refused(capsys, "m", *out, "--endpoint", url)
    with serving([], models=failure(401, "who are you?")) as server:
        assert "refuses the key (HTTP 401: who are you?)" in refused(capsys, "m", *out, "--endpoint", server.url)
    assert not (tmp_path / "run").exists()


def test_judge_compares_models_behind_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-judge")
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "category": "a", "turns": ["Hi?"]}) + "\n")

    def reply(body: dict) -> Raw:
        text = body["messages"][0]["content"]
        if body["model"] in ("ours", "theirs"):
            return completion(body["model"])
        return completion("Verdict: " + ("A" if text.index("ours") < text.index("theirs") else "B"))

    with serving(reply) as server:
        models = [f"ours@{server.url}", f"theirs@{server.url}", "--judge", f"big@{server.url}"]
        files = ["--questions", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "run")]
        assert run(["judge", *models, *files, "--judge-key-variable", "JUDGE_KEY"]) == 0
    assert "  all              1     0       0       0    100.0%  20.7% to 100.0%" in capsys.readouterr().out
    assert {h.get("authorization") for h in server.headers} == {None, "Bearer sk-judge"}
    record = json.loads((tmp_path / "run" / "blockexpand.json").read_text())
    assert record["settings"]["first"]["endpoint"] == server.url


def test_judgements_that_are_missing_are_said_and_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"question_id": 1, "category": "c", "turns": ["2 + 3?"]}) + "\n")
    with serving(lambda _: completion("hard to say")) as server:
        words = [
            "judge",
            f"a@{server.url}",
            f"b@{server.url}",
            "--judge",
            f"big@{server.url}",
            "--questions",
            str(questions),
        ]
        assert run([*words, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().out
    assert "2 x no line with a verdict" in said
    assert "--resume" in said
