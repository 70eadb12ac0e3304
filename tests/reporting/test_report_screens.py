"""The page in a headless Chromium: a phone's and a desk's width, light and dark, and on paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_examples import make_story

from blockexpand.reporting import report
from browser import browser, find_chromium

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no chromium is installed")

_BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def test_screens(tmp_path: Path) -> None:
    page = report(make_story(tmp_path), tmp_path / "report")
    with browser(tmp_path / "profile") as tab:
        for width in (390, 768, 1280):
            backgrounds = set()
            for scheme in ("light", "dark"):
                tab.open(page, width, scheme)
                assert tab.value("document.scrollingElement.clientWidth") == width
                assert tab.value("document.scrollingElement.scrollWidth") <= width
                backgrounds.add(tab.value(_BACKGROUND))
                assert len(tab.photograph()) > 50_000
            assert len(backgrounds) == 2
        assert tab.print_pdf().startswith(b"%PDF")
