# ruff: noqa: E501 (the page's own expressions)
"""The page that `serve` has: it asks as any client does, fetches nothing of others, and shows base and model side by side."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from blockexpand.serving import Speaker
from browser import browser, find_chromium
from serving_ground import GREEDY, SAID, Served, answered, served

_SEND = "(() => {{ document.getElementById('text').value = {!r}; document.getElementById('form').requestSubmit() }})()"
_LAST = "[...document.querySelectorAll('main section')].map(s => s.lastElementChild.querySelector('span:not([class])').textContent)"
_DONE = "document.getElementById('stop').disabled && document.querySelectorAll('.turn').length == {}"


def wait(tab: Any, condition: str) -> None:
    deadline = time.monotonic() + 30
    while not tab.value(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def test_the_page_fetches_nothing_of_others(server: Served) -> None:
    page = server.ask("/")
    assert page.status == 200
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert re.findall(r"https?://|src=|href=", page.text) == []
    assert server.ask("/", None, Host="evil.example").status == 400


def test_the_facts_name_the_models_that_the_api_has(server: Served) -> None:
    facts = server.ask("/facts").data
    assert facts["models"] == [entry["id"] for entry in server.ask("/v1/models").data["data"]]
    assert (facts["name"], facts["is_expanded"], facts["chats"], facts["logged"]) == ("tiny", True, True, "")
    assert [bool(block) for block in facts["blocks"]].count(True) == 2


def test_a_key_guards_the_facts_and_not_the_page(talker: Speaker) -> None:
    with served(talker, key="secret") as made:
        assert made.ask("/").status == 200
        assert made.ask("/facts").status == 401
        assert made.ask("/facts", None, Authorization="Bearer secret").data["models"] == ["run", "base"]


@pytest.mark.skipif(find_chromium() is None, reason="no chromium is installed")
def test_base_and_expanded_stand_side_by_side(server: Served, speaker: Speaker, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": SAID[1]}]
    speaker = Speaker(speaker.model, speaker.tokenizer, speaker.facts)
    with browser(tmp_path / "profile") as tab:
        for width in (1280, 390):
            tab.open(f"http://127.0.0.1:{server.port}/", width, "light")
            wait(tab, "document.querySelectorAll('main section').length == 2")
            assert tab.value("document.querySelectorAll('#blocks i.new').length") == 2
            assert tab.value("document.getElementById('facts').textContent").endswith(
                "nothing said here is kept or sent"
            )
            for name in ("temperature", "max_tokens"):
                tab.value(f"document.getElementById('{name}').value = {0 if name == 'temperature' else 12}")
            tab.value("document.getElementById('model').value = 'b'")
            tab.value(_SEND.format(SAID[1]))
            wait(tab, _DONE.format(4))
            base, mine = tab.value(_LAST)
            assert base == answered(speaker, asked, GREEDY, as_base=True)
            assert mine == answered(speaker, asked, GREEDY, packs=["b"]) != base
            assert tab.value("document.querySelectorAll('.cut').length") == 2
            tab.value("document.getElementById('reset').click()")
            tab.value("document.getElementById('model').value = 'auto'")
            tab.value(_SEND.format(SAID[1]))
            wait(tab, _DONE.format(4))
            assert tab.value("document.querySelector('main section:last-child .route').textContent").startswith(
                "b: base "
            )
            assert tab.value("document.scrollingElement.scrollWidth") <= width
            (tmp_path / f"{width}.png").write_bytes(tab.photograph())
