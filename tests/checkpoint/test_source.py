"""Hub ids through a local cache laid out as the hub library lays it out; no network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from blockexpand.checkpoint import locate_model, open_checkpoint, tokenizer_file
from blockexpand.errors import CheckpointError
from helpers import MakeBase

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, tiny_base: MakeBase, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds org/tiny at revision main: `snapshots/<commit>` links into `blobs`."""
    root = tmp_path / "hub"
    repo = root / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(tiny_base("llama", sharded=True).iterdir())):
        shutil.copyfile(path, repo / "blobs" / f"{i:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{i:040x}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    return root


def test_a_hub_id_is_found_in_the_cache_and_read_through_its_links(cache: Path):
    for source in ("org/tiny", "org/tiny@main", f"org/tiny@{COMMIT}"):
        checkpoint = open_checkpoint(source)
        assert checkpoint.source == source
        assert checkpoint.folder == cache / "models--org--tiny" / "snapshots" / COMMIT
        assert checkpoint.sharded


@pytest.mark.parametrize("source", ["org/other", "org/tiny@v2", "other/tiny"])
def test_what_the_cache_lacks_is_refused_offline(cache: Path, source: str):
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(source)
    assert str(raised.value).startswith(f"{source} is neither a folder nor in the local hub cache")
    assert str(cache) in str(raised.value)
    assert "HF_HUB_OFFLINE" in str(raised.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors.index.json", "model-00002"])
def test_an_incomplete_download_is_completed_online(cache: Path, missing: str, monkeypatch: pytest.MonkeyPatch):
    snapshot = cache / "models--org--tiny" / "snapshots" / COMMIT
    held = next(p for p in snapshot.iterdir() if p.name.startswith(missing))
    aside = held.rename(cache / "aside")
    calls = []

    def fetch(name: str, **kwargs: object) -> str:
        calls.append(kwargs["local_files_only"])
        if not kwargs["local_files_only"]:
            aside.rename(held)
        return str(snapshot)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert open_checkpoint("org/tiny").sharded
    assert calls == [True, False]


def test_a_failed_download_is_one_line_with_the_reason(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def fetch(name: str, **kwargs: object) -> str:
        raise (
            FileNotFoundError("nothing in the cache") if kwargs["local_files_only"] else OSError("no route\nto host")
        )

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(CheckpointError, match=r"^org/x is neither a folder .*: no route; check the name") as raised:
        open_checkpoint("org/x")
    assert "\n" not in str(raised.value)


def test_nothing_that_can_run_is_ever_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def fetch(name: str, **kwargs: object) -> str:
        asked.update(kwargs)
        raise OSError("stop")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(CheckpointError):
        open_checkpoint("org/x")
    for pattern in asked["allow_patterns"]:
        assert not pattern.endswith((".bin", ".pt", ".pth", ".py", "*")) or pattern == "LICENSE*"


# --- what MODEL may be --------------------------------------------------------------------------------


def test_a_run_and_an_output_of_learn_mean_the_model_in_them(tiny_base: MakeBase, tmp_path: Path):
    shutil.copytree(tiny_base("qwen3"), tmp_path / "run" / "model")
    assert locate_model(tmp_path / "run") == tmp_path / "run" / "model"
    assert open_checkpoint(tmp_path / "run").config["model_type"] == "qwen3"


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("pack.json", "{}", "pack attach"),
        ("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}', "LORA of org/base"),
        ("adapter_config.json", "broken", "merge"),
        ("settings.json", "{}", "has not ended"),
        ("readme.txt", "", "config.json"),
    ],
)
def test_what_is_no_model_is_named_for_what_it_is(tmp_path: Path, file: str, content: str, word: str):
    (tmp_path / file).write_text(content)
    with pytest.raises(CheckpointError) as raised:
        locate_model(tmp_path)
    assert word in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_paths_that_lead_nowhere_are_refused_in_words(tmp_path: Path):
    (tmp_path / "weights.safetensors").write_bytes(b"x" * 16)
    for path in (tmp_path / "absent", tmp_path / "weights.safetensors"):
        with pytest.raises(CheckpointError) as raised:
            locate_model(path)
        assert str(path) in str(raised.value)
        assert "Errno" not in str(raised.value)


def test_a_missing_tokenizer_says_how_to_make_it(tiny_base: MakeBase, tmp_path: Path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base(), folder)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(CheckpointError) as raised:
        tokenizer_file(folder)
    assert "tokenizer.model" in str(raised.value)
    assert "save_pretrained" in str(raised.value)
