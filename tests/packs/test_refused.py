"""What does not belong together is refused in its own words, with both values, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockexpand.cli.main import run
from blockexpand.errors import BlockexpandError, ExpansionError, PackError, RecordError, StagingError
from blockexpand.expansion import expand, plan
from blockexpand.packs import About, Card, attach_on_disk, detach_on_disk, extract, read_pack
from blockexpand.records import write_record
from blockexpand.records.expansion import read_expansion
from blockexpand.staging import RECORD_NAME
from helpers import MakeBase, edit_config, edit_json, make_base
from packs_ground import PackGround, make_pack, make_trained


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def refused_line(base: Path, packs: list[Path], out: Path) -> str:
    """The line with which attaching is refused; nothing is there afterwards."""
    with pytest.raises(BlockexpandError) as caught:
        attach_on_disk(base, packs, out)
    assert not out.exists()
    assert not [p for p in out.parent.iterdir() if p.name.startswith(f".{out.name}")]
    return str(caught.value)


def test_a_base_of_another_family(ground: PackGround, tiny_base: MakeBase, out: Path):
    line = refused_line(tiny_base("qwen3"), [ground.packs["code"]], out)
    assert "the pack 'code' is for family llama, and" in line
    assert "has qwen3; expected the base it was trained on" in line


def test_a_base_of_another_precision(ground: PackGround, tiny_base: MakeBase, out: Path):
    line = refused_line(tiny_base("llama", dtype=torch.float32), [ground.packs["code"]], out)
    assert "the pack 'code' is of precision BF16, and" in line
    assert "has F32" in line


def test_a_base_of_another_depth_config_or_shape(ground: PackGround, tiny_base: MakeBase, tmp_path: Path, out: Path):
    line = refused_line(tiny_base("llama", blocks=5), [ground.packs["code"]], out)
    assert "for a base of so many blocks: 4, and" in line
    assert "has 5" in line
    other = edit_config(copy(ground.base, tmp_path / "config"), rms_norm_eps=1e-5)
    assert "for a base with config.json sha256:" in refused_line(other, [ground.packs["code"]], out)
    biased = tiny_base("llama", tie_word_embeddings=True)
    shutil.copy(ground.base / "config.json", copy(biased, tmp_path / "layout") / "config.json")
    line = refused_line(tmp_path / "layout", [ground.packs["code"]], out)
    assert "lm_head.weight" in line


def test_a_base_with_other_numbers(ground: PackGround, tmp_path: Path, out: Path):
    """The same model from another seed, and the same model with one number changed."""
    other = make_base(tmp_path / "other", seed=7)
    line = refused_line(other, [ground.packs["code"]], out)
    assert "the numbers of" in line
    assert "and the pack 'code' was trained on blake3:" in line
    changed = copy(ground.base, tmp_path / "changed")
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] += 0.25
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    line = refused_line(changed, [ground.packs["math"], ground.packs["code"]], out)
    assert "'model.layers.0.mlp.up_proj.weight' are blake3:" in line
    assert "expected its base unchanged" in line


def test_a_base_that_is_expanded_already(ground: PackGround, out: Path):
    line = refused_line(ground.trained["code"], [ground.packs["law"]], out)
    assert "is expanded already, to 6 blocks; expected the base of 'law', of 4" in line


def test_a_newer_format(ground: PackGround, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pack = copy(ground.packs["code"], tmp_path / "pack")
    edit_json(pack / "pack.json", lambda record: record.update(format_version=2))
    with pytest.raises(PackError, match=r"format version 2, this blockexpand reads 1; use the version of blockexpand"):
        read_pack(pack)
    assert run(["pack", "show", str(pack)]) == 2
    assert "format version 2" in capsys.readouterr().err


def test_two_packs_of_one_name(ground: PackGround, tmp_path: Path, out: Path):
    line = refused_line(ground.base, [ground.packs["code"], ground.packs["code"]], out)
    assert "are the same pack ('code')" in line
    assert "give it once" in line
    other = make_pack(ground.trained["law"], tmp_path / "other", "code").folder
    line = refused_line(ground.base, [ground.packs["code"], other], out)
    assert "are different packs of one name ('code')" in line
    assert "change the name in one's pack.json" in line
    assert "no pack given" in refused_line(ground.base, [], out)


def test_packs_whose_blocks_start_in_different_ways(ground: PackGround, tmp_path: Path, out: Path):
    copied = tmp_path / "copied"
    expand(ground.base, copied, plan(ground.base, 1, init="copy"))
    pack = make_pack(copied, tmp_path / "pack", "copied").folder
    line = refused_line(ground.base, [pack, ground.packs["code"]], out)
    assert "init 'copy' and 'identity' cannot be in one plan" in line


def test_a_stack_that_the_config_cannot_state(tmp_path: Path, out: Path):
    """Windows in the upper blocks only, said by a number: a pack below the border and one above it fit alone."""
    base = make_base(tmp_path / "base", "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=2)
    packs = [
        make_pack(make_trained(base, tmp_path / n, after=(at,)), tmp_path / f"{n}.p", n)
        for n, at in (("a", 0), ("b", 3))
    ]
    made = attach_on_disk(base, packs, out)
    assert made.plan.config_changes["layer_types"] == ["full_attention"] * 3 + ["sliding_attention"] * 3


def test_a_plan_changed_by_hand(ground: PackGround, tmp_path: Path, out: Path):
    """A stranger's pack cannot bring its own config entries."""
    pack = copy(ground.packs["code"], tmp_path / "pack")

    def change(record: dict[str, Any]) -> None:
        record["plan"]["config_changes"]["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
        record["plan"]["config_before"]["auto_map"] = None

    edit_json(pack / "pack.json", change)
    line = refused_line(ground.base, [pack], out)
    assert "was changed by hand: the plan is not for" in line
    assert "evil.Model" in line


def test_blocks_with_other_bytes(ground: PackGround, tmp_path: Path, out: Path):
    pack = make_pack(ground.trained["code"], tmp_path / "pack", "code")
    entry = pack.stored["after1.0.mlp.up_proj.weight"]
    path = pack.folder / "blocks.safetensors"
    data = bytearray(path.read_bytes())
    data[entry.end - 40] ^= 0x10
    path.write_bytes(data)
    assert "'after1.0.mlp.up_proj.weight'" in refused_line(ground.base, [pack.folder], out)


Change = Callable[[dict[str, Any]], object]
BAD_RECORDS: dict[str, tuple[Change, str]] = {
    "name": (lambda r: r.update(name="../code"), "name: expected 1 to 64 letters, digits, dots, dashes"),
    "family": (lambda r: r.update(family="qwen3"), "family: expected the plan's, 'llama', got 'qwen3'"),
    "dtypes": (lambda r: r.update(dtypes=["F32"]), r"dtypes: expected the plan's, \['BF16'\], got \['F32'\]"),
    "one block fewer": (
        lambda r: r["plan"]["new_blocks"].pop(),
        "block_digests: expected one for each tensor of the plan's new blocks, got 'after3.0",
    ),
    "digest": (
        lambda r: r["base_digests"].update({"model.norm.weight": "md5:12"}),
        r"base_digests.model.norm.weight: expected blake3: and 64 hex digits, got 'md5:12'",
    ),
    "card": (lambda r: r.update(card={"description": "x" * 10_001}), "description: expected 10,000, got '10,001 char"),
    "unknown key": (lambda r: r.update(run="rm -rf"), "unknown key 'run'"),
    "another format": (lambda r: r.update(format="blockexpand.plan"), "expected format 'blockexpand.pack'"),
}


@pytest.mark.parametrize("what", BAD_RECORDS)
def test_a_record_that_contradicts_itself(what: str, ground: PackGround, tmp_path: Path):
    change, expected = BAD_RECORDS[what]
    pack = copy(ground.packs["code"], tmp_path / "pack")
    edit_json(pack / "pack.json", change)
    with pytest.raises(PackError, match=expected):
        read_pack(pack)


def test_what_is_no_pack(ground: PackGround, tmp_path: Path):
    with pytest.raises(PackError, match=r"has no pack.json"):
        read_pack(ground.base)
    pack = copy(ground.packs["code"], tmp_path / "pack")
    (pack / "blocks.safetensors").unlink()
    with pytest.raises(PackError, match=r"has no blocks.safetensors; expected the blocks beside pack.json"):
        read_pack(pack)


def test_taking_out_what_cannot_be_a_pack(ground: PackGround, tmp_path: Path, out: Path):
    with pytest.raises(PackError, match="a base"):
        extract(ground.base, out)
    with pytest.raises(PackError, match="is a pack"):
        detach_on_disk(ground.packs["code"], out)
    with pytest.raises(PackError, match="models come before packs"):
        attach_on_disk(ground.base, [ground.trained["code"]], out)
    with pytest.raises(PackError, match=r"has no pack 'math'; expected one that was attached there; it holds none"):
        extract(ground.trained["code"], out, pack="math")
    attach_on_disk(ground.base, list(ground.packs.values()), tmp_path / "all")
    with pytest.raises(PackError, match=r"holds the packs code, law, math; expected one to take out"):
        extract(tmp_path / "all", out)
    with pytest.raises(PackError, match=r"has no pack 'mat'.*did you mean 'math'"):
        extract(tmp_path / "all", out, pack="mat")
    with pytest.raises(StagingError, match="already exists"):
        extract(ground.trained["code"], tmp_path / "all")
    with pytest.raises(RecordError, match="name: expected 1 to 64 letters"):
        extract(ground.trained["code"], out, About(name="my pack"))
    with pytest.raises(RecordError, match="description: expected 10,000"):
        Card(description="x" * 20_000)
    assert not out.exists()


def test_old_blocks_that_were_trained_too(ground: PackGround, tmp_path: Path, out: Path):
    """Full training of an expanded folder: the new blocks are not all that was trained, nor the rest the base."""
    folder = copy(ground.trained["code"], tmp_path / "full")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        PackError, match=r"'model.layers.0.mlp.up_proj.weight' is not the base's any more .*only the new"
    ):
        extract(folder, out)
    with pytest.raises(
        PackError, match=r"'model.layers.0.mlp.up_proj.weight' is not the base's any more .*as blockexp"
    ):
        detach_on_disk(folder, out)
    assert not out.exists()


def test_blocks_that_are_no_numbers(ground: PackGround, tmp_path: Path, out: Path):
    folder = copy(ground.trained["code"], tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BlockexpandError, match=r"'model.layers.2.mlp.up_proj.weight' holds 1 NaN"):
        extract(folder, out)


def test_a_folder_changed_since(ground: PackGround, tmp_path: Path, out: Path):
    folder = edit_config(copy(ground.trained["code"], tmp_path / "config"), rope_theta=5.0)
    record = read_expansion(folder)
    write_record(folder / RECORD_NAME, dataclasses.replace(record, base_files=()))
    with pytest.raises(PackError, match=r"its config.json is not the base's with the plan's changes"):
        detach_on_disk(folder, out)
    short = edit_config(copy(ground.trained["code"], tmp_path / "short"), num_hidden_layers=5)
    tensors = load_file(short / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith("model.layers.5.")}
    save_file(kept, short / "model.safetensors", {"format": "pt"})
    with pytest.raises(PackError, match=r"lack block 5 of the 6 that its record names"):
        detach_on_disk(short, out)
    del tensors["model.layers.5.mlp.up_proj.weight"]
    save_file(tensors, short / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        PackError, match=r"'model.layers.5.mlp.up_proj.weight' of the new block after3.0 is no such tensor"
    ):
        extract(short, out)
    assert not out.exists()


def test_outputs_that_touch_what_they_are_made_from(ground: PackGround, tmp_path: Path):
    base = copy(ground.base, tmp_path / "base")
    with pytest.raises(ExpansionError, match="is the base"):
        attach_on_disk(base, [ground.packs["code"]], base / "out")
    folder = copy(ground.trained["code"], tmp_path / "trained")
    with pytest.raises(ExpansionError, match="is the base"):
        detach_on_disk(folder, folder)
    with pytest.raises(PackError, match=r"has no pack 'code'; .*it holds none; leave the name out"):
        detach_on_disk(folder, tmp_path / "out", ["code"])


def test_a_run_folder_is_taken_by_its_model(ground: PackGround, tmp_path: Path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    copy(ground.trained["code"], run_folder / "model")
    record = {
        "format": "blockexpand.run",
        "format_version": 1,
        "num_steps": 12,
        "num_tokens": 3456,
        "machine": "x86, mine",
        "settings": {"model": "/home/me/base", "lr": 0.1},
        "base": {"domain": 2.0},
        "best": {"domain": 1.0},
    }
    (run_folder / RECORD_NAME).write_text(json.dumps(record))
    pack = extract(run_folder, tmp_path / "pack", About(name="code"))
    assert pack.record.fingerprint == read_pack(ground.packs["code"]).record.fingerprint
    assert pack.record.training is not None
    assert pack.record.training["run"]["settings"] == {"model": "base", "lr": 0.1}
    assert "machine" not in pack.record.training["run"]
    assert pack.record.evaluation == {"run": {"base": {"domain": 2.0}, "best": {"domain": 1.0}}}
