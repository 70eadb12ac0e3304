"""Which files travel with a model and which stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockexpand.checkpoint import copy_files, open_checkpoint, other_files
from blockexpand.errors import CheckpointError
from helpers import MakeBase

TRAVEL = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_other_weights_hidden_folders_and_our_own_record_stay(own_base: MakeBase):
    folder = own_base("llama")
    stay = ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.GGUF", "consolidated.safetensors",
            "tf_model.h5", "training_args.bin", ".gitattributes", "blockexpand.json"]  # fmt: skip
    touch(folder, *stay, "README.md", "LICENSE", "assets/logo.svg", "assets/more/x.txt")
    touch(
        folder,
        "original/params.json",
        "original/consolidated.00.pth",
        ".git/config",
        ".cache/x",
        "__pycache__/a.pyc",
    )
    touch(folder, "onnx/deep/model.onnx", "onnx/config.json")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    files = other_files(open_checkpoint(folder))
    assert set(files.copied) == {*TRAVEL, "README.md", "LICENSE", "assets/logo.svg", "assets/more/x.txt"}
    folders = {"original/", ".git/", ".cache/", "__pycache__/", "onnx/", "empty/", "loop/"}
    assert set(files.left_out) == {*stay, "pipe", *folders}


def test_files_are_copied_through_links_and_into_folders(own_base: MakeBase, tmp_path: Path):
    folder = own_base("llama")
    touch(folder, "assets/a.txt")
    (folder / "assets" / "real.txt").write_text("real content")
    (folder / "NOTICE").symlink_to("assets/real.txt")
    checkpoint = open_checkpoint(folder)
    copy_files(checkpoint, other_files(checkpoint).copied, tmp_path / "out")
    assert (tmp_path / "out" / "assets" / "a.txt").read_text() == "assets/a.txt"
    assert (tmp_path / "out" / "NOTICE").read_text() == "real content"
    assert not (tmp_path / "out" / "NOTICE").is_symlink()
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("name", ["tokenizer_extra.json", "assets/logo.svg"])
def test_a_link_out_of_the_folder_is_refused(own_base: MakeBase, tmp_path: Path, name: str):
    """Or a model made to do harm could bring a secret of this machine into the model that is made from it."""
    folder = own_base("llama")
    (folder / "assets").mkdir()
    (tmp_path / "secret").write_text("s3cret")
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=rf"{name} leads to {tmp_path}/secret, outside of the model's folder"):
        other_files(open_checkpoint(folder))
    # Next to something called blobs, but no cache either.
    (tmp_path / "blobs").mkdir()
    (tmp_path / "secret").rename(tmp_path / "blobs" / "secret")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "blobs" / "secret")
    with pytest.raises(CheckpointError, match=r"blobs/secret, outside"):
        other_files(open_checkpoint(folder))


def test_two_names_that_are_one_on_the_target_are_refused(own_base: MakeBase, tmp_path: Path):
    folder = own_base("llama")
    touch(folder, "NOTICE")
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="NOTICE would take the place of another file"):
        copy_files(checkpoint, ("NOTICE", "NOTICE"), tmp_path / "out")


def test_a_link_that_leads_nowhere_is_an_incomplete_model(own_base: MakeBase):
    folder = own_base("llama")
    (folder / "vocab.json").symlink_to("../../blobs/gone")
    with pytest.raises(CheckpointError, match=r"vocab\.json is a link to '\.\./\.\./blobs/gone', which does not exist"):
        other_files(open_checkpoint(folder))
