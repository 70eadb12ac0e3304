"""Models that speak: a loaded one in batches, and one behind an address."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from blockexpand.agents import EndpointSpeaker, LoadedSpeaker, load_speaker
from blockexpand.corpus.chats import render_prompt
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.errors import AgentError, PackError
from blockexpand.evaluation.endpoint import Answer, Endpoint, Request
from helpers import edit_config, make_base
from lm_helpers import make_lm
from packs_ground import make_pack, make_trained
from servers import completion, failure, serving


def speaker_of(folder: Path, scale: float = 12.0) -> LoadedSpeaker:
    """A tiny model whose choices are clear: rounding in a padded batch must not decide."""
    speaker = load_speaker(edit_config(make_lm(folder), max_position_embeddings=256))
    with torch.no_grad():
        for parameter in speaker.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return speaker


def request(text: str, max_tokens: int = 12, **settings: object) -> Request:
    return Request(messages=[{"role": "user", "content": text}], max_tokens=max_tokens, **settings)  # ty: ignore


TEXTS = ("the cat", "the dog sees the bird and the fish and the stone", "a", "the river leaves the house.")


def test_a_batch_says_what_each_would_say_alone(tmp_path: Path) -> None:
    speaker = speaker_of(tmp_path / "m")
    alone = [speaker.ask([request(text)])[0] for text in TEXTS]
    together = speaker.ask([request(text) for text in TEXTS])
    assert [one.text for one in together] == [one.text for one in alone]
    assert len({one.text for one in alone}) == len(TEXTS)
    assert [one.prompt_tokens for one in together] == [one.prompt_tokens for one in alone]
    assert all(one.completion_tokens <= 12 and one.error is None for one in together)


def test_an_answer_ends_at_a_stop_text_and_work_stops_there(tmp_path: Path) -> None:
    speaker = speaker_of(tmp_path / "m")
    whole = speaker.ask([request(TEXTS[0], 40)])[0]
    stop = whole.text[5:8]
    assert len(whole.text) > 20
    cut = speaker.ask([request(TEXTS[0], 40, stop=(stop,))])[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.completion_tokens < whole.completion_tokens


def test_what_ends_a_turn_is_the_tokenizers_or_the_models_own(tmp_path: Path) -> None:
    speaker = speaker_of(tmp_path / "m")
    prompt_BA = torch.tensor([render_prompt(speaker.tokenizer, request(TEXTS[1]).messages)])
    first = int(speaker.model(prompt_BA).logits[0, -1].argmax())
    assert speaker.ask([request(TEXTS[1], 8)])[0].completion_tokens == 8
    assert speaker.model.generation_config is not None
    speaker.model.generation_config.eos_token_id = [1, first]
    ended = speaker.ask([request(TEXTS[1], 8), request(TEXTS[0], 8)])
    assert (ended[0].text, ended[0].completion_tokens) == ("", 0)
    assert ended[1].completion_tokens == 8


def test_a_conversation_that_does_not_fit_is_said_and_the_others_are_answered(tmp_path: Path) -> None:
    speaker = speaker_of(tmp_path / "m")
    answers = speaker.ask([request("the cat " * 300), request(TEXTS[0])])
    assert answers[0].too_long
    assert answers[0].error is not None
    assert (
        f"has {answers[0].prompt_tokens:,} tokens, and 12 more may come; the model's context is 256" in answers[0].error
    )
    assert answers[1].error is None
    assert answers[1].text


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    (make_lm(tmp_path / "m") / "chat_template.jinja").unlink()
    with pytest.raises(AgentError, match=r"the model .*/m has no chat template, so it cannot hold a conversation"):
        load_speaker(tmp_path / "m")
    assert load_tokenizer(tmp_path / "m").chat_template is None


def test_an_endpoint_is_asked_for_all_and_its_errors_stand_in_the_answers() -> None:
    def reply(body: dict) -> object:
        text = body["messages"][0]["content"]
        return failure(400, "no") if text == "b" else completion(text.upper())

    with serving(reply) as server:  # ty: ignore
        speaker = EndpointSpeaker(endpoint=Endpoint(server.url, "m"))
        answers: Sequence[Answer] = speaker.ask([request(t) for t in "abc"])
    assert [one.text for one in answers] == ["A", "", "C"]
    assert [one.error for one in answers] == [None, "HTTP 400: no", None]


def test_a_base_with_a_pack_says_what_the_trained_folder_says(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.float32)
    trained = make_trained(base, tmp_path / "trained", after=(0, 2))
    make_pack(trained, tmp_path / "pack", "mine")
    requests = [request("the cat sat on a mat"), request("rain fell over old roofs", 20)]
    said = [
        [one.text for one in speaker.ask(requests[:1]) + speaker.ask(requests[1:])]
        for speaker in (load_speaker(base, [tmp_path / "pack"]), load_speaker(trained), load_speaker(base))
    ]
    assert said[0] == said[1]
    assert said[0] != said[2]
    with pytest.raises(PackError):
        load_speaker(make_base(tmp_path / "other", seed=3), [tmp_path / "pack"])
