"""The tokens that end an answer: settings, tokenizer, and the end of a template's turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from blockexpand.checkpoint import declare_end, end_of_turn, end_tokens, stated_ends
from blockexpand.errors import CheckpointError

TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] + '\\n' + m['content'] }}<|im_end|>\n{% endfor %}"
WORDS = {"<s>": 0, "</s>": 1, "<|im_start|>": 2, "<|im_end|>": 3, "<|im_end|>x": 4, "hello": 5}


def tokenizer(template: Any) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel(WORDS, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    found = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    found.chat_template = template
    return found


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, None),
        (TURNS, 3),
        ("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {{ eos_token }}{% endfor %}", 1),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", None),
        ("{{ raise_exception('no such conversation') }}", None),
        ("{% for m in messages %}{{ m['content'] | upper }}<|im_end|>{% endfor %}", None),
        ({"tools": TURNS, "rag": TURNS}, None),  # transformers refuses to choose
    ],
)
def test_the_end_of_a_turn(template: Any, expected: int | None) -> None:
    assert end_of_turn(tokenizer(template)) == expected


def test_all_ends_each_once() -> None:
    assert end_tokens(tokenizer(TURNS), [1, 9]) == [1, 9, 3]
    assert end_tokens(tokenizer(TURNS), 3) == [1, 3]
    assert end_tokens(tokenizer(None), None) == [1]


def test_what_a_folder_states_and_is_made_to(tmp_path: Path) -> None:
    def write(name: str, **entries: Any) -> None:
        (tmp_path / name).write_text(json.dumps(entries))

    assert stated_ends(tmp_path) == []
    write("config.json", text_config={"eos_token_id": 7})
    assert stated_ends(tmp_path) == [7]
    write("config.json", eos_token_id=[2, 4])
    assert stated_ends(tmp_path) == [2, 4]
    assert declare_end(tmp_path, 3) is None
    assert stated_ends(tmp_path) == [2, 4, 3]
    write("generation_config.json", eos_token_id=2, top_p=0.5)
    before = (tmp_path / "generation_config.json").read_text()
    assert declare_end(tmp_path, 3) == before
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": [2, 3], "top_p": 0.5}
    after = (tmp_path / "generation_config.json").read_bytes()
    declare_end(tmp_path, 3)
    assert (tmp_path / "generation_config.json").read_bytes() == after, "what is declared already stays as it is"
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="generation_config.json"):
        stated_ends(tmp_path)
