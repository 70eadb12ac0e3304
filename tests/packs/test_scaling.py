"""A pack whose blocks write a multiple: on disk, in memory, and that the two are one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
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
from blockexpand.errors import BlockexpandError, LiveError, PackError, RecordError
from blockexpand.expansion import expand, plan
from blockexpand.families import family_for, known_families
from blockexpand.packs import (
    About,
    Card,
    attach,
    attach_on_disk,
    detach,
    detach_on_disk,
    extract,
    load_with_packs,
    read_pack,
    scale_on_disk,
)
from blockexpand.packs.gains import Writer, set_gain
from blockexpand.packs.in_memory import attached, disable, gains, scale, scaled
from blockexpand.packs.scale import _times
from blockexpand.publishing import Said, write_card
from blockexpand.records import to_plain, write_record
from blockexpand.records.expansion import read_expansion
from blockexpand.records.plan import SILENT
from blockexpand.staging import RECORD_NAME
from blockexpand.training.export import export_model
from helpers import MakeBase, edit_json, load, tree
from packs_ground import PackGround, make_pack, make_trained

sys.path.append(str(Path(__file__).parents[1] / "families"))
from zoo import ZOO, Case, write

TOKENS = (torch.arange(24)[None] * 7) % 96
ENCODINGS = ("plain", "delta", "int8")


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(TOKENS, use_cache=False).logits


def decoded(ground: PackGround, pack: Path, out: Path) -> dict[str, Tensor]:
    """The pack's tensors as attaching gives them."""
    attach_on_disk(ground.base, [pack], out)
    record = read_expansion(out)
    held = load_file(out / "model.safetensors")
    return {
        f"{block.id}.{tensor.tail}": held[f"model.layers.{block.position}.{tensor.tail}"]
        for block in record.plan.new_blocks
        for tensor in record.plan.tensors_of(block.donor)
    }


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("by", [0.5, 2.0, 0.7])
def test_what_writes_is_multiplied_and_all_else_is_the_same_bytes(
    by: float, encoding: str, ground: PackGround, tmp_path: Path
):
    before = make_pack(ground.trained["code"], tmp_path / "before", "code", encoding=encoding)
    after = scale_on_disk(before, tmp_path / "after", by)
    assert (after.name, after.record.encoding) == ("code", encoding)
    old, new = (decoded(ground, p.folder, tmp_path / f"{p.folder.name}.out") for p in (before, after))
    num_scaled = 0
    for name, tensor in old.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            expected = (tensor.float() * by).bfloat16()
            if encoding == "int8" and by == 0.7:  # the scales of rows are multiplied: rounded in another place
                torch.testing.assert_close(new[name], expected, rtol=2**-7, atol=0)
            else:
                assert torch.equal(new[name], expected)
            assert not torch.equal(new[name], tensor)
            num_scaled += 1
        else:
            assert torch.equal(new[name], tensor)
    assert num_scaled == 2 * len(before.record.plan.new_blocks)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_by_one_is_the_same_pack_byte_for_byte(encoding: str, ground: PackGround, tmp_path: Path):
    before = make_pack(ground.trained["code"], tmp_path / "before", "code", encoding=encoding)
    after = scale_on_disk(before.folder, tmp_path / "after", 1.0)
    assert after.record.fingerprint == before.record.fingerprint
    assert after.record.scaled is None
    assert tree(after.folder) == tree(before.folder)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_disk_and_in_memory_are_one(dtype: torch.dtype, encoding: str, ground: PackGround, tmp_path: Path):
    """The same logits, bit for bit, of two packs at half scale: attached from disk, or scaled in memory; and back."""
    packs = [make_pack(ground.trained[n], tmp_path / n, n, encoding=encoding) for n in ("math", "code")]
    halves = [scale_on_disk(pack, tmp_path / f"{pack.name}.half", 0.5) for pack in packs]
    attach_on_disk(ground.base, halves, tmp_path / "out")
    expected = logits(load(tmp_path / "out", dtype))
    assert torch.equal(logits(load_with_packs(ground.base, halves, dtype)), expected)

    model = load_with_packs(ground.base, packs, dtype)
    whole, tensors = logits(model), {n: t.clone() for n, t in model.state_dict().items()}
    assert not torch.equal(whole, expected)
    with scaled(model, {"code": 0.5, "math": 0.5}) as the_same:
        assert the_same is model
        assert gains(model) == {"code": 0.5, "math": 0.5}
        assert torch.equal(logits(model), expected)
    assert gains(model) == {"code": 1.0, "math": 1.0}
    assert torch.equal(logits(model), whole)
    assert all(torch.equal(t, tensors[n]) for n, t in model.state_dict().items()), "every bit is back"

    scale(model, "code", 3.0)
    scale(model, "math", 0.5)
    scale(model, "code", 0.5)  # from what was attached, not from three times that
    assert torch.equal(logits(model), expected)
    with pytest.raises(ZeroDivisionError), scaled(model, {"code": 0.25}):
        assert not torch.equal(logits(model), expected)
        raise ZeroDivisionError
    assert torch.equal(logits(model), expected), "behind an error as before"


FAMILIES = ("mixtral", "gemma2", "gemma3_text", "olmo2", "glm4", "gpt2", "gpt_oss", "falcon")
"""Experts that memory holds as one, gains behind norms (stored minus one, or as they are), biases, transposed."""


@pytest.mark.parametrize("by", [0.5, 0.7])
@pytest.mark.parametrize("row", [next(row for row in ZOO if row.family == name) for name in FAMILIES], ids=FAMILIES)
def test_what_each_branch_writes_is_multiplied_in_every_kind_of_family(row: Case, by: float, tmp_path: Path):
    """With one writer alone, the scaled block adds `by` times what it added; from disk and in memory alike."""
    base = write(row, tmp_path / "base", torch.float32)
    pack = make_pack(make_trained(base, tmp_path / "m", after=(1,)), tmp_path / "m.pack", "m")
    small = scale_on_disk(pack, tmp_path / "small", by)
    whole, disk, memory = attach(load(base), [pack]), attach(load(base), [small]), attach(load(base), [pack])
    scale(memory, "m", by)
    assert torch.equal(logits(memory), logits(disk))
    assert not torch.equal(logits(memory), logits(whole))
    attach_on_disk(base, [small], tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out")), logits(disk))
    writers = silent_values(pack.record.plan, live.plan_of(whole).base.family)
    assert len(writers) >= 2
    numbers = [writer_numbers(model, writers) for model in (whole, disk)]
    for name in writers:
        before, after = (added_by(m, held, writers, name) for m, held in zip((whole, disk), numbers, strict=True))
        assert before.any()
        torch.testing.assert_close(after, before * by, rtol=0, atol=2e-6 * float(before.abs().max() + 1))


def silent_values(plan: Any, family: str) -> dict[str, float]:
    """The writers of a block by their names in memory, and what makes each of them silent."""
    name = known_families()[family].block.name_in_memory
    tensors = plan.tensors_of(plan.new_blocks[0].donor)
    return {name(t.tail): -1.0 if t.starts == "minus-one" else 0.0 for t in tensors if t.starts in SILENT}


def writer_numbers(model: Any, writers: dict[str, float]) -> dict[str, Tensor]:
    (block,) = live.new_blocks(model).values()
    return {n: p.detach().clone() for n, p in block.named_parameters() if n in writers}


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
    assert to_plain(half.record.scaled) == {"of": first.record.fingerprint, "by": 0.5}
    assert to_plain(quarter.record.scaled) == {"of": first.record.fingerprint, "by": 0.25}
    assert quarter.record == at_once.record
    assert tree(quarter.folder) == tree(at_once.folder)
    back = scale_on_disk(quarter, tmp_path / "back", 4.0, name="code")
    assert back.record == first.record, "the first pack again, and not called scaled"
    assert tree(back.folder) == tree(first.folder)
    # What never trained writes nothing, so there is nothing to scale.
    untrained = make_pack(ground.trained["code"].with_name("code.expanded"), tmp_path / "untrained", "code")
    assert scale_on_disk(untrained, tmp_path / "still", 0.5).record == untrained.record


def test_a_scaled_pack_is_a_pack(ground: PackGround, tmp_path: Path):
    """Attached, proved, taken out, taken off: its record stays with it, and the base comes back byte for byte."""
    half = scale_on_disk(ground.packs["code"], tmp_path / "half", 0.5)
    attach_on_disk(ground.base, [half, ground.packs["law"]], tmp_path / "both")
    assert run(["verify", str(ground.base), str(tmp_path / "both")]) == 0
    assert extract(tmp_path / "both", tmp_path / "again", pack="code").record == half.record
    assert detach_on_disk(tmp_path / "both", tmp_path / "one", ["law"]).packs_left == ("code",)
    assert extract(tmp_path / "one", tmp_path / "once-more").record == half.record
    rounded = extract(tmp_path / "one", tmp_path / "rounded", encoding="int8")
    assert (rounded.record.scaled, rounded.record.encoding) == (half.record.scaled, "int8")
    done = detach_on_disk(tmp_path / "both", tmp_path / "back")
    assert (done.same_files, done.checked) == (True, True)
    assert tree(tmp_path / "back") == tree(ground.base)
    # Trained on, the blocks are no multiple of anything any more.
    trained = live.load(tmp_path / "one", dtype=torch.float32)[0]
    with torch.no_grad():
        for _, parameter in live.freeze(trained):
            parameter.mul_(1.5)
    export_model(tmp_path / "one", tmp_path / "on", live.tensors_on_disk(trained, family_of(ground)), {"arm": "blocks"})
    assert extract(tmp_path / "on", tmp_path / "on.pack").record.scaled is None


def family_of(ground: PackGround) -> Any:
    checkpoint = open_checkpoint(ground.base)
    return family_for(checkpoint.config, checkpoint.source, checkpoint.tensors)


def test_what_was_measured_is_left_out_and_what_was_said_stays(
    ground: PackGround, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run_record = {"num_steps": 3, "num_tokens": 96, "base": {"domain": 4.0}, "best": {"domain": 3.0, "rise": 0.01}}
    source = make_pack(ground.trained["code"], tmp_path / "pack", "code")
    measured = {"run": {"base": run_record["base"], "best": run_record["best"]}}
    card = Card(description="Writes Python.")
    training = {"arm": "blocks", "run": run_record}
    write_record(
        source.folder / "pack.json",
        dataclasses.replace(source.record, training=training, evaluation=measured, card=card),
    )
    write_card(source.folder, Said(card=Card(licence="apache-2.0", base_model="org/base")))
    assert "which is no test: domain loss 4.0000 to 3.0000" in (source.folder / "README.md").read_text()
    assert run(["pack", "scale", str(source.folder), str(tmp_path / "half"), "--by", "0.5", "--name", "gentle"]) == 0
    told = capsys.readouterr().out
    half = read_pack(tmp_path / "half")
    first = source.record.fingerprint
    assert "pack 'gentle': 2 blocks" in told
    assert f"scaled: what its blocks write is 0.5 times what those of the pack {first} write" in told
    assert "what was measured of the pack was left out" in told
    assert (half.record.evaluation, half.record.training, half.record.card) == (None, training, card)
    text = (tmp_path / "half" / "README.md").read_text()
    for part in (
        "license: apache-2.0",
        f"- **Scaled**: what its blocks write is 0.5 times what those of the pack {first}",
    ):
        assert part in text
    assert "3.0000" not in text
    assert "Not measured." in text
    assert run(["pack", "scale", str(source.folder), str(tmp_path / "same"), "--by", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"] == measured
    assert run(["pack", "attach", str(ground.base), str(tmp_path / "half"), str(tmp_path / "out")]) == 0
    assert "`gentle` (scaled by 0.5)" in (tmp_path / "out" / "README.md").read_text()


def test_a_cache_of_another_gain_is_refused(ground: PackGround):
    model = attach(load(ground.base), [ground.packs["code"], ground.packs["law"]])
    with torch.no_grad():
        start = model(TOKENS[:, :20], use_cache=True)
        with scaled(model, {"law": 0.5}):
            with pytest.raises(LiveError, match=r"filled with packs scaled: none; and now: law by 0.5; .* new cache"):
                model(TOKENS[:, 20:], past_key_values=start.past_key_values, use_cache=True)
            fresh = model(TOKENS[:, :20], use_cache=True)
            model(TOKENS[:, 20:22], past_key_values=fresh.past_key_values, use_cache=True)
        with pytest.raises(LiveError, match=r"filled with packs scaled: law by 0.5; and now: none"):
            model(TOKENS[:, 22:], past_key_values=fresh.past_key_values, use_cache=True)
        model(TOKENS[:, 20:], past_key_values=start.past_key_values, use_cache=True)


def test_packs_that_come_and_go_do_not_change_the_gains_of_others(ground: PackGround, tmp_path: Path):
    half = scale_on_disk(ground.packs["code"], tmp_path / "half", 0.5)
    expected = logits(attach(load(ground.base), [half]))
    model = attach(load(ground.base), [ground.packs["code"]])
    scale(model, "code", 0.5)
    attach(model, ground.packs["law"])
    assert gains(model) == {"code": 0.5, "law": 1.0}
    disable(model, "law")
    assert torch.equal(logits(model), expected)
    detach(model, names=["law"])
    assert (attached(model), gains(model)) == (("code",), {"code": 0.5})
    assert torch.equal(logits(model), expected)
    detach(model)
    assert gains(model) == {}
    assert torch.equal(logits(model), logits(load(ground.base)))
    assert torch.equal(logits(attach(model, [half])), expected), "the base is the base"


@pytest.mark.parametrize("by", [0.0, -0.5, 1001.0, float("nan"), float("inf")])
def test_gains_that_are_no_scale_are_refused(by: float, ground: PackGround, out: Path):
    expected = rf"cannot scale the pack 'code' by {by:g}; expected a number from 0.001 to 1,000; .*leave the pack out"
    with pytest.raises(PackError, match=expected):
        scale_on_disk(ground.packs["code"], out, by)
    assert not out.exists()
    model = attach(load(ground.base), [ground.packs["code"], ground.packs["law"]])
    before = logits(model)
    with pytest.raises(PackError, match=expected):
        scale(model, "code", by)
    with pytest.raises(PackError, match=expected), scaled(model, {"law": 0.5, "code": by}):
        pass
    assert torch.equal(logits(model), before)


def test_what_else_is_refused(ground: PackGround, tmp_path: Path, out: Path):
    code = ground.packs["code"]
    small = scale_on_disk(code, tmp_path / "small", 0.01)
    with pytest.raises(
        PackError, match=r"the first pack of 'code', which is scaled by 0.01 already, by 0.0001; expected"
    ):
        scale_on_disk(small, out, 0.01)
    for where, what in (
        (tmp_path / "o" / ".." / "small", "is"),
        (tmp_path, "contains"),
        (small.folder / "in", "is inside"),
    ):
        with pytest.raises(PackError, match=f"the output .* {what} the pack .*small; expected a folder beside it"):
            scale_on_disk(small, where, 0.5, overwrite=True)
    with pytest.raises(RecordError, match="name: expected 1 to 64 letters"):
        scale_on_disk(code, out, 0.5, name="no such/name")
    model = attach(load(ground.base), [code])
    with pytest.raises(PackError, match="the model has no pack 'cod'; .*did you mean 'code'"):
        scale(model, "cod", 0.5)
    with pytest.raises(PackError, match="the model has no pack 'law'"), scaled(model, {"code": 0.5, "law": 0.5}):
        pass
    assert gains(model) == {"code": 1.0}
    assert not out.exists()


def test_numbers_that_the_precision_cannot_hold_are_refused(tmp_path: Path, out: Path, tiny_base: MakeBase):
    base = tiny_base("llama", dtype=torch.float16)
    pack = make_pack(make_trained(base, tmp_path / "m", after=(1,), by=100.0), tmp_path / "m.pack", "m")
    with pytest.raises(PackError, match=r"'m' scaled by 1000: .* numbers of 'after1.0.*' are NaN or infinite in F16"):
        scale_on_disk(pack, out, 1000.0)
    assert not out.exists()


def test_blocks_that_did_not_start_silent_are_refused(ground: PackGround, tmp_path: Path, out: Path):
    expand(ground.base, tmp_path / "copied", plan(ground.base, 2, init="copy"))
    pack = extract(tmp_path / "copied", tmp_path / "pack", About(name="copied"))
    expected = "the blocks of 'copied' did not start silent .init 'copy'.*; expected init 'identity'"
    with pytest.raises(PackError, match=expected):
        scale_on_disk(pack, out, 0.5)
    with pytest.raises(PackError, match=expected):
        scale(attach(load(ground.base), [pack]), "copied", 0.5)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["after1.0.self_attn.o_proj.weight", "after1.0.mlp.up_proj.weight"])
def test_bytes_that_the_record_does_not_name_are_refused(
    name: str, encoding: str, ground: PackGround, tmp_path: Path, out: Path
):
    pack = make_pack(ground.trained["code"], tmp_path / "pack", "code", encoding=encoding)
    path, entry = pack.folder / "blocks.safetensors", pack.stored[name]
    data = bytearray(path.read_bytes())
    data[entry.end - 1] ^= 1
    path.write_bytes(data)
    if encoding == "delta" and "up_proj" in name:
        # It needs the base; it is found when the scaled pack is attached, as it would have been before.
        scale_on_disk(pack.folder, out, 0.5)
        with pytest.raises(PackError):
            attach_on_disk(ground.base, [out], tmp_path / "attached")
        return
    with pytest.raises(PackError, match="get the pack again"):
        scale_on_disk(pack.folder, out, 0.5)
    assert not out.exists()


@pytest.mark.parametrize(
    ("scaled_as", "expected"),
    [
        ({"of": "sha256:1", "by": 0.5}, "of: expected sha256: and 64 hex digits, got 'sha256:1'"),
        ({"of": "sha256:" + "0" * 64, "by": 0.0}, "by: expected 0.001 to 1,000, got 0.0"),
        ({"of": "sha256:" + "0" * 64, "by": "much"}, "by: expected a number"),
        ({"of": "sha256:" + "0" * 64, "by": 0.5, "with": 1}, "with"),
    ],
)
def test_records_that_say_odd_things_of_scaling_are_refused(
    scaled_as: dict[str, Any], expected: str, ground: PackGround, tmp_path: Path
):
    pack = make_pack(ground.trained["code"], tmp_path / "pack", "code")
    edit_json(pack.folder / "pack.json", lambda record: record.update(scaled=scaled_as))
    with pytest.raises(PackError, match=expected):
        read_pack(pack.folder)
    attach_on_disk(ground.base, [ground.packs["code"]], tmp_path / "attached")
    edit_json(tmp_path / "attached" / RECORD_NAME, lambda record: record["packs"][0]["about"].update(scaled=scaled_as))
    with pytest.raises(BlockexpandError, match=expected):
        extract(tmp_path / "attached", tmp_path / "again")


def test_scaling_on_disk_needs_no_torch(ground: PackGround, tmp_path: Path):
    code = (
        "import sys\nfrom blockexpand.cli.main import run\n"
        f"assert run(['pack', 'scale', {str(ground.packs['code'])!r}, {str(tmp_path / 'out')!r}, '--by', '0.5']) == 0\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_numbers_are_multiplied_alike_on_disk_and_in_memory():
    """Every kind of number, odd ones among them: the bytes that numpy gives are those that torch gives."""
    chance = np.random.default_rng(0)
    for dtype, kind in (
        ("F32", torch.float32),
        ("F16", torch.float16),
        ("BF16", torch.bfloat16),
        ("F64", torch.float64),
    ):
        values = torch.from_numpy(chance.standard_normal(4096) * 10.0 ** chance.integers(-6, 2, 4096)).to(kind)
        values = torch.cat([values, torch.tensor([0.0, -0.0, 1.0, -1.0, torch.finfo(kind).tiny], dtype=kind)])
        for by in (1.0, 0.5, 0.7, 3.0, 0.001, 1 / 3):
            for starts, added in (("zero", 0.0), ("minus-one", 1.0)):
                block = torch.nn.Module()
                block.register_parameter("gain", torch.nn.Parameter(values.clone()))
                writer = Writer(parameter=block.gain, added=added)
                set_gain(block, (writer,), by)
                data = values.view(torch.uint8).numpy().tobytes()
                made = _times(data, dtype, by, by - 1 if starts == "minus-one" else 0.0)
                assert made == block.gain.detach().view(torch.uint8).numpy().tobytes(), (dtype, by, starts)
                if by == 1:
                    assert made == data
