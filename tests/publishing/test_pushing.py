"""Pushing to a stand-in of the hub over real HTTP: what is there is what is here, or nothing is."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import are_progress_bars_disabled
from huggingface_hub.utils.tqdm import progress_bar_states
from safetensors.torch import load_file, save_file

from blockexpand.cli.main import run
from blockexpand.digests import digest_json
from blockexpand.expansion import CARD
from blockexpand.packs import attach_on_disk, detach_on_disk, read_pack
from blockexpand.packs.record import tensors_of
from blockexpand.publishing import Destination, push
from blockexpand.records import with_format, write_record
from blockexpand.records.expansion import Proof, read_expansion
from helpers import edit_json, load, tree
from hub_stand_in import KEY, Hub
from publishing_ground import Story, done
from servers import closed_port_url

RECORD = "blockexpand.json"


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


# --- whole, or not at all -----------------------------------------------------------------------------


def test_a_run_goes_up_and_comes_back(story: Story, hub: Hub, tmp_path: Path, said) -> None:
    sent = said("push", story.run, "me/code", "--private", "--message", "first")
    assert hub.repositories["me/code"].private
    assert hub.repositories["me/code"].messages[1:] == ["first"], "one commit"
    found, expected = there(hub), tree(story.model)
    ours, theirs = json.loads(expected.pop(RECORD)), json.loads(found.pop(RECORD))
    assert found == expected
    assert ours["plan"]["base"].pop("source") == str(story.base)
    assert theirs["plan"]["base"].pop("source") == story.base.name
    assert theirs == ours, "the record is the same but for paths"
    assert sent["files"] == {name: len(data) for name, data in there(hub).items()}
    assert sent["url"].startswith(hub.url)
    assert hub.keys == {f"Bearer {KEY}"}
    for data in there(hub).values():
        assert str(story.base.parent).encode() not in data
    fetched = Path(snapshot_download("me/code", cache_dir=tmp_path / "cache"))
    tokens = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.equal(load(fetched)(tokens).logits, load(story.model)(tokens).logits)
    plain = Path(shutil.copytree(fetched, tmp_path / "plain"))  # links as files
    assert detach_on_disk(plain, tmp_path / "back").same_files
    assert tree(tmp_path / "back") == tree(story.base)


def test_a_pack_goes_up_and_comes_back(story: Story, hub: Hub, tmp_path: Path) -> None:
    done("push", story.pack, "me/code")
    assert there(hub) == tree(story.pack)
    assert set(there(hub)) == {"pack.json", "blocks.safetensors", CARD}
    fetched = snapshot_download("me/code", cache_dir=tmp_path / "cache")
    attach_on_disk(story.base, [fetched], tmp_path / "theirs")
    attach_on_disk(story.base, [story.pack], tmp_path / "ours")
    assert tree(tmp_path / "theirs") == tree(tmp_path / "ours")


@pytest.mark.parametrize("encoding", ["delta", "int8"])
def test_packs_that_are_stored_otherwise_go_up(encoding: str, story: Story, hub: Hub, tmp_path: Path, said) -> None:
    done("pack", "extract", story.run, tmp_path / "p", "--encoding", encoding, "--licence", "mit")
    total = len(read_pack(tmp_path / "p").record.block_digests)
    checked = said("push", tmp_path / "p", "me/code")["checked"]
    if encoding == "int8":
        assert checked == f"{total} tensors held against their recorded digests"
    else:
        unheld = len(begun_as_donors(tmp_path / "p"))
        assert 0 < unheld < total
        assert checked == (
            f"{total - unheld} tensors held against their recorded digests; {unheld} NOT checked, but opened to their "
            "sizes: they are stored as differences to the base, which was not given; --base BASE checks them"
        )
        whole = said("push", tmp_path / "p", "me/code", "--base", story.base)["checked"]
        assert whole == f"{total} tensors held against their recorded digests"
    assert there(hub) == tree(tmp_path / "p")


def begun_as_donors(pack: Path) -> list[str]:
    """The tensors that started as their donors'; a delta holds their differences to the base."""
    return [name for name, _, tensor in tensors_of(read_pack(pack).record.plan) if tensor.starts == "donor"]


def begun(story: Story, hub: Hub, home: Path, *more: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """A push in a process of its own, which knows the hub and the key by its environment alone."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "MY_KEY": KEY}
    command = [sys.executable, "-m", "blockexpand", "push", story.pack, "me/code", "--token-variable", "MY_KEY"]
    words, pipe = [str(word) for word in (*command, *more)], subprocess.PIPE
    return subprocess.Popen(words, env=environment, stdout=pipe, stderr=stderr, text=True)


def test_the_command_line_alone_reaches_the_address_in_the_environment(story: Story, hub: Hub, tmp_path: Path) -> None:
    process = begun(story, hub, tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert there(hub) == tree(story.pack)
    assert KEY not in out + err
    assert "in 3 files to me/code" in err, "a log has a line at the beginning"
    assert re.search(r"committed as [0-9a-f]{40} after [0-9.]+ s", err), "and one at the end"
    assert "\r" not in err
    assert "%" not in err


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_has_a_bar_for_what_is_uploaded(quiet: bool, story: Story, hub: Hub, tmp_path: Path) -> None:
    """huggingface_hub's own, with rate and time left; on standard error, where standard output is a pipe."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = begun(story, hub, tmp_path, *(["--quiet"] if quiet else []), stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other side is closed
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 0, shown
    assert there(hub) == tree(story.pack)
    assert "blocks.safetensors: " not in out
    if quiet:
        assert shown == b""
    else:
        assert re.search(rb"blocks.safetensors: 100%.*\d\w*/\d.*<\d\d:\d\d.*B/s", shown), shown
        assert b"sending " in shown


def test_from_python_nothing_is_printed(
    story: Story, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(progress_bar_states, "_global", True)  # as it is for who has switched nothing off
    push(story.pack, Destination(repo="me/code"), lambda: KEY)
    assert capsys.readouterr() == ("", "")
    assert not are_progress_bars_disabled(), "who calls keeps the setting"


def test_an_upload_that_is_broken_off_leaves_no_card(story: Story, hub: Hub, tmp_path: Path) -> None:
    hub.holding = "PUT /lfs/"
    process = begun(story, hub, tmp_path)
    while not any(asked.startswith("PUT /lfs/") for asked in hub.asked):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "blockexpand: interrupted" in err
    assert there(hub) == {}


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_fails_while_an_upload_is_torn_down_is_the_interrupt(
    wrapped: bool, story: Story, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(*_: object, **__: object) -> None:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise OSError("the socket is closed")  # as the closing of a connection may
        except OSError as error:
            if wrapped:
                raise RuntimeError("Error while uploading") from error
            raise

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", torn)
    with pytest.raises(KeyboardInterrupt):
        push(story.pack, Destination(repo="me/code"), lambda: KEY)


@pytest.mark.parametrize(
    ("request_", "status", "expected"),
    [
        ("PUT /lfs", 403, "the key may not write to me/code; expected one with write access to it"),
        ("commit/main", 500, "the hub could not do it; expected it to take the files; push again later (HTTP 500"),
        ("commit/main", 409, "me/code was changed by somebody else meanwhile"),
        ("commit/main", 413, "the hub takes no commit that large"),
        ("preupload", 401, "the hub does not know the key"),
        ("repos/create", 403, "the key may not write to me/code"),
        ("repos/create", 429, "the hub asks to wait"),
    ],
)
def test_a_push_that_fails_leaves_no_card(
    request_: str, status: int, expected: str, story: Story, hub: Hub, refused
) -> None:
    hub.failing[request_] = (status, "no such luck")
    line = refused("push", story.pack, "me/code")
    assert expected in line
    assert f"(HTTP {status}: no such luck)" in line
    assert KEY not in line
    if request_ == "repos/create":
        assert "Nothing was committed: me/code is as it was" in line
        assert not hub.repositories
    else:
        assert "Nothing was committed: me/code was made and is empty" in line
        assert there(hub) == {}
    hub.failing.clear()
    done("push", story.pack, "me/code")
    assert there(hub) == tree(story.pack)


def test_a_connection_that_breaks_is_no_success(story: Story, hub: Hub, monkeypatch, refused) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", closed_port_url())
    line = refused("push", story.pack, "me/code")
    assert "the hub did not answer about me/code" in line
    assert "check the network" in line


def test_a_look_that_fails_afterwards_says_that_there_is_a_commit(story: Story, hub: Hub, refused) -> None:
    hub.failing["GET .*/tree/[0-9a-f]{40}"] = (404, "gone")
    assert "The commit " in (line := refused("push", story.pack, "me/code"))
    assert "was made, and could not be looked at" in line


def test_a_card_that_the_hub_does_not_take(story: Story, hub: Hub, refused) -> None:
    hub.card_errors.append("license must be one of a list")
    line = refused("push", story.pack, "me/code")
    assert "the hub does not take what was to be sent to me/code" in line
    assert "license must be one of a list" in line
    assert there(hub) == {}


def test_a_file_that_a_gitignore_there_leaves_out_is_missed(story: Story, hub: Hub, refused) -> None:
    hub.ignored.add("blocks.safetensors")
    assert "me/code has blocks.safetensors with None bytes after the push" in refused("push", story.pack, "me/code")


# --- where it goes ------------------------------------------------------------------------------------


def test_a_second_push_replaces_and_removes_the_weights_of_the_first(
    story: Story, hub: Hub, folder: Path, said
) -> None:
    old = {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"{}", RECORD: b"{}"}
    hub.add("me/code", {**old, "notes.md": b"mine", "onnx/x.safetensors": b"2"})
    sent = said("push", folder, "me/code")
    assert sent["removed"] == ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert set(there(hub)) == {*tree(folder), "notes.md", "onnx/x.safetensors"}
    assert len(hub.repositories["me/code"].messages) == 2, "removed with the same commit"
    assert said("push", folder, "me/code")["removed"] == []
    sent = said("push", story.pack, "me/code")
    assert {RECORD, "model.safetensors"} <= set(sent["removed"]), "a pack and a checkpoint are two things"


def test_a_repository_of_something_else_is_not_touched(story: Story, hub: Hub, refused) -> None:
    hub.add("me/code", {"config.json": b"{}", "model.safetensors": b"x"})
    line = refused("push", story.pack, "me/code")
    assert "me/code holds 2 files (config.json, model.safetensors...) and was not pushed by blockexpand" in line
    assert set(there(hub)) == {"config.json", "model.safetensors"}


def test_a_pull_request_leaves_the_branch(story: Story, hub: Hub, said, refused) -> None:
    assert "the hub has no me/code, or the key may not see it" in refused("push", story.pack, "me/code", "--create-pr")
    hub.add("me/code", {"config.json": b"{}"})
    sent = said("push", story.pack, "me/code", "--create-pr")
    assert sent["url"] == f"{hub.url}/me/code/discussions/1"
    assert set(there(hub)) == {"config.json"}
    assert tree(story.pack).items() <= hub.repositories["me/code"].proposed[0].items()


def test_a_branch_is_made(story: Story, hub: Hub) -> None:
    done("push", story.pack, "me/code", "--revision", "v1")
    assert there(hub) == {}
    assert there(hub, revision="v1") == tree(story.pack)


def test_a_dry_run_asks_nobody_and_needs_no_key(
    story: Story, hub: Hub, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run(["push", str(story.pack), "me/code", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "in 3 files would be sent to me/code" in shown
    assert f"{(story.pack / 'pack.json').stat().st_size:,}  pack.json" in shown
    assert "tensors held against their recorded digests" in shown
    assert "licence: mit" in shown
    assert "the card names no base on the hub" in shown
    assert hub.asked == []


def test_where_it_cannot_go(story: Story, hub: Hub, monkeypatch, refused) -> None:
    assert "'code' is no repository of the hub; expected org/name" in refused("push", story.pack, "code")
    assert "'a b' is no branch" in refused("push", story.pack, "me/code", "--revision", "a b")
    both = ("--revision", "v1", "--create-pr")
    assert "a pull request goes to the main branch, and --revision is 'v1'" in refused(
        "push", story.pack, "me/code", *both
    )
    line = refused("push", story.pack, "me/code", "--token-variable", "NO_SUCH_KEY")
    assert "the environment variable NO_SUCH_KEY is not set" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing is sent to me/code" in refused("push", story.pack, "me/code")
    assert hub.asked == []


# --- what is looked at before anything is sent --------------------------------------------------------


def broken(refused, hub: Hub, path: Path) -> str:
    line = refused("push", path, "me/code")
    assert hub.asked == []
    return line


def test_no_card_no_push(story: Story, hub: Hub, folder: Path, pack: Path, refused) -> None:
    (pack / CARD).unlink()
    assert f"{pack} has no README.md; expected a model card; write it with" in broken(refused, hub, pack)
    shutil.copyfile(folder / "README.base.md", folder / CARD)
    assert "is no card of ours (the base's own, it may be)" in broken(refused, hub, folder)
    shutil.copyfile(story.deeper / CARD, folder / CARD)
    assert "of these before they were trained" in broken(refused, hub, folder)
    shutil.copyfile(story.pack / CARD, folder / CARD)
    assert f"{folder / CARD} is the card of other blocks" in broken(refused, hub, folder)


def test_no_licence_no_push(hub: Hub, pack: Path, refused) -> None:
    text = (pack / CARD).read_text()
    (pack / CARD).write_text(text.replace("license: mit\n", ""))
    assert f"{pack / CARD} states no licence; expected one" in broken(refused, hub, pack)
    (pack / CARD).write_text(text.replace("license: mit\n", "license: other\n"))
    assert "states the licence 'other' without its name and link" in broken(refused, hub, pack)
    (pack / CARD).write_text(text.replace("license: mit\n", "license: apache-2.0\n").replace("## Limits", "## Ours\n"))
    done("push", pack, "me/code")  # words of one's own are welcome
    assert there(hub)[CARD] == (pack / CARD).read_bytes()


def change(file: Path, name: str, value: float) -> None:
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})


def test_tensors_that_are_not_those_of_the_record_stay_here(hub: Hub, folder: Path, pack: Path, refused) -> None:
    change(pack / "blocks.safetensors", "after1.0.mlp.up_proj.weight", 3.0)
    assert "the bytes of 'after1.0.mlp.up_proj.weight' are not those" in broken(refused, hub, pack)
    change(folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight", 3.0)
    assert "the base's 'model.layers.0.mlp.up_proj.weight' is blake3:" in broken(refused, hub, folder)


@pytest.mark.parametrize("part", ["mlp.up_proj.weight", "mlp.up_proj.weight#scale", "input_layernorm.weight"])
def test_a_rounded_pack_is_opened_and_held_against_its_digests(
    part: str, story: Story, hub: Hub, tmp_path: Path, refused
) -> None:
    done("pack", "extract", story.run, tmp_path / "p", "--encoding", "int8", "--licence", "mit")
    change(tmp_path / "p" / "blocks.safetensors", f"after1.0.{part}", 3.0)
    name = f"after1.0.{part.removesuffix('#scale')}"
    assert f"the bytes of {name!r} are not those that pack.json names" in broken(refused, hub, tmp_path / "p")


def with_tensors_of(pack: Path, other: Path, names: list[str]) -> None:
    """Put some stored tensors of another pack of the same blocks in their places."""
    theirs = load_file(other / "blocks.safetensors")
    ours = load_file(pack / "blocks.safetensors") | {name: theirs[name] for name in names}
    save_file(ours, pack / "blocks.safetensors", metadata={"format": "pt"})


def test_a_delta_is_held_against_its_digests_with_the_base(
    story: Story, hub: Hub, tmp_path: Path, refused, said
) -> None:
    delta, other = tmp_path / "p", tmp_path / "untrained"
    for source, out in ((story.run, delta), (story.deeper, other)):
        done("pack", "extract", source, out, "--encoding", "delta", "--licence", "mit", "--name", "code")
    whole = (delta / "blocks.safetensors").read_bytes()
    donors = begun_as_donors(delta)
    constant = next(name for name in read_pack(delta).record.block_digests if name not in donors)
    with_tensors_of(delta, other, [constant])
    assert f"the bytes of {constant!r} are not those" in broken(refused, hub, delta), "without the base, too"
    (delta / "blocks.safetensors").write_bytes(whole)
    with_tensors_of(delta, other, donors[-1:])
    assert "NOT checked" in said("push", delta, "me/code", "--dry-run")["checked"]
    line = refused("push", delta, "me/code", "--base", story.base)
    assert f"the bytes of {donors[-1]!r} are not those that pack.json names" in line
    tensors = load_file(delta / "blocks.safetensors")
    tensors[donors[0]] = tensors[donors[0]][:-3].clone()
    save_file(tensors, delta / "blocks.safetensors", metadata={"format": "pt"})
    assert "bytes are left after its last piece" in broken(refused, hub, delta), "what does not open is no pack"


def test_a_base_that_is_not_the_packs_checks_nothing(
    story: Story, hub: Hub, tmp_path: Path, pack: Path, folder: Path, refused
) -> None:
    done("pack", "extract", story.run, tmp_path / "p", "--encoding", "delta", "--licence", "mit")
    other = Path(shutil.copytree(story.base, tmp_path / "other"))
    change(other / "model.safetensors", "model.layers.1.mlp.up_proj.weight", 3.0)
    line = refused("push", tmp_path / "p", "me/code", "--base", other)
    assert "the numbers of 'model.layers.1.mlp.up_proj.weight' are blake3:" in line
    assert "was trained on blake3:" in line
    assert "is expanded already" in refused("push", tmp_path / "p", "me/code", "--base", story.deeper)
    assert "no such folder" in refused("push", tmp_path / "p", "me/code", "--base", tmp_path / "none")
    for here, what in ((pack, "a pack stored as plain"), (folder, "a checkpoint")):
        line = refused("push", here, "me/code", "--base", story.base)
        assert f"is for a pack stored as delta, and {here} is {what}, which is checked without" in line
    assert hub.asked == []


def test_what_is_not_finite_or_not_whole_stays_here(hub: Hub, folder: Path, refused) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    new = read_expansion(folder).plan.new_positions[0]
    change(folder / "model.safetensors", f"model.layers.{new}.mlp.up_proj.weight", float("nan"))
    assert f"model.layers.{new}.mlp.up_proj.weight" in broken(refused, hub, folder)
    (folder / "model.safetensors").write_bytes(whole[:-10])
    assert "model.safetensors" in broken(refused, hub, folder)


def test_only_what_the_records_name_goes(hub: Hub, folder: Path, said) -> None:
    (folder / ".env").write_text("HF_TOKEN=hf_secret")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / "notes.txt").write_text("mine")
    (folder / "optimizer.pt").write_bytes(b"state")
    edit_json(folder / RECORD, lambda record: record.update(files_copied=[*record["files_copied"], ".env"]))
    stays = [".env", ".git/config", "notes.txt", "optimizer.pt"]
    assert said("push", folder, "me/code", "--dry-run")["stays"] == stays
    done("push", folder, "me/code")
    assert not set(stays) & set(there(hub))


def test_links_stay_here(hub: Hub, folder: Path, tmp_path: Path, refused) -> None:
    (tmp_path / "secret").write_text("{}")
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret")
    assert f"{folder / 'tokenizer_config.json'} is a link; expected the file itself" in broken(refused, hub, folder)


def test_paths_in_other_files_are_told(folder: Path, hub: Hub, said) -> None:
    edit_json(folder / "tokenizer_config.json", lambda config: config.update(a=["/home/alice/base"], b="/", c="~/x"))
    notes = said("push", folder, "me/code", "--dry-run")["notes"]
    assert [note for note in notes if "path of this machine" in note] == [
        "tokenizer_config.json names a path of this machine: '/home/alice/base'",
        "tokenizer_config.json names a path of this machine: '~/x'",
    ]


def test_a_proof_stays_about_its_plan(story: Story, hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(story.deeper, tmp_path / "proved"))
    record = read_expansion(folder)
    proof = Proof(
        plan_digest=digest_json(with_format(record.plan)), trained=False, dtypes=("float32",), device="cpu", checks=()
    )
    write_record(folder / RECORD, dataclasses.replace(record, proof=proof))
    done("push", folder, "me/code")
    (folder / RECORD).write_bytes(there(hub)[RECORD])
    sent = read_expansion(folder)
    assert sent.plan.base.source == story.base.name
    assert sent.proof is not None
    assert sent.proof.plan_digest == digest_json(with_format(sent.plan)) != proof.plan_digest


def test_a_model_whose_old_blocks_trained_goes_without_a_base(story: Story, hub: Hub, folder: Path, said) -> None:
    edit_json(folder / RECORD, lambda record: record["training"].update(arm="full"))
    change(folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight", 3.0)
    done("card", folder)
    assert "the base is not inside any more" in said("push", folder, "me/code")["checked"]


def test_from_python(story: Story, hub: Hub) -> None:
    pushed = push(story.pack, Destination(repo="me/code"), lambda: KEY)
    assert pushed.commit == hub.repositories["me/code"].branches["main"]
    assert push(story.pack, Destination(repo="me/code"), None).url is None
