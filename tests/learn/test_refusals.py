"""What `learn` cannot do is refused in one line, before anything heavy, and leaves nothing."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from blockexpand.errors import BlockexpandError
from blockexpand.training import choices
from learn_ground import Ground, write_texts
from lm_helpers import sentences


def refusal(ground: Ground, folder: Path, **changes: Any) -> str:
    """What it says; nothing is left behind."""
    before = set(folder.rglob("*"))
    with pytest.raises(BlockexpandError) as raised:
        ground.learn(folder / "out", **changes)
    assert set(folder.rglob("*")) == before
    assert "Errno" not in str(raised.value)
    return str(raised.value)


def test_models_that_are_none(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for model in (tmp_path / "absent", tmp_path / "empty", ground.data):
        assert str(model) in refusal(dataclasses.replace(ground, base=model), tmp_path)
    base = tmp_path / "base"
    shutil.copytree(ground.base, base)
    (base / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(dataclasses.replace(ground, base=base), tmp_path)


def test_data_that_are_none(ground: Ground, tmp_path: Path) -> None:
    assert "absent" in refusal(dataclasses.replace(ground, data=tmp_path / "absent"), tmp_path)
    noise = tmp_path / "noise"
    noise.mkdir()
    (noise / "picture.png").write_bytes(bytes(range(256)) * 40)
    assert str(noise) in refusal(dataclasses.replace(ground, data=noise), tmp_path)
    few = write_texts(tmp_path / "few.jsonl", sentences(4, 0))
    assert "4 documents" in refusal(dataclasses.replace(ground, data=few), tmp_path)
    two = tmp_path / "two.csv"
    rows = [
        f'{number},"{a}","{b}"' for number, (a, b) in enumerate(zip(sentences(30, 1), sentences(30, 2), strict=True))
    ]
    two.write_text("\n".join(["id,body,comment", *rows]), encoding="utf-8")
    said = refusal(dataclasses.replace(ground, data=two), tmp_path)
    assert "body" in said
    assert "comment" in said


def test_chats_without_a_template(ground: Ground, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(ground.base, base)
    for name in ("chat_template.jinja", "chat_template.json"):
        (base / name).unlink(missing_ok=True)
    config = base / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"chat_template"', '"no_template"'))
    chats = tmp_path / "chats.jsonl"
    turn = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "yes"}]}\n'
    chats.write_text("".join(turn % text for text in sentences(30, 3)))
    assert "chat template" in refusal(dataclasses.replace(ground, base=base, data=chats), tmp_path)


def test_too_little_general_text_for_a_budget(ground: Ground, tmp_path: Path) -> None:
    few = write_texts(tmp_path / "general.jsonl", sentences(30, 0))
    said = refusal(dataclasses.replace(ground, general=few), tmp_path)
    assert "30 documents" in said
    assert "100" in said


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"keep": 0}, "0"),
        ({"keep": "1.5"}, "1.5"),
        ({"keep": "much"}, "much"),
        ({"keep": "chats=1%"}, "chats"),
        ({"tokens": 0}, "0"),
        ({"minutes": 5, "tokens": 5}, "5"),
        ({"blocks": 0}, "0"),
        ({"blocks": 99}, "99"),
        ({"arm": "full", "blocks": 2, "tokens": 5}, "2"),
        ({"against": ("blocks",)}, "blocks"),
        ({"device": "nowhere"}, "nowhere"),
    ],
)
def test_options_out_of_bounds(ground: Ground, tmp_path: Path, changes: dict[str, Any], value: str) -> None:
    assert value in refusal(ground, tmp_path, **changes)


def test_a_folder_of_somebody_elses(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert str(tmp_path / "out") in refusal(ground, tmp_path)


def test_a_disk_and_a_memory_too_small(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as small:
        small.setattr(choices, "total_bytes", lambda _device: 1000)
        assert "1.00 kB" in refusal(ground, tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=2000)
    monkeypatch.setattr(choices.shutil, "disk_usage", lambda _path: usage)
    assert "2.00 kB" in refusal(ground, tmp_path)
