"""Programs that speak OpenAI's API to the server: our own agent and eval, and lm-evaluation-harness's clients."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tqdm
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from blockexpand.cli.main import run
from blockexpand.evaluation.endpoint import Endpoint, Request
from blockexpand.packs.in_memory import only
from blockexpand.records.agents import read_agent
from blockexpand.records.evaluation import read_samples
from blockexpand.sandbox import describe
from blockexpand.serving import Speaker, open_speaker
from blockexpand.serving.likelihoods import text_of
from helpers import edit_config, load
from lm_helpers import make_lm
from packs_ground import make_pack, make_trained
from serving_ground import SAID, Served, served

SUITE = """\
format: blockexpand.suite
format_version: 1
suite: mine
version: 1
side: domain
data: .
tasks:
  - {kind: answer, task: words, question: "{{text}} the", answer: word, max_new_tokens: 4}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that conversations of several turns fit into, in float32, so that the order of sums decides nothing."""
    folder = edit_config(make_lm(tmp_path_factory.mktemp("served") / "m"), max_position_embeddings=4096)
    load(folder).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pack(model: Path) -> Path:
    trained = make_trained(model, model.parent / "t", 0, by=0.3, after=(1,))
    return make_pack(trained, model.parent / "code.pack", "code").folder


@pytest.fixture(scope="module")
def large(model: Path, pack: Path) -> Iterator[Served]:
    with served(open_speaker(model, [pack], plain=True), key="sk-ours") as made:
        yield made


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-ours")


@pytest.mark.skipif(describe().startswith("sandbox: none"), reason=describe())
@pytest.mark.usefixtures("ours")
def test_agent_plays_the_same_episodes(large: Served, model: Path, pack: Path, tmp_path: Path) -> None:
    """With a pack on, as with that pack on the loaded model; both choose greedily."""
    asked = ["--puzzles", "3", "--max-tokens", "8", "--no-example", "--turns", "2"]
    address = ["--endpoint", large.url, "--key-variable", "MY_KEY", "--timeout", "300"]
    assert run(["agent", "code", *address, *asked, "--out", str(tmp_path / "served")]) == 0
    assert run(["agent", str(model), "--pack", str(pack), *asked, "--out", str(tmp_path / "loaded")]) == 0
    assert run(["agent", "base", *address, *asked, "--out", str(tmp_path / "base")]) == 0
    outputs = {
        name: [[turn.output for turn in episode.turns] for episode in read_agent(tmp_path / name).episodes]
        for name in ("served", "loaded", "base")
    }
    assert outputs["served"] == outputs["loaded"] != outputs["base"]
    assert all(any(turns) for turns in outputs["served"])


@pytest.mark.usefixtures("ours")
def test_eval_writes_the_same_answers(large: Served, model: Path, pack: Path, tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    rows = [{"text": f"the {word} sees", "word": word} for word in ("cat", "dog", "bird", "stone")]
    (tmp_path / "words" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(SUITE)
    suite = ["--suite", str(tmp_path / "mine.yaml")]
    address = ["--endpoint", large.url, "--key-variable", "MY_KEY"]
    assert run(["eval", "code", *suite, *address, "--out", str(tmp_path / "served")]) == 0
    assert run(["eval", str(model), "--pack", str(pack), "--chat", *suite, "--out", str(tmp_path / "loaded")]) == 0
    found = [[sample.output for sample in read_samples(tmp_path / name, "words")] for name in ("served", "loaded")]
    assert len(found[0]) == 4
    assert found[0] == found[1]
    assert any(output != found[0][0] for output in found[0])


def test_our_client_and_server_meet(server: Served, speaker: Speaker) -> None:
    """Whatever is refused is an error of the answer, at once; what is answered is counted."""
    endpoint = Endpoint(server.url, "a", retries=4)
    endpoint.check()
    found = endpoint.ask(Request(messages=[{"role": "user", "content": "the cat"}], max_tokens=6, stop=("zzz",)))
    assert found.text == server.chat("the cat", model="a", max_tokens=6).data["choices"][0]["message"]["content"]
    assert (found.prompt_tokens, found.completion_tokens) == (5, 6)
    long = endpoint.ask(Request(messages=[{"role": "user", "content": "cat " * 300}], max_tokens=6))
    assert long.error is not None
    assert long.error.startswith(
        "HTTP 400: the messages and the answer come to 303 + 6 = 309 tokens, and the model reads 128"
    )
    endpoint.close()


_USED_OF_TENACITY = ("retry", "stop_after_attempt", "wait_exponential")


class RetryError(Exception):
    """tenacity's."""


@pytest.fixture(scope="module")
def harness() -> Iterator[Any]:
    """lm-eval's clients of OpenAI's API. tenacity, which lm-eval does not install by itself, is stood in for where it
    is missing, by one that tries once."""
    with pytest.MonkeyPatch.context() as changed:
        if importlib.util.find_spec("tenacity") is None:
            fake: Any = types.ModuleType("tenacity")
            fake.__spec__ = importlib.machinery.ModuleSpec("tenacity", None)
            fake.RetryError, fake.retry = RetryError, lambda **_: lambda function: function
            fake.stop_after_attempt = fake.wait_exponential = lambda *_, **__: None
            changed.setitem(sys.modules, "tenacity", fake)
        from lm_eval.models import api_models, openai_completions

        # Where it was imported before, without these.
        missing = {name: vars(sys.modules["tenacity"])[name] for name in ("RetryError", *_USED_OF_TENACITY)}
        for name, value in (missing | {"tqdm": tqdm.tqdm}).items():
            changed.setattr(api_models, name, value, raising=False)
        yield openai_completions


def instances(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=n) for n, one in enumerate(arguments)]  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("name", ["a", "base"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_lm_eval_reads_the_same_likelihoods(
    harness: Any, server: Served, speaker: Speaker, tiny: Path, name: str, batch_size: int
) -> None:
    questions = [(text[: text.rindex(" ")], text[text.rindex(" ") :]) for text in SAID]
    questions += [("the cat sat on", f" {word}") for word in ("a", "mat", "the", "rain")]
    made = {"model": name, "tokenizer_backend": "huggingface", "tokenizer": str(tiny), "max_length": 100}
    theirs = harness.LocalCompletionsAPI(base_url=f"{server.url}/completions", batch_size=batch_size, **made)
    found = theirs.loglikelihood(instances("loglikelihood", questions), disable_tqdm=True)
    with only(speaker.model, *([] if name == "base" else [name])):
        loaded = HFLM(pretrained=speaker.model, tokenizer=speaker.tokenizer, batch_size=1)  # ty: ignore[invalid-argument-type]
        expected = loaded.loglikelihood(instances("loglikelihood", questions), disable_tqdm=True)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]


def test_lm_eval_reads_what_is_greedy(harness: Any, large: Served, model: Path) -> None:
    """Also at an address that wants a key."""
    header = {"Authorization": "Bearer sk-ours"}
    made = {"model": "code", "tokenizer_backend": "huggingface", "tokenizer": str(model), "header": header}
    client = harness.LocalCompletionsAPI(base_url=f"{large.url}/completions", **made)
    read = client.tok_encode("the cat sees")
    asked = {"model": "code", "prompt": read, "max_tokens": 1, "temperature": 0, "logprobs": 2}
    top = large.ask("/v1/completions", asked, **header).data["choices"][0]["logprobs"]["top_logprobs"][0]
    tokenizer = open_speaker(model, plain=True).tokenizer
    by_text = {text_of(token, tokenizer): token for token in range(len(tokenizer))}
    best, second = (by_text[text] for text in sorted(top, key=lambda text: -top[text]))
    found = client._loglikelihood_tokens([(None, read, [best]), (None, read, [second])])
    assert [is_greedy for _, is_greedy in found] == [True, False]
    assert [nats for nats, _ in found] == pytest.approx(sorted(top.values(), reverse=True))


def test_lm_eval_lets_it_write(harness: Any, server: Served, tiny: Path) -> None:
    settings = {"until": ["zzz"], "max_gen_toks": 6, "do_sample": False}
    text = harness.LocalCompletionsAPI(
        base_url=f"{server.url}/completions", model="a", tokenizer_backend="huggingface", tokenizer=str(tiny)
    )
    (found,) = text.generate_until(instances("generate_until", [("the cat sat", settings)]), disable_tqdm=True)
    assert found == server.complete("the cat sat", model="a", max_tokens=6).data["choices"][0]["text"]
    chat = harness.LocalChatCompletion(base_url=f"{server.url}/chat/completions", model="a")
    turns = chat.apply_chat_template([{"role": "user", "content": "the cat sat"}])
    (found,) = chat.generate_until(instances("generate_until", [(turns, settings)]), disable_tqdm=True)
    assert found == server.chat("the cat sat", model="a", max_tokens=6).data["choices"][0]["message"]["content"]
