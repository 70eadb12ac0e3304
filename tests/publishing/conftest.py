"""A story that tests read and never change, and a hub to push to; what they are made of is in publishing_ground.py."""

from __future__ import annotations

import json
from collections.abc import Generator

import pytest
from huggingface_hub import constants

from blockexpand.cli.main import run
from hub_stand_in import KEY, Hub, hub_stand_in
from publishing_ground import Story, make_story


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Folders, made once."""
    return make_story(tmp_path_factory.mktemp("story"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    """An empty hub that huggingface_hub takes for the hub, and a key for it."""
    with hub_stand_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", KEY)
        yield server


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """`refused(*words)`: the one line with which the command line refuses them."""

    def line(*words: object) -> str:
        capsys.readouterr()
        assert run([*(str(word) for word in words), "--quiet"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        return err

    return line


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    """`said(*words)`: what a verb prints as JSON."""

    def value(*words: object) -> dict:
        capsys.readouterr()
        assert run([*(str(word) for word in words), "--quiet", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return value
