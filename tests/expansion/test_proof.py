"""The proof: it passes for every family, and it fails for everything it is there to catch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import CheckpointError, ExpansionError, LiveError, PlanError
from blockexpand.expansion import expand, memory_proof, plan, verify
from blockexpand.expansion.memory_proof import answers, compare, kl_nats, measure
from blockexpand.live import expand_live
from blockexpand.records.expansion import Check, Proof, read_expansion
from helpers import MakeBase, edit_config, edit_json, load, tiny_model

WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}

ZERO, DONOR = "the new blocks' residual writers are zero", "the new blocks' other tensors are their donors'"
OLD, NAMES = "old tensors have the base's bytes", "tensors have the planned names, shapes and dtypes"
CONFIG = "config.json is the base's with the plan's changes"
LOGITS, CACHED, GREEDY = "logits are", "logits through the KV cache are", "greedy generation is"
STEP0, STEP1 = "at step 0 every residual writer", "at step 1 every tensor"


def test_the_proof_is_kept_in_the_record_and_is_the_same_each_time(tiny_base: MakeBase, tmp_path: Path):
    base = tiny_base("llama")
    record = expand(base, tmp_path / "out", plan(base, 2), prove=True)
    assert record.proof is not None
    assert record.proof.passed
    assert read_expansion(tmp_path / "out").proof == record.proof == verify(base, tmp_path / "out")
    assert all(line.startswith("ok ") for line in record.proof.lines)
    assert record.proof.dtypes == ("BF16", "F32")
    assert len(record.proof.checks) == 5 + 3 * 2 + 4
    drift = float(next(c.figure for c in record.proof.checks if "moves" in c.name).split()[1])
    assert 0 < drift < 1e-5


# --- what the proof must catch -----------------------------------------------------------------------


@pytest.fixture
def pair(tiny_base: MakeBase, tmp_path: Path) -> tuple[Path, Path]:
    base = tiny_base("llama")
    expand(base, tmp_path / "out", plan(base, 2))
    return base, tmp_path / "out"


def write_at(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a tensor's bytes in place."""
    entry = open_checkpoint(folder).tensors[name]
    with open(folder / entry.file, "r+b") as stream:
        stream.seek(entry.start)
        data = stream.read(entry.num_bytes)
        stream.seek(entry.start)
        changed = change(data)
        assert len(changed) == len(data)
        stream.write(changed)


def flip_one_bit(data: bytes) -> bytes:
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


def ones(data: bytes) -> bytes:
    return b"\x80\x3f" * (len(data) // 2)


def zeros(data: bytes) -> bytes:
    return bytes(len(data))


def failed(found: Proof | list[Check]) -> set[str]:
    return {check.name for check in (found.checks if isinstance(found, Proof) else found) if not check.passed}


def starts(names: set[str], *beginnings: str) -> bool:
    return all(any(name.startswith(b) for name in names) for b in beginnings)


def measured(base: Path, out: Path) -> list[Check]:
    """Only the part that runs the models, to see that it does not lean on the part that reads the disk."""
    made = read_expansion(out).plan
    return measure(open_checkpoint(base), open_checkpoint(out), made, trained=False, device="cpu")[0]


@pytest.mark.parametrize("tail", ["self_attn.o_proj.weight", "mlp.down_proj.weight"])
def test_a_writer_that_is_not_zero_fails_on_disk_and_in_the_logits(pair: tuple[Path, Path], tail: str):
    base, out = pair
    write_at(out, f"model.layers.5.{tail}", lambda data: data[:-2] + b"\x00\x40")
    found = failed(verify(base, out))
    assert ZERO in found
    assert OLD not in found
    assert DONOR not in found
    assert starts(found, LOGITS, CACHED)
    proof = verify(base, out)
    line = next(check.line for check in proof.checks if check.name == ZERO)
    assert line == f"FAIL {ZERO}: 1 are not, e.g. model.layers.5.{tail}"
    assert any("differ by up to" in check.figure for check in proof.checks)


@pytest.mark.parametrize("name", ["model.layers.3.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_an_old_tensor_changed_by_one_bit_fails(pair: tuple[Path, Path], name: str):
    base, out = pair
    write_at(out, name, flip_one_bit)
    proof = verify(base, out)
    assert OLD in failed(proof)
    assert f"1 of 39 differ: {name}" in {check.figure for check in proof.checks}
    assert starts(failed(proof), LOGITS)


def test_a_new_block_that_is_not_its_donor_fails_though_the_logits_cannot_tell(pair: tuple[Path, Path]):
    base, out = pair
    write_at(out, "model.layers.2.self_attn.q_proj.weight", flip_one_bit)
    assert failed(verify(base, out)) == {DONOR}


def test_a_config_that_was_not_extended_fails_before_anything_is_loaded(pair: tuple[Path, Path]):
    base, out = pair
    edit_config(out, num_hidden_layers=4)
    proof = verify(base, out)
    assert failed(proof) == {CONFIG}
    assert proof.checks[0].figure == "num_hidden_layers is 4, expected 6"
    assert len(proof.checks) == 2
    # The models alone tell too: the stack is cut off in its middle.
    assert starts(failed(compare(*(answers(load(folder, torch.float32)) for folder in pair), "F32")), LOGITS)


@pytest.mark.parametrize(
    ("entries", "figure"),
    [
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu", expected "silu"'),
        ({"extra": None}, "extra is null, expected absent"),
    ],
)
def test_any_other_config_entry_that_differs_fails(pair: tuple[Path, Path], entries: dict[str, Any], figure: str):
    base, out = pair
    edit_config(out, **entries)
    proof = verify(base, out)
    assert CONFIG in failed(proof)
    assert proof.checks[0].figure.startswith(figure)


def test_layer_kinds_that_were_not_mapped_fail(tiny_base: MakeBase, tmp_path: Path):
    base, out = tiny_base("qwen2", **WINDOWS), tmp_path / "out"
    expand(base, out, plan(base, 2, placement="prefix"))
    full, sliding = "full_attention", "sliding_attention"
    assert open_checkpoint(out).config["layer_types"] == [full] * 5 + [sliding]
    edit_config(out, layer_types=[full] * 3 + [sliding] * 3)
    assert failed(verify(base, out)) == {CONFIG}
    assert starts(failed(measured(base, out)), LOGITS, CACHED)


def test_a_missing_tensor_fails_and_nothing_is_loaded(pair: tuple[Path, Path]):
    base, out = pair
    head = out / "model.safetensors"
    head.write_bytes(head.read_bytes().replace(b"model.layers.5.mlp.up_proj", b"model.layers.7.mlp.up_proj"))
    proof = verify(base, out)
    assert failed(proof) == {NAMES}
    assert proof.checks[1].figure == ("2 differ: model.layers.5.mlp.up_proj.weight is absent, expected BF16 [48, 32]")
    with pytest.raises(LiveError, match=r"lacks the tensor 'model\.layers\.5\.mlp\.up_proj\.weight' \(1 in all\)"):
        measured(base, out)


def test_blocks_that_are_dead_for_ever_fail(pair: tuple[Path, Path]):
    """PAPER.md 1: all seven matrices zero is an identity too, and never learns."""
    base, out = pair
    tails = [t.tail for t in read_expansion(out).plan.tensors_of(0) if len(t.shape) == 2]
    for tail in tails:
        write_at(out, f"model.layers.2.{tail}", zeros)
    found = failed(measured(base, out))
    assert not starts(found, LOGITS)
    assert starts(found, STEP0, STEP1)
    figure = next(c.figure for c in measured(base, out) if c.name.startswith(STEP0))
    assert figure == "2 of 4 get none, e.g. after1.0 mlp.down_proj.weight"


def test_a_step_that_moves_the_model_too_far_fails(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_proof, "STEP_LEARNING_RATE", 1e-1)
    result = measured(*pair)
    assert failed(result) == {"one AdamW step at lr 0.1 moves the model little"}
    figure = next(check.figure for check in result if not check.passed)
    assert "nats a token, at most 0.01; place the new blocks elsewhere" in figure


@pytest.mark.parametrize("which", ["base", "out"])
def test_weights_that_are_not_finite_are_refused(pair: tuple[Path, Path], tmp_path: Path, which: str):
    base, out = pair
    if which == "base":
        base = shutil.copytree(base, tmp_path / "base")
    folder = base if which == "base" else out
    write_at(folder, "model.norm.weight", lambda data: b"\xc0\x7f" + data[2:])
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' holds 1 NaN"):
        verify(base, out)


def test_logits_that_are_not_finite_prove_nothing(tiny_base: MakeBase):
    model = tiny_model("llama")
    model.model.norm.weight.data.fill_(float("inf"))
    same = answers(model)
    checks = compare(same, same, "F32")
    assert [check.passed for check in checks] == [False, False, True]
    assert "not finite" in checks[0].figure


def test_a_wrong_index_into_the_cache_fails_only_through_the_cache(tiny_base: MakeBase):
    """Two blocks that share one part of the cache answer rightly to whole sequences, and wrongly to the rest."""
    base = tiny_model("llama")
    expected = answers(base)
    model = expand_live(tiny_model("llama"), plan(tiny_base("llama"), 2))
    assert all(check.passed for check in compare(expected, answers(model), "F32"))
    model.get_submodule("model.layers.2.self_attn").layer_idx = 1
    verdicts = [check.passed for check in compare(expected, answers(model), "F32")]
    assert verdicts == [True, False, False]


def test_drift_is_the_kl_divergence():
    torch.manual_seed(0)
    a, b = torch.randn(1, 3, 7), torch.randn(1, 3, 7)
    expected = torch.nn.functional.kl_div(b.double().log_softmax(-1), a.double().softmax(-1), reduction="sum")
    assert kl_nats(a, b) == pytest.approx(float(expected), rel=1e-12)
    assert kl_nats(a, a) == 0.0


# --- trained blocks ----------------------------------------------------------------------------------


def train(out: Path) -> None:
    """As if training had moved every tensor of the new blocks."""
    record = read_expansion(out)
    for block in record.plan.new_blocks:
        for tensor in record.plan.tensors_of(0):
            write_at(out, f"model.layers.{block.position}.{tensor.tail}", ones)


@pytest.mark.parametrize(
    ("family", "settings", "request_"),
    [
        ("qwen2", WINDOWS, {"blocks": 2, "placement": "prefix"}),
        ("qwen3", {"tie_word_embeddings": True}, {"blocks": 2, "per_group": 2}),
    ],
)
def test_trained_blocks_are_proved_by_bypassing_them(
    tiny_base: MakeBase, tmp_path: Path, family: str, settings: dict[str, Any], request_: dict[str, Any]
):
    base, out = tiny_base(family, **settings), tmp_path / "out"
    expand(base, out, plan(base, **request_))
    train(out)
    proof = verify(base, out, trained=True)
    assert proof.passed, proof.lines
    assert proof.trained
    assert len(proof.checks) == 3 + 3 * 2


def test_the_record_says_whether_blocks_were_trained(pair: tuple[Path, Path]):
    base, out = pair
    train(out)
    assert starts(failed(verify(base, out)), ZERO, DONOR, LOGITS)
    edit_json(out / "blockexpand.json", lambda data: data.update(training={"run": "r1"}))
    proof = verify(base, out)
    assert proof.passed
    assert proof.trained
    assert not verify(base, out, trained=False).passed


def test_a_trained_model_whose_base_moved_fails(pair: tuple[Path, Path]):
    base, out = pair
    train(out)
    write_at(out, "model.layers.0.mlp.up_proj.weight", flip_one_bit)
    found = failed(verify(base, out, trained=True))
    assert OLD in found
    assert any(name.startswith("with the new blocks bypassed, logits are") for name in found)


# --- what cannot be proved ---------------------------------------------------------------------------


def test_a_folder_without_a_record_is_refused(tiny_base: MakeBase):
    base = tiny_base("llama")
    with pytest.raises(PlanError, match=rf"{base} has no blockexpand\.json, which says which blocks are new"):
        verify(base, base)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (lambda: torch.randn(2, 3) @ torch.randn(2, 3), "RuntimeError"),
        (lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("tried to allocate 20 GiB")), "needs more memory"),
    ],
)
def test_what_a_models_own_code_raises_is_said_in_a_line(
    tiny_base: MakeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Any, expected: str
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda *_: raised())
    base = tiny_base("llama")
    with pytest.raises(ExpansionError, match=expected):
        expand(base, tmp_path / "out", plan(base, 1), prove=True)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_cache_is_said_in_a_line(
    tiny_base: MakeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of xlm-roberta-xl."""
    monkeypatch.setattr(memory_proof, "_CACHE", "no_such_cache")
    base = tiny_base("llama")
    with pytest.raises(ExpansionError, match="gives no 'no_such_cache'"):
        expand(base, tmp_path / "out", plan(base, 1), prove=True)
