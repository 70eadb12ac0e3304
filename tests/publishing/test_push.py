"""Card and upload: what goes is checked before, goes in one commit or not at all, and says what the records say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants, snapshot_download
from safetensors.torch import load_file, save_file

from blockexpand.errors import PublishError
from blockexpand.packs import Card, attach_on_disk, detach_on_disk
from blockexpand.publishing import Destination, push
from blockexpand.staging import RECORD_NAME
from helpers import edit_json, load, tree
from hub_stand_in import KEY, Hub
from light_verbs import imported_by
from publishing_ground import BASE_CARD, Story, done

LICENSED = Card(licence="mit", base_model="org/tiny")


@pytest.fixture
def folder(story: Story, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return Path(shutil.copytree(story.model, tmp_path / "folder"))


@pytest.fixture
def pack(story: Story, tmp_path: Path) -> Path:
    """A pack to change."""
    return Path(shutil.copytree(story.pack, tmp_path / "pack"))


def there(hub: Hub, name: str = "me/code", revision: str = "main") -> dict[str, bytes]:
    """What a repository holds, but what the hub itself put there."""
    return {name: data for name, data in hub.repositories[name].files(revision).items() if name != ".gitattributes"}


def metadata(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def dry(folder: Path, card: Card | None = None, **more: Any) -> str:
    """The card that would go."""
    return push(folder, Destination(repo="me/code"), None, card, **more).card


# --- whole, or not at all -----------------------------------------------------------------------------


def test_a_run_goes_up_and_comes_back(story: Story, hub: Hub, tmp_path: Path, said) -> None:
    before = tree(story.run)
    sent = said("push", story.run, "me/code", "--private", "--message", "first", "--base-model", "org/tiny")
    assert tree(story.run) == before, "nothing in the folder is changed"
    assert hub.repositories["me/code"].private
    assert hub.repositories["me/code"].messages[1:] == ["first"], "one commit"
    assert hub.keys == {f"Bearer {KEY}"}
    found, expected = there(hub), tree(story.model)
    assert found.pop("README.base.md") == expected.pop("README.md") == BASE_CARD.encode()
    card = found.pop("README.md").decode()
    assert metadata(card)["license"] == "llama2", "what the base's own card says"
    assert metadata(card)["base_model"] == "org/tiny"
    assert metadata(card)["base_model_relation"] == "finetune"
    ours, theirs = json.loads(expected.pop(RECORD_NAME)), json.loads(found.pop(RECORD_NAME))
    assert found == expected
    assert ours["plan"]["base"].pop("source") == str(story.base)
    assert theirs["plan"]["base"].pop("source") == story.base.name
    assert theirs == ours, "the record is the same but for paths"
    assert sent["files"] == {name: len(data) for name, data in there(hub).items()}
    assert not any(str(story.base.parent).encode() in data for data in there(hub).values())
    fetched = Path(shutil.copytree(snapshot_download("me/code", cache_dir=tmp_path / "cache"), tmp_path / "plain"))
    tokens = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.equal(load(fetched)(tokens).logits, load(story.model)(tokens).logits)


def test_a_pack_goes_up_and_comes_back(story: Story, hub: Hub, tmp_path: Path) -> None:
    done("push", story.pack, "me/code")
    assert there(hub) == tree(story.pack)
    assert set(there(hub)) == {"pack.json", "blocks.safetensors", "README.md"}
    fetched = snapshot_download("me/code", cache_dir=tmp_path / "cache")
    attach_on_disk(story.base, [fetched], tmp_path / "theirs")
    detach_on_disk(tmp_path / "theirs", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(story.base)


def test_a_second_push_removes_the_weights_of_the_first(story: Story, hub: Hub) -> None:
    done("push", story.run, "me/code")
    done("push", story.pack, "me/code")
    assert set(there(hub)) >= {"pack.json", "blocks.safetensors", "README.md"}
    assert not {"model.safetensors", RECORD_NAME} & set(there(hub))
    assert len(hub.repositories["me/code"].messages) == 3


def test_a_pull_request_and_a_branch(story: Story, hub: Hub, said, refused) -> None:
    hub.add("me/theirs", {"notes.txt": b"mine"})
    assert "notes.txt" in refused("push", story.pack, "me/theirs")
    assert there(hub, "me/theirs") == {"notes.txt": b"mine"}
    assert "/discussions/1" in said("push", story.pack, "me/theirs", "--create-pr")["url"]
    assert there(hub, "me/theirs") == {"notes.txt": b"mine"}
    done("push", story.pack, "me/code", "--revision", "v2")
    assert "pack.json" in there(hub, revision="v2")
    assert there(hub) == {}


@pytest.mark.parametrize(
    ("what", "status", "found"),
    [("create", 401, "401"), ("preupload", 403, "403"), ("commit", 500, "500"), ("batch", 413, "413")],
)
def test_a_push_that_fails_commits_nothing(
    what: str, status: int, found: str, story: Story, hub: Hub, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.failing[what] = (status, "no such luck")
    assert f"HTTP {found}" in refused("push", story.pack, "me/code")
    assert all(len(one.messages) == 1 for one in hub.repositories.values())


def test_what_fails_while_an_upload_is_torn_down_is_the_interrupt(
    story: Story, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("the pool is closed") from None

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        push(story.pack, Destination(repo="me/code"), lambda: KEY)
    assert there(hub) == {}


def test_a_dry_run_asks_nobody_and_needs_no_key(story: Story, hub: Hub, monkeypatch, capsys, said, refused) -> None:
    monkeypatch.delenv("HF_TOKEN")
    told = said("push", story.pack, "me/code", "--dry-run")
    assert (told["url"], told["commit"]) == (None, None)
    assert set(told["files"]) == {"pack.json", "blocks.safetensors", "README.md"}
    done("push", story.pack, "me/code", "--dry-run")
    assert "Reads code." in capsys.readouterr().out
    assert "HF_TOKEN" in refused("push", story.pack, "me/code")
    assert hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", KEY)
    assert "HF_HUB_OFFLINE" in refused("push", story.pack, "me/code")


@pytest.mark.parametrize(
    "words", [["code"], ["me/../code"], ["me/code", "--revision", "-x"], ["me/code", "--revision", "a", "--create-pr"]]
)
def test_where_it_cannot_go(words: list[str], story: Story, hub: Hub, refused) -> None:
    refused("push", story.pack, *words)
    assert hub.asked == []


# --- what is fit to be given to others ----------------------------------------------------------------


def flip(path: Path, name: str) -> None:
    tensors = load_file(path)
    tensors[name][(0,) * tensors[name].dim()] += 1
    save_file(tensors, path, {"format": "pt"})


def test_tensors_that_are_not_those_of_the_record_stay_here(hub: Hub, folder: Path, pack: Path, refused) -> None:
    flip(folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight")
    assert "'model.layers.0.mlp.up_proj.weight'" in refused("push", folder, "me/code")
    name = next(iter(load_file(pack / "blocks.safetensors")))
    flip(pack / "blocks.safetensors", name)
    assert repr(name) in refused("push", pack, "me/code")
    assert hub.asked == []


def test_what_is_not_finite_stays_here(hub: Hub, folder: Path, refused) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "model.norm.weight" in refused("push", folder, "me/code")


def test_only_what_the_records_name_goes(hub: Hub, folder: Path, said, refused, tmp_path: Path) -> None:
    (folder / ".env").write_text("KEY=1")
    (folder / "notes").mkdir()
    (folder / "notes" / "secret.txt").write_text("x")
    told = said("push", folder, "me/code")
    assert not {".env", "notes/secret.txt"} & set(told["files"])
    assert {".env", "notes/secret.txt"} <= set(told["stays"])
    edit_json(folder / "generation_config.json", lambda config: config.update(cache="/home/me/cache"))
    assert any("/home/me/cache" in note for note in said("push", folder, "me/code", "--dry-run")["notes"])
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert "model.safetensors is a link" in refused("push", folder, "me/code")


def test_what_cannot_be_published(story: Story, tmp_path: Path, refused) -> None:
    assert "a base" in refused("push", story.base, "me/code")
    assert "no model" in refused("push", tmp_path, "me/code")
    full = Path(shutil.copytree(story.run, tmp_path / "run"))
    (full / "model" / RECORD_NAME).unlink()
    assert "no new blocks" in refused("push", full, "me/code")


def test_a_model_whose_old_blocks_trained_says_so(folder: Path) -> None:
    edit_json(folder / RECORD_NAME, lambda record: record["training"].update(arm="full"))
    flip(folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight")
    card = dry(folder)
    assert "arm full" in card
    assert "pack detach" not in card


# --- the card -----------------------------------------------------------------------------------------


def test_a_pack_s_card_is_staged_with_it_and_goes_as_it_is(story: Story, pack: Path) -> None:
    card = (story.pack / "README.md").read_text()
    assert metadata(card)["license"] == "mit"
    assert metadata(card)["library_name"] == "blockexpand"
    for part in ("# code", "Reads code.", "| steps | ", "Not measured on held-out tests.", "domain loss"):
        assert part in card
    (pack / "README.md").write_text(card.replace("Reads code.", "Reads Python."))
    assert "Reads Python." in dry(pack)
    assert "Writes C." in dry(pack, Card(description="Writes C.", licence="apache-2.0")), "stated anew, made anew"
    (pack / "README.md").write_text("---\nlicense: cc0-1.0\n---\nMine.\n")
    assert dry(pack).endswith("Mine.\n")
    (pack / "README.md").unlink()
    assert "Reads code." in dry(pack)


def test_no_licence_no_push(story: Story, folder: Path, tmp_path: Path, refused) -> None:
    done("pack", "extract", story.run, tmp_path / "unlicensed")
    assert "--licence" in refused("push", tmp_path / "unlicensed", "me/code")
    assert "other" in refused("push", tmp_path / "unlicensed", "me/code", "--licence", "other")
    stated = ("--licence", "other", "--licence-name", "mine", "--licence-link", "LICENSE")
    done("push", tmp_path / "unlicensed", "me/code", *stated, "--dry-run")
    (folder / "README.md").write_text("---\nlicense: [\n---\n")  # a base's card may be anything
    assert "--licence" in refused("push", folder, "me/code", "--dry-run")
    assert "Apache 2" in refused("push", folder, "me/code", "--licence", "Apache 2")
    assert "tiny" in refused("push", folder, "me/code", "--licence", "mit", "--base-model", "tiny")
    assert "english!" in refused("push", folder, "me/code", "--licence", "mit", "--language", "english!")


def test_values_cannot_break_out_of_the_card(pack: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        record["training"]["run"]["settings"]["data"]["general"] = "a | b\n# evil `x`"
        record["training"]["run"]["num_steps"] = {"a": 1}

    edit_json(pack / "pack.json", change)
    card = dry(pack, LICENSED)
    assert "| general data | a \\| b # evil 'x' |" in card
    assert "| steps |" not in card


def test_results_of_this_model_and_its_base_are_shown(story: Story, refused, said) -> None:
    told = said("push", story.run, "me/code", "--dry-run", "--results", story.records, "--against", story.base_records)
    card = told["card"]
    after, before = (
        json.loads((path / RECORD_NAME).read_text())["held_out"] for path in (story.records, story.base_records)
    )
    for name in ("domain", "general"):
        assert f"| `{name}` | loss, nats per token | " in card
        assert f"| {after[name]['loss']:.4f} | {before[name]['loss']:.4f} |" in card
    assert f"**Gain**: {before['domain']['loss'] - after['domain']['loss']:+.4f} nats" in card
    assert f"**Forgetting**: {after['general']['loss'] / before['general']['loss'] - 1:+.2%}" in card
    listed = metadata(card)["model-index"][0]["results"]
    assert {one["dataset"]["type"] for one in listed} == {"domain", "general"}
    assert "another model" in refused("push", story.run, "me/code", "--results", story.base_records)
    swapped = ("--results", story.records, "--against", story.records)
    assert "another model" in refused("push", story.run, "me/code", *swapped)
    assert "--against" in refused("push", story.pack, "me/code", "--results", story.records)
    assert "another model" in refused(
        "push", story.pack, "me/code", "--results", story.records, "--against", story.base_records
    )
    assert "--results" in refused("push", story.run, "me/code", "--against", story.base_records)


def test_pushing_needs_no_torch(story: Story) -> None:
    code = (
        "import sys\nfrom blockexpand.cli.main import run\n"
        f"assert run(['push', {str(story.run)!r}, 'me/code', '--dry-run', '--quiet']) == 0\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_from_python(story: Story, hub: Hub) -> None:
    import blockexpand

    found = blockexpand.push(story.pack, Destination(repo="me/code"), lambda: KEY)
    assert found.url is not None
    with pytest.raises(PublishError, match="licence"):
        blockexpand.push(story.pack, Destination(repo="me/code"), None, Card(licence="My Own"))


def test_verbs_that_only_read_records_load_no_torch(story: Story, tmp_path: Path) -> None:
    pages = [["report", story.run, "--out", tmp_path / "page"], ["pack", "show", story.pack]]
    assert imported_by(*pages, ["push", story.pack, "somebody/pack", "--dry-run"]) == []
