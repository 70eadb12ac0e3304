"""The site: built without warnings, every link and anchor in it leads somewhere, and nothing comes from outside."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from documented import ROOT

import blockexpand


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    quiet = {"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"the site does not build (a new page belongs into the nav of mkdocs.yml):\n{said}"
    return out


class Reader(HTMLParser):
    """What a page loads, by tag and attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        loaded = given.get("src") or (given.get("href") if tag == "link" else None)
        self.loads += [loaded] if loaded else []


def test_the_site_builds_and_all_links_lead_somewhere(site: Path) -> None:
    """mkdocs does the looking: --strict, with its checks of links and anchors on."""
    assert (site / "index.html").exists()
    assert (site / "benchmarks" / "RESULTS.html").exists()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        reader = Reader()
        reader.feed(page.read_text(encoding="utf-8"))
        assert reader.loads
        assert [load for load in reader.loads if re.match(r"(\w+:)?//", load)] == [], page
    for style in sorted(site.rglob("*.css")):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    text = (site / "reference.html").read_text(encoding="utf-8")
    told = set(re.findall(r'id="([\w.]+)"', text))
    assert {f"blockexpand.{name}" for name in blockexpand.__all__ if name != "__version__"} - told == set()
