"""The conversation: commands, what is remembered, who answers; refusals leave it as it was."""

from __future__ import annotations

import io
import json
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from rich.console import Console

from blockexpand import packs
from blockexpand.cli.main import run
from blockexpand.errors import ChatError, CheckpointError, CorpusError, PackError, RecordError
from blockexpand.live import bypass
from blockexpand.serving import Conversation, Sampling, Speaker, open_speaker, talk
from blockexpand.serving.facts import gather_facts
from blockexpand.serving.speaker import Who
from blockexpand.serving.terminal import greet, typed
from blockexpand.serving.text_stream import TextStream
from serving_ground import GREEDY, answered

ASKED = [{"role": "user", "content": "the cat sat"}]


def said(speaker: Speaker, **more: object) -> str:
    return answered(speaker, ASKED, **more)


def expected(talker: Speaker) -> str:
    prompt = talker.tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    ids = talker.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    made = talker.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    return talker.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_answers_are_the_models_and_the_bases(talker: Speaker) -> None:
    assert said(talker).split() == expected(talker).split()
    with bypass(talker.model):
        base = expected(talker)
    assert said(talker, as_base=True).split() == base.split()
    assert base.split() != expected(talker).split()


def test_the_same_seed_says_the_same_and_another_does_not(talker: Speaker) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn = [answered(talker, ASKED, Sampling(temperature=2, top_p=1, max_tokens=12, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert answered(talker, ASKED, Sampling(temperature=2, top_k=1, max_tokens=12, seed=1)) == said(talker)
    assert torch.equal(torch.get_rng_state(), before), "the rest of the process draws as it would"


def test_leaving_an_answer_stops_it(talker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    long, stopped = Sampling(temperature=0, max_tokens=80), threading.Event()
    stopped.set()
    assert len(answered(talker, ASKED, long, stopped).split()) <= 1
    take, left = TextStream._take, threading.Event()

    def slowly(self: TextStream, token: int) -> None:
        take(self, token)
        if len(self.tokens) == 3:
            assert left.wait(30)

    leave = TextStream.leave
    monkeypatch.setattr(TextStream, "_take", slowly)
    monkeypatch.setattr(TextStream, "leave", lambda self: (leave(self), left.set()))
    prompt, stream = talker.begin(ASKED, long)
    answer = talker.write(prompt, long, Who(), stream)
    next(answer)
    answer.close()
    assert len(stream.tokens) <= 3, "it may be left before the third"
    assert stream.finish is None


def test_the_oldest_turns_go_when_the_context_is_short(talker: Speaker) -> None:
    context = talker.model.config.max_position_embeddings
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": "the cat sat on a mat " * 3} for n in range(context // 8)
    ]
    ids, room = talker._cut([{"role": "system", "content": "a dog"}, *turns, *ASKED], GREEDY)
    assert len(ids) + room <= context
    assert talker.tokenizer.decode(ids).count("dog") == 1
    with pytest.raises(ChatError, match=f"{context:,}"):
        talker._cut([{"role": "user", "content": "cat " * (context + 5)}], GREEDY)


def conversation_of(talker: Speaker, lines: str, **more: object) -> tuple[Conversation, str]:
    conversation = Conversation(talker, GREEDY, **more)  # ty: ignore[invalid-argument-type]
    file = io.StringIO()
    talk(conversation, lines.splitlines(keepends=True), Console(file=file, width=40))
    return conversation, file.getvalue()


def test_a_conversation_remembers_and_forgets(talker: Speaker) -> None:
    conversation, text = conversation_of(talker, "the cat sat\n\na dog ran\n")
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"] * 2
    assert text.splitlines()[0].split() == said(talker).split()
    assert conversation.command("/reset") == "forgotten"
    assert conversation.turns == []


def test_base_switches_there_and_back_with_a_history_of_its_own(talker: Speaker) -> None:
    conversation, text = conversation_of(talker, "the cat sat\n/base\nthe cat sat\n/base\n/quit\nnot reached\n")
    mine, first, base, second, bye = text.splitlines()
    assert (first, second, bye) == ("answering as the base", "answering as the expanded model", "bye")
    assert base.split() == said(talker, as_base=True).split(), "the base was asked the first question, too"
    assert mine.split() == said(talker).split()
    assert len(conversation.turns) == 2


def test_an_answer_that_is_cut_says_so_and_who_answers(talker: Speaker) -> None:
    file = io.StringIO()
    talk(
        Conversation(talker, GREEDY), ["the cat sat"], Console(file=file, width=80, force_terminal=True, no_color=True)
    )
    assert "run:" in file.getvalue()
    assert "cut at 12 tokens" in file.getvalue()
    assert "cut" not in conversation_of(talker, "the cat sat\n")[1], "a pipe has the answers alone"


def test_settings_and_system_prompt(talker: Speaker) -> None:
    conversation, text = conversation_of(
        talker, "/system a dog\n/set max_tokens=3\n/set seed=4\n/set seed=none\n/help\n"
    )
    assert conversation.system == "a dog"
    assert conversation.sampling == Sampling(temperature=0, max_tokens=3)
    assert "max_tokens=3, temperature=0, top_p=0.95, top_k=0, seed=4" in text
    assert "/packs [NAMES]" in text
    assert conversation.command("/system") == "the model is told nothing first"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/bsae", "there is no command '/bsae'; did you mean 'base'?"),
        ("/base now", "/base takes nothing, was given 'now'"),
        ("/set hot", "/set was given 'hot', expected NAME=VALUE"),
        ("/set temperature=warm", "temperature is 'warm', expected a number"),
        ("/set temperature=nan", "temperature is nan, expected 0"),
        ("/set top_p=0", "top_p is 0.0, expected more than 0"),
        ("/set max_tokens=0", "max_tokens is 0, expected 1 to 100000"),
    ],
)
def test_what_is_not_understood_is_said_and_changes_nothing(talker: Speaker, line: str, message: str) -> None:
    conversation, text = conversation_of(talker, f"{line}\n/set max_tokens=2\n")
    assert text.startswith(message)
    assert conversation.sampling == Sampling(temperature=0, max_tokens=2)
    assert not conversation.as_base


def test_a_model_without_a_base_says_so(tiny: Path) -> None:
    plain = open_speaker(tiny)
    assert conversation_of(plain, "/base\n")[1].startswith("tiny holds no base")
    with pytest.raises(ChatError, match="tiny holds no base"):
        said(plain, as_base=True)
    assert conversation_of(plain, "/packs\n")[1] == "packs: none\n"
    with pytest.raises(PackError, match="has no packs"):
        plain.switch_on(["code"])


def test_a_model_without_a_template_is_refused_or_completes(tiny: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(tiny, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(CorpusError, match="bare has no chat template"):
        open_speaker(bare)
    plain = open_speaker(bare, plain=True)
    ids = plain.tokenizer("the cat sat", return_tensors="pt")["input_ids"]
    made = plain.model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert said(plain).split() == plain.tokenizer.decode(made, skip_special_tokens=True).split()
    with pytest.raises(CheckpointError):
        open_speaker(tmp_path)


def test_a_run_is_its_model_in_the_type_of_its_files(expanded: Path) -> None:
    opened = open_speaker(expanded.parent)
    assert opened.facts.name == "run"
    assert {p.dtype for p in opened.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in open_speaker(expanded, dtype="float32").model.parameters()} == {torch.float32}


def test_packs_are_switched_live(expanded: Path, tiny: Path, tmp_path: Path) -> None:
    packs.extract(expanded, tmp_path / "code")
    speaker = open_speaker(tiny, [tmp_path / "code"])
    assert speaker.facts.blocks == open_speaker(expanded).facts.blocks
    _, text = conversation_of(
        speaker, "/packs\nthe cat sat\n/packs none\n/reset\nthe cat sat\n/packs code\n/reset\nthe cat sat\n/packs cod\n"
    )
    on, first, off, _, base, again, _, last, wrong = text.splitlines()
    assert (on, off, again) == ("packs: code (on)", "packs: code (off)", "packs: code (on)")
    assert first == last != base
    assert base.split() == said(speaker, as_base=True).split()
    assert "no pack 'cod'" in wrong
    attached = tmp_path / "attached"
    packs.attach(tiny, [tmp_path / "code"], attached)
    assert said(open_speaker(attached)) == said(speaker)
    assert open_speaker(attached).packs == ("code",)


def test_what_is_known_is_read_from_records(expanded: Path, tmp_path: Path) -> None:
    facts = open_speaker(expanded).facts
    assert facts.blocks == ("", "", facts.blocks[2])
    assert facts.measured == ("this run: gain +0.750 nats a token on the domain, forgetting +0.75% of general loss",)
    found = gather_facts(
        tmp_path, (), [("code", {"run": {"base": {"domain": 2}, "best": {"domain": 1, "rise": -0.01}}}), ("x", None)]
    )
    assert found.measured == ("pack code: gain +1.000 nats a token on the domain, forgetting -1.00% of general loss",)
    (tmp_path / "model").mkdir()
    for content in ("{}", "[]", '{"best": 3}', '{"best": {}, "base": {}}'):
        (tmp_path / "blockexpand.json").write_text(content)
        assert gather_facts(tmp_path / "model", (), []).measured == ()
    (tmp_path / "blockexpand.json").write_text("{")
    with pytest.raises(RecordError, match=r"blockexpand.json cannot be read: "):
        gather_facts(tmp_path / "model", (), [])


def test_the_log_is_kept_only_where_asked(talker: Speaker, tmp_path: Path) -> None:
    conversation_of(talker, "the cat sat\n", log=tmp_path / "log", system="a dog")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["content"].split() for line in lines[:2]] == [["a", "dog"], ["the", "cat", "sat"]]
    assert len(lines) == 3
    with pytest.raises(ChatError, match="the log .*/no/log cannot be written: No such file"):
        Conversation(talker, log=tmp_path / "no" / "log")


def test_the_greeting_and_the_prompt(talker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console, conversation = Console(file=file, width=100), Conversation(talker)
    greet(conversation, console)
    assert file.getvalue().startswith("run: 3 blocks, 1 of them new\nthis run: gain +0.750")
    answers = iter(["one", "two"])
    asked = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(console, "input", answer)
    lines = typed(conversation, console)
    assert next(lines) == "one"
    conversation.as_base = True
    assert list(lines) == ["two"]
    assert asked[0] == "[bold]>[/] "
    assert asked[1:] == ["[bold]base>[/] "] * 2


def test_an_interrupt_stops_the_answer_alone(talker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console, conversation = Console(file=file), Conversation(talker, GREEDY)
    times = iter([None, KeyboardInterrupt])

    def flush() -> None:
        if (found := next(times, None)) is not None:
            raise found

    monkeypatch.setattr(file, "flush", flush)
    talk(conversation, ["the cat sat", "/base"], console)
    assert "(stopped)" in file.getvalue()
    assert file.getvalue().endswith("answering as the base\n")


def test_the_verb_reads_a_pipe(
    expanded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat sat\n/base\n/quit\n"))
    assert run(["chat", str(expanded), "--temperature", "0", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["answering as the base", "bye"]
    assert run(["chat", str(expanded), "--top-p", "3"]) == 2
    assert "top_p is 3.0, expected more than 0, at most 1" in capsys.readouterr().err
