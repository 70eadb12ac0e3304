"""Out of a checkpoint, onto the base, off again: the same bytes at each step."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockexpand import live
from blockexpand.checkpoint import digest_tensors, open_checkpoint
from blockexpand.cli.main import run
from blockexpand.expansion import expand, plan, verify
from blockexpand.families import family_for
from blockexpand.packs import About, Card, attach_on_disk, describe, detach_on_disk, extract, read_pack
from blockexpand.records import write_record
from blockexpand.records.expansion import read_expansion
from blockexpand.staging import RECORD_NAME
from blockexpand.training.export import export_model
from helpers import MakeBase, edit_json, tree
from packs_ground import PLACES, PackGround, make_pack, make_trained


def weights_and_config(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if name != RECORD_NAME}


def digests(folder: Path) -> dict[str, str]:
    return {name: found.digest for name, found in digest_tensors(open_checkpoint(folder)).items()}


@pytest.mark.parametrize("name", PLACES)
def test_attaching_gives_the_trained_folder_byte_for_byte(
    each_ground: PackGround, name: str, tmp_path: Path, out: Path
):
    pack = make_pack(each_ground.trained[name], tmp_path / "pack", name)
    record = attach_on_disk(each_ground.base, [pack.folder], out)
    assert weights_and_config(out) == weights_and_config(each_ground.trained[name])
    assert record == read_expansion(out)
    assert record.plan.new_blocks == read_expansion(each_ground.trained[name]).plan.new_blocks
    assert [attached.name for attached in record.packs] == [name]


def test_detaching_gives_the_base_byte_for_byte(each_ground: PackGround, out: Path, tmp_path: Path):
    attach_on_disk(each_ground.base, list(each_ground.packs.values()), tmp_path / "all")
    for folder in (tmp_path / "all", each_ground.trained["code"], each_ground.trained["math"]):
        done = detach_on_disk(folder, tmp_path / f"{folder.name}.base")
        assert (done.same_files, done.checked, done.packs_left) == (True, True, ())
        assert tree(tmp_path / f"{folder.name}.base") == tree(each_ground.base)


def test_detaching_without_recorded_headers_gives_the_same_tensors_and_config(ground: PackGround, tmp_path: Path):
    """As for folders that were written before the record had them, with digests or without."""
    for digested in (True, False):
        folder = tmp_path / f"expanded-{digested}"
        expand(ground.base, folder, plan(ground.base, 2), digest=digested)
        record = dataclasses.replace(read_expansion(folder), base_files=())
        write_record(folder / RECORD_NAME, record)
        done = detach_on_disk(folder, tmp_path / f"base-{digested}")
        assert (done.same_files, done.checked) == (False, digested)
        assert digests(tmp_path / f"base-{digested}") == digests(ground.base)
        config = json.loads((tmp_path / f"base-{digested}" / "config.json").read_text())
        assert config == json.loads((ground.base / "config.json").read_text())


def test_the_base_s_config_comes_back_where_an_entry_was_missing(own_base: MakeBase, tmp_path: Path):
    """The plan states `layer_types`, which the base left to its class; without the text, the digest decides."""
    base = own_base("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=3)
    edit_json(base / "config.json", lambda config: config.pop("layer_types", None))
    folder = tmp_path / "expanded"
    expand(base, folder, plan(base, 2))
    write_record(folder / RECORD_NAME, dataclasses.replace(read_expansion(folder), base_files=()))
    detach_on_disk(folder, tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert "layer_types" in read_expansion(folder).plan.config_before
    assert config == json.loads((base / "config.json").read_text())


def test_packs_attach_in_any_order_by_one_rule(ground: PackGround, tmp_path: Path):
    made = []
    for number, order in enumerate(itertools.permutations(ground.packs.values())):
        attach_on_disk(ground.base, list(order), tmp_path / str(number))
        made.append(tree(tmp_path / str(number)))
    assert all(one == made[0] for one in made)
    record = read_expansion(tmp_path / "0")
    # On block 1: code's, then both of math's; on block 3: code's, then law's. By name, never by the order given.
    assert {pack.name: pack.blocks for pack in record.packs} == {
        "code": {"after1.0": "after1.0", "after3.0": "after3.0"},
        "law": {"after3.0": "after3.1"},
        "math": {"before0.0": "before0.0", "after1.0": "after1.1", "after1.1": "after1.2", "after2.0": "after2.0"},
    }
    assert [block.after for block in record.plan.new_blocks] == [-1, 1, 1, 1, 2, 3, 3]
    config = json.loads((tmp_path / "0" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4 + 7


def test_each_pack_can_be_taken_off_and_out_alone(each_ground: PackGround, tmp_path: Path):
    both = tmp_path / "both"
    attach_on_disk(each_ground.base, [each_ground.packs["math"], each_ground.packs["code"]], both)
    for gone, left in (("code", "math"), ("math", "code")):
        done = detach_on_disk(both, tmp_path / left, [gone])
        assert done.packs_left == (left,)
        assert digests(tmp_path / left) == digests(each_ground.trained[left])
        assert tree(tmp_path / left).keys() == tree(each_ground.trained[left]).keys()
        # What is left can be taken off as well, and is the base; taken out, it is the pack that was attached.
        assert detach_on_disk(tmp_path / left, tmp_path / f"{left}.base").same_files
        assert tree(tmp_path / f"{left}.base") == tree(each_ground.base)
        out = extract(both, tmp_path / f"{left}.pack", pack=left)
        assert out.record == read_pack(each_ground.packs[left]).record
        assert tree(out.folder) == tree(each_ground.packs[left])


def test_an_attached_folder_is_proved_like_any_other(ground: PackGround, out: Path):
    attach_on_disk(ground.base, list(ground.packs.values()), out)
    proof = verify(ground.base, out)
    assert proof.trained
    assert proof.passed


def test_a_base_in_another_folder_or_other_shards_is_the_same_base(
    ground: PackGround, sharded_ground: PackGround, tmp_path: Path
):
    """Tensors decide, not files: the two bases have the same numbers."""
    attach_on_disk(sharded_ground.base, [ground.packs["code"]], tmp_path / "out")
    assert digests(tmp_path / "out") == digests(ground.trained["code"])


def test_a_pack_is_hardly_larger_than_its_blocks(tmp_path: Path, tiny_base: MakeBase):
    base = tiny_base("llama", hidden_size=512, intermediate_size=2048, num_attention_heads=8, num_key_value_heads=8)
    pack = make_pack(make_trained(base, tmp_path / "m", after=(0, 1, 2, 3)), tmp_path / "pack", "m")
    block_bytes = sum(entry.num_bytes for entry in pack.stored.values())
    assert block_bytes > 30e6
    assert block_bytes < pack.num_bytes <= 1.001 * block_bytes


def test_what_a_pack_says_of_itself(ground: PackGround, tmp_path: Path):
    results = tmp_path / "results.json"
    results.write_text(
        json.dumps({"format": "blockexpand.evaluation", "domain": 1.5, "model": "/home/me/secret/model"})
    )
    card = Card(description="Writes Python.", licence="apache-2.0", base_model="org/base", languages=("en",))
    about = About(name="code", evaluation=results, card=card)
    pack = extract(ground.trained["code"], tmp_path / "pack", about)
    record = pack.record
    assert (record.family, record.dtypes, record.card) == ("llama", ("BF16",), card)
    assert record.training == {"arm": "blocks"}
    assert record.evaluation == {"results": {"format": "blockexpand.evaluation", "domain": 1.5, "model": "model"}}
    assert record.base_digests == digests(ground.base)
    assert str(ground.base.parent) not in (pack.folder / "pack.json").read_text(), "a path of this machine"
    text = describe(pack)
    for part in ("'code'", "after1.0 (copy of 1)", "org/base", "apache-2.0", "Writes Python.", record.fingerprint):
        assert part in text
    # And it all survives being attached and taken out again.
    attach_on_disk(ground.base, [pack], tmp_path / "attached")
    assert extract(tmp_path / "attached", tmp_path / "again").record == record


def test_what_was_measured_is_left_out_once_an_attached_pack_was_trained_on(ground: PackGround, tmp_path: Path):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"domain": 1.5}))
    first = extract(ground.trained["code"], tmp_path / "code", About(name="code", evaluation=results))
    attach_on_disk(ground.base, [first], tmp_path / "on")
    assert extract(tmp_path / "on", tmp_path / "same").record.evaluation == {"results": {"domain": 1.5}}
    trained = live.load(tmp_path / "on", dtype=torch.float32)[0]
    with torch.no_grad():
        for _, parameter in live.freeze(trained):
            parameter.mul_(1.5)
    base = open_checkpoint(ground.base)
    tensors = live.tensors_on_disk(trained, family_for(base.config, base.source, base.tensors))
    export_model(tmp_path / "on", tmp_path / "run" / "model", tensors, {"arm": "blocks"})
    (tmp_path / "run" / RECORD_NAME).write_text(
        json.dumps({"format": "blockexpand.run", "best": {"domain": 1.0}, "base": {"domain": 2.0}})
    )
    later = extract(tmp_path / "run" / "model", tmp_path / "later").record
    assert (later.evaluation, later.training) == (None, first.record.training)
    of_run = extract(tmp_path / "run", tmp_path / "of-run").record
    assert of_run.evaluation == {"run": {"base": {"domain": 2.0}, "best": {"domain": 1.0}}}
    assert of_run.training is not None
    assert of_run.training["run"]["best"] == {"domain": 1.0}
    results.write_text(json.dumps({"domain": 0.5}))
    measured = extract(tmp_path / "run" / "model", tmp_path / "measured", About(evaluation=results)).record
    assert measured.evaluation == {"results": {"domain": 0.5}}


def test_the_verbs(ground: PackGround, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, math = (str(ground.packs[name]) for name in ("code", "math"))
    out, alone, back = (str(tmp_path / name) for name in ("out", "alone", "back"))
    assert run(["pack", "attach", str(ground.base), math, code, out]) == 0
    assert "10 blocks, those of code, math among them: before0.0 at 0" in capsys.readouterr().out
    assert run(["pack", "detach", out, alone, "--pack", "math"]) == 0
    assert "the base with code" in capsys.readouterr().out
    assert run(["pack", "detach", out, back]) == 0
    assert "its own files, byte for byte; each of its 39 tensors held against" in capsys.readouterr().out
    assert tree(Path(back)) == tree(ground.base)
    assert run(["pack", "extract", out, str(tmp_path / "p"), "--pack", "code", "--licence", "mit", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["format"], shown["name"], shown["card"]["licence"]) == ("blockexpand.pack", "code", "mit")
    assert run(["pack", "show", str(tmp_path / "p")]) == 0
    assert "licence (as its maker says): mit" in capsys.readouterr().out
    assert run(["pack", "attach", str(ground.base), out]) == 2
    assert "expected one or more packs and the folder to write" in capsys.readouterr().err


def test_packs_on_disk_need_no_torch(ground: PackGround, tmp_path: Path):
    code = (
        "import sys\nfrom blockexpand.packs import attach_on_disk, detach_on_disk, read_pack\n"
        f"attach_on_disk({str(ground.base)!r}, [{str(ground.packs['code'])!r}], {str(tmp_path / 'out')!r})\n"
        f"detach_on_disk({str(tmp_path / 'out')!r}, {str(tmp_path / 'back')!r})\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_older_pack_is_replaced_only_when_asked(ground: PackGround, tmp_path: Path):
    first = make_pack(ground.trained["code"], tmp_path / "pack", "code")
    again = make_pack(ground.trained["law"], tmp_path / "pack", "law", overwrite=True)
    assert (first.name, read_pack(again.folder).name) == ("code", "law")
