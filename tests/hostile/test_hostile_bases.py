"""Bases that are broken, incomplete or made to do harm: each is refused in one line that holds the offending
value, by planning and by expanding alike, and nothing is left behind.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from blockexpand.errors import BlockexpandError
from blockexpand.expansion import expand, plan
from blockexpand.records.plan import Plan, read_plan
from helpers import MakeBase, edit_config, edit_json

INDEX = "model.safetensors.index.json"


def shard(folder: Path, number: int = 2) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[number - 1]


def unlink(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str | bytes) -> Callable[[Path], object]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / name).write_bytes(data)


def truncate(folder: Path) -> None:
    path = shard(folder)
    with open(path, "r+b") as stream:
        stream.truncate(path.stat().st_size - 10)


def lengthen(folder: Path) -> None:
    with open(shard(folder), "ab") as stream:
        stream.write(b"hidden payload")


def lie_about_length(folder: Path) -> None:
    with open(shard(folder), "r+b") as stream:
        stream.write((10**11).to_bytes(8, "little"))


def empty_shard(folder: Path) -> None:
    shard(folder).write_bytes(b"")


def pickle_only(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/harm'\ntR.")


def gguf_only(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "model.q4.gguf").write_bytes(b"GGUF")


def no_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()


def empty_weights(folder: Path) -> None:
    no_weights(folder)
    save_file({}, folder / "model.safetensors")


def both(folder: Path) -> None:
    shutil.copy(shard(folder), folder / "model.safetensors")


def send_index_to(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        edit_json(folder / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": name}))

    return change


def move_in_index(folder: Path) -> None:
    first = shard(folder, 1).name
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": first}))


def drop_from_index(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop("model.norm.weight"))


def promise_in_index(folder: Path) -> None:
    name = shard(folder).name
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({"model.ghost.weight": name}))


def twice(folder: Path) -> None:
    tensors = load_file(shard(folder, 1)) | load_file(shard(folder, 2))
    save_file(tensors, shard(folder, 2), metadata={"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing shard": (lambda f: shard(f).unlink(), ["the shard model-00002-of-00004.safetensors", "is missing"]),
    "truncated shard": (truncate, ["model-00002-of-00004.safetensors", "damaged or incomplete"]),
    "lengthened shard": (lengthen, ["model-00002", "14 bytes after the last tensor"]),
    "empty shard": (empty_shard, ["model-00002", "0 bytes long"]),
    "lying header": (lie_about_length, ["model-00002", "states a header of 100,000,000,000 bytes", "100,000,000"]),
    "shard is a folder": (lambda f: (shard(f).unlink(), shard_folder(f)), ["model-00002", "is missing"]),
    "no config": (unlink("config.json"), ["has no config.json", "Hugging Face"]),
    "config is not JSON": (write("config.json", "{'a': 1}"), ["config.json is not JSON", "line 1"]),
    "config is not UTF-8": (write("config.json", b'{"a": "\xff"}'), ["config.json is not UTF-8", "byte 7"]),
    "config is a list": (write("config.json", "[1, 2]"), ["config.json holds [1, 2]"]),
    "config has a key twice": (write("config.json", '{"a": 1, "a": 2}'), ["'a' appears twice"]),
    "config is endless": (write("config.json", "[" * 50_000), ["config.json is not a record of ours: nested"]),
    "empty config": (write("config.json", "{}"), ["model_type None"]),
    "unknown family": (
        lambda f: edit_config(f, model_type="xlstm"),
        ["unknown", "'xlstm'", "docs/families.md"],
    ),
    "misspelt family": (lambda f: edit_config(f, model_type="llama2"), ["'llama2'", "did you mean 'llama'"]),
    "remote code": (lambda f: edit_config(f, auto_map={"AutoModel": "evil.py"}), ["auto_map", "evil.py"]),
    "deeper config": (lambda f: edit_config(f, num_hidden_layers=5), ["num_hidden_layers 5", "hold 4", "blocks 4"]),
    "shallower config": (lambda f: edit_config(f, num_hidden_layers=3), ["num_hidden_layers 3", "blocks 3"]),
    "depth is words": (lambda f: edit_config(f, num_hidden_layers="four"), ["num_hidden_layers is 'four'"]),
    "giant depth": (lambda f: edit_config(f, num_hidden_layers=10**15), ["1000000000000000", "4, 5, 6"]),
    "pickle only": (pickle_only, ["pytorch_model.bin", "can run any code", "save_pretrained"]),
    "gguf only": (gguf_only, ["only model.q4.gguf", "model.safetensors"]),
    "no weights": (no_weights, ["has no weights", INDEX]),
    "weights without tensors": (empty_weights, ["holds no tensors"]),
    "two models in one folder": (both, ["has both model.safetensors and", "stale"]),
    "index is not JSON": (write(INDEX, "weight_map"), [INDEX, "is not JSON"]),
    "index without a map": (write(INDEX, "{}"), [INDEX, "weight_map None"]),
    "index with an empty map": (write(INDEX, '{"weight_map": {}}'), [INDEX, "weight_map {}"]),
    "index with numbers": (write(INDEX, '{"weight_map": {"a": 1}}'), ["{'a': 1}"]),
    "index escapes upwards": (send_index_to("../secret.safetensors"), ["'../secret.safetensors'", "plain name"]),
    "index escapes by root": (send_index_to("/etc/passwd"), ["'/etc/passwd'"]),
    "index into a folder": (send_index_to("x/model.safetensors"), ["'x/model.safetensors'"]),
    "index by backslash": (send_index_to("..\\x.safetensors"), ["x.safetensors'"]),
    "index with a zero byte": (send_index_to("a\0.safetensors"), ["\\x00"]),
    "index names a pickle": (send_index_to("pytorch_model.bin"), ["'pytorch_model.bin'"]),
    "index names the config": (send_index_to("config.json"), ["'config.json'"]),
    "index moves a tensor": (move_in_index, ["'model.norm.weight'", "model-00001", "model-00003"]),
    "index forgets a tensor": (drop_from_index, ["'model.norm.weight' in no file", "model-00003"]),
    "index promises a tensor": (promise_in_index, ["'model.ghost.weight'", "is in no file"]),
    "a tensor in two shards": (twice, ["is in both model-00001", "and model-00002"]),
}


def shard_folder(folder: Path) -> None:
    (folder / "model-00002-of-00004.safetensors").mkdir()


@pytest.fixture
def whole_plan(tiny_base: MakeBase) -> Plan:
    return plan(tiny_base("llama", sharded=True), 2)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_base_is_refused_in_one_line_and_nothing_is_left(
    own_base: MakeBase, whole_plan: Plan, tmp_path: Path, case: str
):
    break_it, words = BROKEN[case]
    folder = own_base("llama", sharded=True)
    break_it(folder)
    for use in (lambda: plan(folder, 2), lambda: expand(folder, tmp_path / "out", whole_plan)):
        with pytest.raises(BlockexpandError) as raised:
            use()
        message = str(raised.value)
        assert raised.value.exit_code == 2
        assert "\n" not in message
        assert len(message) < 600
        for word in words:
            assert word in message, message
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("value", "name"),
    [(float("nan"), "model.layers.2.mlp.up_proj.weight"), (float("inf"), "lm_head.weight")],
)
def test_weights_that_are_not_numbers_are_refused_and_nothing_is_left(
    own_base: MakeBase, tmp_path: Path, value: float, name: str
):
    folder = own_base("llama")
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[5:8] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BlockexpandError, match=rf"model\.safetensors: the tensor '{name}' holds 3 NaN or infinite"):
        expand(folder, tmp_path / "out", plan(folder, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("source", ["/no/such/folder", "no such thing", "a/b/c", "../gone", ""])
def test_a_path_that_is_not_there_is_refused(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BlockexpandError) as raised:
        plan(source, 2)
    assert source in str(raised.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not JSON"),
        ("[]", "not a blockexpand.plan file"),
        ('{"format": "blockexpand.plan", "format_version": 9}', "format version 9"),
        ('{"format": "blockexpand.expansion", "format_version": 1}', "got 'blockexpand.expansion'"),
        ('{"format": "blockexpand.plan", "format_version": 1, "__class__": "os.system"}', "unknown key '__class__'"),
    ],
)
def test_a_broken_plan_file_is_refused_and_nothing_is_left(
    tiny_base: MakeBase, tmp_path: Path, content: str, words: str
):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(BlockexpandError) as raised:
        expand(tiny_base("llama"), tmp_path / "out", tmp_path / "plan.json")
    assert words in str(raised.value)
    assert str(tmp_path / "plan.json") in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_with_giant_numbers_is_refused_quickly(tiny_base: MakeBase, tmp_path: Path, whole_plan: Plan):
    whole_plan.save(tmp_path / "plan.json")
    edit_json(tmp_path / "plan.json", lambda data: data["new_blocks"][0].update(position=10**30))
    with pytest.raises(BlockexpandError, match="position=1000000"):
        read_plan(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text().replace(str(10**30), "1" * 5000)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(BlockexpandError, match="4300"):
        read_plan(tmp_path / "plan.json")
