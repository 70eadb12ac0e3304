"""What a client is answered: the model's own words under each name, streamed or whole, with the right counts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoTokenizer

from blockexpand.live import bypass
from blockexpand.packs import attach_on_disk
from blockexpand.packs.in_memory import only
from blockexpand.packs.route import route
from blockexpand.serving import Speaker, open_speaker
from helpers import load
from serving_ground import SAID, Served, served

WORDS = {"tiny": ("a", "b"), "base": (), "a": ("a",), "b": ("b",), "all": ("a", "b")}
"""Which packs answer under which name."""


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def generated(speaker: Speaker, text: str, num: int, *, chat: bool = True) -> list[int]:
    """The greedy tokens after a text, by transformers alone."""
    asked = [{"role": "user", "content": text}]
    if chat:
        text = str(speaker.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    ids = speaker.tokenizer(text, add_special_tokens=not chat, return_tensors="pt")["input_ids"]
    made = speaker.model.generate(ids, max_new_tokens=num, do_sample=False, pad_token_id=0)
    return made[0, ids.shape[1] :].tolist()


def test_the_names(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == [*WORDS, "auto"]
    assert {(model.object, model.owned_by) for model in models} == {("model", "blockexpand")}
    assert client.models.retrieve("a").id == "a"
    with pytest.raises(openai.NotFoundError, match="there is no model 'c' here"):
        client.models.retrieve("c")


def test_each_name_says_what_generate_says(client: openai.OpenAI, speaker: Speaker) -> None:
    said = {}
    for name, packs in WORDS.items():
        answer = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "the cat sat"}], temperature=0, max_tokens=12
        )
        with only(speaker.model, *packs):
            expected = generated(speaker, "the cat sat", 12)
        (choice,) = answer.choices
        assert choice.message.content == speaker.tokenizer.decode(expected, skip_special_tokens=True)
        assert (choice.finish_reason, choice.message.role, answer.model) == ("length", "assistant", name)
        assert choice.model_dump()["blockexpand"] == {"packs": list(packs)}
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 12, 18)
        said[packs] = choice.message.content
    assert len(set(said.values())) == 4, "each set of packs has words of its own"


def test_the_attached_folder_says_the_same(server: Served, tiny: Path, packs: list[Path], tmp_path: Path) -> None:
    """As transformers alone loads what `pack attach` wrote; and served itself, it has the same names."""
    folder = tmp_path / "attached"
    attach_on_disk(tiny, packs, folder)
    plain: Any = load(folder, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the cat sat", return_tensors="pt")["input_ids"]
    expected = plain.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    asked = {"model": "all", "max_tokens": 20, "logprobs": 0}
    with served(open_speaker(folder, plain=True, dtype="float32")) as attached:
        assert list(WORDS)[1:] == [entry["id"] for entry in attached.ask("/v1/models").data["data"]][1:-1]
        said = [one.complete("the cat sat", **asked).data["choices"][0] for one in (server, attached)]
    assert said[0] == said[1]
    assert tokenizer.convert_tokens_to_ids(said[0]["logprobs"]["tokens"]) == expected


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_an_expanded_model_and_the_base_inside(expanded: Path, name: str) -> None:
    speaker = open_speaker(expanded, plain=True)
    with served(speaker, name="tiny") as server, bypass(speaker.model) if name == "base" else contextlib.nullcontext():
        expected = speaker.tokenizer.decode(generated(speaker, "a dog", 8), skip_special_tokens=True)
    with served(speaker, name="tiny") as server:
        said = server.chat("a dog", model=name)
        assert [entry["id"] for entry in server.ask("/v1/models").data["data"]] == ["tiny", "base"]
    assert said.data["choices"][0]["message"]["content"] == expected
    assert "blockexpand" not in said.text
    assert "x-blockexpand-packs" not in said.headers


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, server: Served) -> None:
    fields: dict[str, Any] = {"model": "a", "temperature": 0, "max_tokens": 10}
    whole = server.chat("the cat sat", **fields).data
    said = server.chat("the cat sat", **fields, stream=True)
    assert said.headers["x-blockexpand-packs"] == "a"
    assert said.text.endswith("data: [DONE]\n\n")
    first, *middle, last = said.events
    assert first["choices"][0] | {"delta": {}} == last["choices"][0] | {
        "delta": {}, "finish_reason": None, "blockexpand": {"packs": ["a"]}
    }  # fmt: skip
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "length"
    assert len(middle) == 10, "a piece for each token"
    assert len({event["id"] for event in said.events}) == 1
    assert {event["object"] for event in said.events} == {"chat.completion.chunk"}
    assert all("usage" not in event for event in said.events)
    texts = [event["choices"][0]["delta"]["content"] for event in middle]
    assert "".join(texts) == whole["choices"][0]["message"]["content"]

    stream = client.chat.completions.create(
        **fields,
        messages=[{"role": "user", "content": "the cat sat"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "".join(texts)
    assert [c.usage is None for c in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.model_dump(include={"prompt_tokens", "completion_tokens"}) == {
        "prompt_tokens": 6, "completion_tokens": 10
    }  # fmt: skip


def test_completions_of_texts_and_tokens(client: openai.OpenAI, server: Served, speaker: Speaker) -> None:
    ids = speaker.tokenizer("the cat sat")["input_ids"]
    one = client.completions.create(model="a", prompt="the cat sat", temperature=0)
    assert one.usage is not None
    assert one.usage.completion_tokens == 16, "of a completion that does not say"
    alike = client.completions.create(model="a", prompt=[ids, ids], temperature=0)
    assert [(c.index, c.text) for c in alike.choices] == [(0, one.choices[0].text), (1, one.choices[0].text)]
    assert alike.usage is not None
    assert alike.usage.completion_tokens == 32
    two = client.completions.create(model="a", prompt=["the cat sat", "a dog"], temperature=0)
    other = client.completions.create(model="a", prompt=["a dog"], temperature=0)
    assert [c.text for c in two.choices] == [one.choices[0].text, other.choices[0].text]
    assert client.completions.create(model="a", prompt=ids, temperature=0).choices[0].text == one.choices[0].text
    echoed = server.complete("the cat sat", model="a", max_tokens=16, echo=True).data["choices"][0]
    assert echoed["text"] == "the cat sat" + one.choices[0].text
    events = server.complete(["the cat sat", "a dog"], model="a", max_tokens=16, stream=True).events
    for index, choice in enumerate(two.choices):
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert "".join(one["text"] for one in mine) == choice.text
        assert mine[-1]["finish_reason"] == "length"


def test_how_answers_end(server: Served, speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = server.chat("the cat sat", model="a").data["choices"][0]["message"]["content"]
    words = whole.split()
    stop = next(word for word in words[2:] if word not in words[:2])
    before = whole[: whole.index(stop)]
    for stops in (stop, [stop], ["no such word", stop], [whole[-3:], stop]):
        said = server.chat("the cat sat", model="a", stop=stops).data
        assert said["choices"][0]["message"]["content"] == before
        assert said["choices"][0]["finish_reason"] == "stop"
        assert said["usage"]["completion_tokens"] <= words.index(stop) + 1, "it ends there and then"
    events = server.chat("the cat sat", model="a", stop=stop, stream=True).events
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == before
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    end = speaker.tokenizer.convert_tokens_to_ids(stop)
    assert speaker.model.generation_config is not None
    monkeypatch.setattr(speaker.model.generation_config, "eos_token_id", [end])
    said = server.chat("the cat sat", model="a").data
    assert (said["choices"][0]["finish_reason"], said["usage"]["completion_tokens"]) == ("stop", words.index(stop))
    assert said["choices"][0]["message"]["content"].split() == words[: words.index(stop)]
    before = server.complete("the cat sat", model="a", logprobs=0).data["choices"][0]["logprobs"]["tokens"]
    monkeypatch.setattr(
        speaker.model.generation_config, "eos_token_id", speaker.tokenizer.convert_tokens_to_ids(before[-1])
    )
    ended = server.complete("the cat sat", model="a", logprobs=0).data["choices"][0]
    assert ended["logprobs"]["tokens"] == before[: before.index(before[-1]) + 1], "with the token that ended it"
    assert ended["finish_reason"] == "stop"
    first = speaker.tokenizer.convert_tokens_to_ids(words[0])
    monkeypatch.setattr(speaker.model.generation_config, "eos_token_id", first)
    nothing = server.chat("the cat sat", model="a")
    assert nothing.data["choices"][0]["message"]["content"] == ""
    assert nothing.headers["x-blockexpand-packs"] == "a"


def test_without_a_limit_there_is_the_context(server: Served, speaker: Speaker) -> None:
    said = server.chat("the cat sat", model="base", max_tokens=None).data
    assert said["usage"]["total_tokens"] == speaker.model.config.max_position_embeddings == speaker.context
    newer = server.chat("the cat sat", model="base", max_tokens=None, max_completion_tokens=3).data
    assert newer["usage"]["completion_tokens"] == 3


def test_drawing(server: Served) -> None:
    drawn = [
        server.chat("the cat", model="a", temperature=2, top_p=1, seed=seed, max_tokens=12).data["choices"][0]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    narrow = server.chat("the cat", model="a", temperature=2, top_p=1e-6, seed=5).data["choices"][0]
    assert narrow == server.chat("the cat", model="a").data["choices"][0]
    many = {
        server.chat("the cat", model="a", temperature=None, max_tokens=12).text.split('"content"')[1] for _ in range(4)
    }
    assert len(many) > 1, "OpenAI's own temperature where none is given, not the likeliest"


def test_roles_and_parts(server: Served) -> None:
    def said(*messages: dict[str, Any]) -> dict[str, Any]:
        asked = {"model": "a", "messages": messages, "temperature": 0, "max_tokens": 4}
        return server.ask("/v1/chat/completions", asked).data

    system, user = {"role": "system", "content": "a dog"}, {"role": "user", "content": "the cat\nsat"}
    parts = [{"type": "text", "text": "the cat"}, {"type": "text", "text": "sat"}]
    answer = said(system, user)
    assert answer["usage"]["prompt_tokens"] > said(user)["usage"]["prompt_tokens"]
    for other in (said({**system, "role": "developer"}, user), said(system, {"role": "user", "content": parts})):
        assert (other["choices"], other["usage"]) == (answer["choices"], answer["usage"])
    before = {"role": "assistant", "content": "ran", "refusal": None, "tool_calls": None, "annotations": []}
    assert said(user, before, user)["usage"]["prompt_tokens"] > answer["usage"]["prompt_tokens"]


def test_packs_are_chosen_for_each_request(server: Served, speaker: Speaker) -> None:
    chosen = set()
    for text in SAID:
        tokens = speaker.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = route(speaker.model, tokens)
        said = server.chat(text, model="auto")
        name = "+".join(found.names) or "base"
        fixed = server.chat(text, model=name)
        choice = said.data["choices"][0]
        assert said.headers["x-blockexpand-packs"] == fixed.headers["x-blockexpand-packs"] == name
        assert choice.pop("blockexpand") == {
            "packs": list(found.names),
            "nats": {"+".join(names) or "base": pytest.approx(nats, abs=1e-4) for names, nats in found.nats.items()},
        }
        assert choice == {key: v for key, v in fixed.data["choices"][0].items() if key != "blockexpand"}
        streamed = server.chat(text, model="auto", stream=True)
        assert streamed.headers["x-blockexpand-packs"] == name
        assert streamed.events[0]["choices"][0]["blockexpand"]["packs"] == list(found.names)
        chosen.add(name)
    assert chosen == {"a", "b", "base"}, "another text, other packs"


def test_only_what_the_person_said_chooses(server: Served) -> None:
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate((SAID[0], SAID[2], SAID[1]))
    ]
    asked = {"model": "auto", "temperature": 0, "max_tokens": 4}
    system = {"role": "system", "content": SAID[2]}
    both = server.ask("/v1/chat/completions", asked | {"messages": [system, *turns]}).data
    alone = server.chat(f"{SAID[0]}\n{SAID[1]}", model="auto").data
    assert both["choices"][0]["blockexpand"] == alone["choices"][0]["blockexpand"]


def test_each_prompt_is_routed_by_itself(server: Served, speaker: Speaker) -> None:
    said = server.complete(list(SAID), model="auto", max_tokens=4)
    assert said.headers["x-blockexpand-packs"] == "a, b, base"
    assert [choice["blockexpand"]["packs"] for choice in said.data["choices"]] == [["a"], ["b"], []]
    ids = [[speaker.tokenizer.bos_token_id, *speaker.tokenizer.encode(text)] for text in SAID]
    same = server.complete(ids, model="auto", max_tokens=4).data
    assert [c["blockexpand"] for c in same["choices"]] == [c["blockexpand"] for c in said.data["choices"]]
    short = server.complete("cat", model="auto").data["choices"][0]
    assert short["blockexpand"] == {"packs": []}, "too little to choose by"


def test_the_models_own_name_may_be_routed(speaker: Speaker) -> None:
    with served(speaker, routes=True) as server:
        own = [server.chat(text, model="tiny").headers["x-blockexpand-packs"] for text in SAID]
        assert (
            own
            == [server.chat(text, model="auto").headers["x-blockexpand-packs"] for text in SAID]
            == ["a", "b", "base"]
        )
        assert server.chat(SAID[0], model="all").headers["x-blockexpand-packs"] == "a+b"


@pytest.mark.parametrize("name", ["a", "base", "auto"])
def test_likelihoods_are_the_models(server: Served, speaker: Speaker, name: str) -> None:
    """Held against one plain pass of the model over the same tokens."""
    text = SAID[0]
    said = server.complete(text, model=name, max_tokens=3, echo=True, logprobs=2)
    choice = said.data["choices"][0]
    found = choice["logprobs"]
    tokens = speaker.tokenizer.convert_tokens_to_ids(found["tokens"])
    assert tokens[:-3] == speaker.tokenizer.encode(text)
    assert len(found["token_logprobs"]) == len(found["top_logprobs"]) == len(tokens)
    assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
    with only(speaker.model, *choice["blockexpand"]["packs"]), torch.no_grad():
        logits = speaker.model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    for place in range(1, len(tokens)):
        row = logits[place - 1]
        assert found["token_logprobs"][place] == pytest.approx(float(row[tokens[place]]), abs=1e-4)
        top = found["top_logprobs"][place]
        assert len(top) in (2, 3)
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-4)
        assert top[found["tokens"][place]] == found["token_logprobs"][place], "the token itself is among the named"
    alone = server.complete(text, model=name, max_tokens=3, logprobs=2).data["choices"][0]["logprobs"]
    assert alone == {key: values[-3:] for key, values in found.items()}
    only_read = server.complete(text, model=name, max_tokens=0, echo=True, logprobs=2).data
    assert only_read["choices"][0]["text"] == text
    assert only_read["choices"][0]["blockexpand"] == choice["blockexpand"]
    assert only_read["usage"]["completion_tokens"] == 0
    assert only_read["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(
        found["token_logprobs"][:-3], abs=1e-5
    )


def test_what_changes_nothing_passes(server: Served) -> None:
    plain = server.chat("the cat", model="a").data
    more = {
        "n": 1, "logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "none", "presence_penalty": 0,
        "frequency_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}, "user": "me", "store": True,
        "metadata": {"a": "b"}, "stream_options": None, "stop": None, "top_k": None, "stream": False, "seed": None,
    }  # fmt: skip
    said = server.chat("the cat", model="a", **more)
    assert said.status == 200, said.text
    assert said.data["choices"] == plain["choices"]
    assert server.complete("the cat", model="a", best_of=1, suffix="", echo=False).status == 200
    assert json.loads(server.ask("/health").text) == {"status": "ok"}
