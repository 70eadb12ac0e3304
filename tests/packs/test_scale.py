"""A pack whose blocks write a multiple of what another's write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from blockexpand import live
from blockexpand.checkpoint import open_checkpoint
from blockexpand.cli.main import run
from blockexpand.errors import BlockexpandError, PackError, RecordError
from blockexpand.expansion import expand, plan
from blockexpand.families import family_for, known_families
from blockexpand.packs import About, Card, attach, attach_on_disk, detach_on_disk, extract, read_pack, scale_on_disk
from blockexpand.packs.scale import _bytes_of, _floats_of
from blockexpand.records.plan import SILENT
from blockexpand.staging import RECORD_NAME
from blockexpand.training.export import export_model
from helpers import MakeBase, edit_json, load, tree
from packs_ground import PackGround, make_pack, make_trained

sys.path.append(str(Path(__file__).parents[1] / "families"))
from zoo import ZOO, Case, write

TOKENS = (torch.arange(24)[None] * 7) % 96


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(TOKENS, use_cache=False).logits


@pytest.mark.parametrize("by", [0.5, 0.7])
def test_what_writes_is_multiplied_and_all_else_is_the_same_bytes(by: float, ground: PackGround, tmp_path: Path):
    after = scale_on_disk(ground.packs["code"], tmp_path / "after", by)
    old, new = (load_file(folder / "blocks.safetensors") for folder in (ground.packs["code"], after.folder))
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        assert torch.equal(new[name], (tensor.float() * by).bfloat16() if writes else tensor)
        assert torch.equal(new[name], tensor) != writes
    attach_on_disk(ground.base, [after], tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out")), logits(attach(load(ground.base), after)))


def test_numbers_are_rounded_to_the_nearest_as_torch_does():
    chance = np.random.default_rng(0)
    values = chance.standard_normal(4096) * 10.0 ** chance.integers(-6, 4, 4096)
    for dtype, kind in (("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)):
        exact = torch.from_numpy(values.astype(np.float32))
        found = _bytes_of(exact.numpy(), dtype)
        assert found == exact.to(kind).view(torch.uint8).numpy().tobytes()
        assert _floats_of(found, dtype).tolist() == exact.to(kind).float().tolist()


FAMILIES = ("mixtral", "gemma2", "olmo2", "glm4", "gpt2", "gpt_oss")
"""Experts that memory holds as one, gains behind norms (stored minus one, or as they are), biases, transposed."""


@pytest.mark.parametrize("row", [next(row for row in ZOO if row.family == name) for name in FAMILIES], ids=FAMILIES)
def test_what_each_branch_writes_is_multiplied_in_every_kind_of_family(row: Case, tmp_path: Path):
    """With one writer alone, the scaled block adds `by` times what it added; from disk and in memory alike."""
    by, base = 0.7, write(row, tmp_path / "base", torch.float32)
    pack = make_pack(make_trained(base, tmp_path / "m", after=(1,)), tmp_path / "m.pack", "m")
    small = scale_on_disk(pack, tmp_path / "small", by)
    models = attach(load(base), [pack]), attach(load(base), [small])
    assert not torch.equal(*map(logits, models))
    in_memory = known_families()[live.plan_of(models[0]).base.family].block.name_in_memory
    tensors = pack.record.plan.tensors_of(pack.record.plan.new_blocks[0].donor)
    writers = {in_memory(t.tail): -1.0 if t.starts == "minus-one" else 0.0 for t in tensors if t.starts in SILENT}
    assert len(writers) >= 2
    numbers = [
        {n: p.detach().clone() for n, p in next(iter(live.new_blocks(m).values())).named_parameters() if n in writers}
        for m in models
    ]
    for name in writers:
        before, after = (added_by(m, held, writers, name) for m, held in zip(models, numbers, strict=True))
        assert before.any()
        torch.testing.assert_close(after, before * by, rtol=0, atol=2e-6 * float(before.abs().max() + 1))


@torch.no_grad()
def added_by(model: Any, numbers: dict[str, Tensor], writers: dict[str, float], name: str) -> Tensor:
    """What the model's one new block adds to its input with this writer alone."""
    (block,) = live.new_blocks(model).values()
    for other, parameter in block.named_parameters():
        if other in writers:
            parameter.copy_(numbers[other]) if other == name else parameter.fill_(writers[other])
    seen: list[Tensor] = []

    def note(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        seen.append((output[0] if isinstance(output, tuple) else output) - given)

    handle = block.register_forward_hook(note, with_kwargs=True)
    model(TOKENS, use_cache=False)
    handle.remove()
    return seen[0]


def test_scaled_twice_is_one_scale_of_the_first_pack(ground: PackGround, tmp_path: Path):
    first = read_pack(ground.packs["code"])
    half = scale_on_disk(first, tmp_path / "half", 0.5)
    quarter = scale_on_disk(half, tmp_path / "quarter", 0.5, name="small")
    at_once = scale_on_disk(first, tmp_path / "at-once", 0.25, name="small")
    assert quarter.record.scaled is not None
    assert (quarter.record.scaled.of, quarter.record.scaled.by) == (first.record.fingerprint, 0.25)
    assert tree(quarter.folder) == tree(at_once.folder)
    back = scale_on_disk(quarter, tmp_path / "back", 4.0, name="code")
    assert tree(back.folder) == tree(first.folder), "the first pack again, and not called scaled"
    assert tree(scale_on_disk(first, tmp_path / "same", 1.0).folder) == tree(first.folder)
    # What never trained writes nothing, so there is nothing to scale.
    untrained = make_pack(ground.trained["code"].with_name("code.expanded"), tmp_path / "untrained", "code")
    assert scale_on_disk(untrained, tmp_path / "still", 0.5).record == untrained.record


def test_a_scaled_pack_is_a_pack(ground: PackGround, tmp_path: Path):
    """Attached, taken out, taken off: its record stays with it, and the base comes back byte for byte."""
    half = scale_on_disk(ground.packs["code"], tmp_path / "half", 0.5)
    attach_on_disk(ground.base, [half, ground.packs["law"]], tmp_path / "both")
    assert extract(tmp_path / "both", tmp_path / "again", pack="code").record == half.record
    assert detach_on_disk(tmp_path / "both", tmp_path / "one", ["law"]).packs_left == ("code",)
    assert extract(tmp_path / "one", tmp_path / "once-more").record == half.record
    detach_on_disk(tmp_path / "both", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(ground.base)
    # Trained on, the blocks are no multiple of anything any more.
    trained = live.load(tmp_path / "one", dtype=torch.float32)[0]
    with torch.no_grad():
        for _, parameter in live.freeze(trained):
            parameter.mul_(1.5)
    base = open_checkpoint(ground.base)
    tensors = live.tensors_on_disk(trained, family_for(base.config, base.source, base.tensors))
    export_model(tmp_path / "one", tmp_path / "on", tensors, {"arm": "blocks"})
    assert extract(tmp_path / "on", tmp_path / "on.pack").record.scaled is None


def test_what_was_measured_is_left_out_and_what_was_said_stays(
    ground: PackGround, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results = tmp_path / "results.json"
    results.write_text('{"domain": 1.5}')
    card = Card(description="Writes Python.", licence="mit")
    pack = extract(ground.trained["code"], tmp_path / "pack", About(name="code", evaluation=results, card=card))
    assert run(["pack", "scale", str(pack.folder), str(tmp_path / "half"), "--by", "0.5", "--name", "gentle"]) == 0
    told = capsys.readouterr().out
    half = read_pack(tmp_path / "half").record
    assert (half.name, half.evaluation, half.training, half.card) == ("gentle", None, pack.record.training, card)
    assert "measured" in told
    assert pack.record.fingerprint in told
    text = (tmp_path / "half" / "README.md").read_text()
    assert "license: mit" in text
    assert f"0.5 times what those of the pack {pack.record.fingerprint}" in text
    assert run(["pack", "scale", str(pack.folder), str(tmp_path / "same"), "--by", "1"]) == 0
    assert read_pack(tmp_path / "same").record.evaluation == pack.record.evaluation


@pytest.mark.parametrize("by", [0.0, -1.0, 1e-4, 1001.0, float("nan"), float("inf")])
def test_gains_that_are_no_scale(by: float, ground: PackGround, out: Path):
    with pytest.raises(PackError, match=f"by {by:g}"):
        scale_on_disk(ground.packs["code"], out, by)
    assert not out.exists()


def test_what_else_is_refused(ground: PackGround, tmp_path: Path, out: Path, tiny_base: MakeBase):
    small = scale_on_disk(ground.packs["code"], tmp_path / "small", 0.01)
    with pytest.raises(PackError, match=r"0\.01 times already"):
        scale_on_disk(small, out, 0.01)
    for where in (tmp_path / "o" / ".." / "small", tmp_path, small.folder / "in"):
        with pytest.raises(PackError, match="beside"):
            scale_on_disk(small, where, 0.5, overwrite=True)
    with pytest.raises(RecordError, match="such/name"):
        scale_on_disk(small, out, 0.5, name="no such/name")
    expand(ground.base, tmp_path / "copied", plan(ground.base, 2, init="copy"))
    with pytest.raises(PackError, match="'copy'"):
        scale_on_disk(extract(tmp_path / "copied", tmp_path / "pack", About(name="copied")), out, 0.5)
    half = tiny_base("llama", dtype=torch.float16)
    pack = make_pack(make_trained(half, tmp_path / "m", after=(1,), by=100.0), tmp_path / "m.pack", "m")
    with pytest.raises(PackError, match=r"by 1000.*after1\.0.*F16"):
        scale_on_disk(pack, out, 1000.0)
    path, entry = pack.folder / "blocks.safetensors", pack.stored["after1.0.mlp.up_proj.weight"]
    data = bytearray(path.read_bytes())
    data[entry.end - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(PackError, match=r"'after1\.0\.mlp\.up_proj\.weight'"):
        scale_on_disk(pack.folder, out, 0.5)
    assert not out.exists()


@pytest.mark.parametrize("scaled_as", [{"of": "sha256:1", "by": 0.5}, {"of": "sha256:" + "0" * 64, "by": 0.0}])
def test_records_that_say_odd_things_of_scaling_are_refused(
    scaled_as: dict[str, Any], ground: PackGround, tmp_path: Path
):
    pack = make_pack(ground.trained["code"], tmp_path / "pack", "code")
    edit_json(pack.folder / "pack.json", lambda record: record.update(scaled=scaled_as))
    with pytest.raises(PackError, match="scaled"):
        read_pack(pack.folder)
    attach_on_disk(ground.base, [ground.packs["code"]], tmp_path / "attached")
    edit_json(tmp_path / "attached" / RECORD_NAME, lambda record: record["packs"][0]["about"].update(scaled=scaled_as))
    with pytest.raises(BlockexpandError, match="scaled"):
        extract(tmp_path / "attached", tmp_path / "again")
