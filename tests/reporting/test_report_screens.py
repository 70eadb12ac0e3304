"""The page in a headless Chromium: a phone's and a desk's width, light and dark, and on paper."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_examples import make_story

from blockexpand.reporting import report
from browser import browser, find_chromium

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no chromium is installed")

_BACKGROUND = "getComputedStyle(document.body).backgroundColor"
_CUT_OFF = """[...document.querySelectorAll('svg[role=img] text')].filter(text => {
  const inner = text.getBoundingClientRect(), outer = text.ownerSVGElement.getBoundingClientRect();
  return inner.width && (inner.left < outer.left - 6 || inner.right > outer.right + 6);
}).map(text => text.textContent).join('; ')"""


def test_screens(tmp_path: Path) -> None:
    page = report(make_story(tmp_path), tmp_path / "report")
    with browser(tmp_path / "profile") as tab:
        for width in (390, 768, 1280):
            backgrounds = set()
            for scheme in ("light", "dark"):
                tab.open(page, width, scheme)
                assert tab.value("document.scrollingElement.clientWidth") == width
                assert tab.value("document.scrollingElement.scrollWidth") <= width
                assert tab.value(_CUT_OFF) == ""
                backgrounds.add(tab.value(_BACKGROUND))
                assert len(tab.photograph()) > 50_000
            assert len(backgrounds) == 2
            narrow = tab.value("getComputedStyle(document.querySelector('.drawing.narrow')).display")
            assert narrow == ("none" if width > 720 else "block")
        assert tab.print_pdf().startswith(b"%PDF")
