"""Packs and records made to do harm: refused in one line, before anything is allocated for what they claim."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
from fuzz_mutations import mutate
from fuzz_targets import value_or_line

from blockexpand.checkpoint import build_header, read_header
from blockexpand.errors import BlockexpandError, CheckpointError, PackError
from blockexpand.packs import attach_on_disk, detach_on_disk, read_pack, scale_on_disk
from helpers import MakeBase, edit_json
from packs_ground import PackGround, make_ground, make_pack


@pytest.fixture(scope="module")
def ground(tiny_base: MakeBase, tmp_path_factory: pytest.TempPathFactory) -> PackGround:
    return make_ground(tiny_base("llama"), tmp_path_factory.mktemp("hostile-packs"))


@pytest.fixture
def pack(ground: PackGround, tmp_path: Path) -> Path:
    return shutil.copytree(ground.packs["code"], tmp_path / "pack")


def rewrite(pack: Path, change: Callable[[dict[str, tuple[str, tuple[int, ...], bytes]]], object]) -> None:
    """Write the weights file again with other tensors."""
    path = pack / "blocks.safetensors"
    raw = path.read_bytes()
    tensors = {n: (e.dtype, e.shape, raw[e.start : e.end]) for n, e in read_header(path).tensors.items()}
    change(tensors)
    header = build_header([(n, dtype, shape) for n, (dtype, shape, _) in tensors.items()], {})
    path.write_bytes(header + b"".join(data for _, _, data in tensors.values()))


UP = "after1.0.mlp.up_proj.weight"
CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "one tensor more": (lambda t: t.update(evil=("U8", (3,), b"abc")), "holds 'evil', which pack.json does not name"),
    "one tensor fewer": (lambda t: t.pop(UP), f"'{UP}' is missing"),
    "another shape": (
        lambda t: t.update({UP: ("BF16", (32, 48), t[UP][2])}),
        rf"'{UP}' is BF16 \[32, 48\]; expected BF16 \[48, 32\]",
    ),
    "another dtype": (lambda t: t.update({UP: ("F16", (48, 32), t[UP][2])}), rf"'{UP}' is F16 \[48, 32\]"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_weights_that_are_not_those_of_the_plan(what: str, pack: Path):
    change, expected = CHANGES[what]
    rewrite(pack, change)
    with pytest.raises(PackError, match=expected):
        read_pack(pack)


def test_a_weights_file_that_lies_about_itself(pack: Path):
    path = pack / "blocks.safetensors"
    with open(path, "r+b") as stream:
        stream.write((10**11).to_bytes(8, "little"))
    with pytest.raises(CheckpointError, match="states a header of 100,000,000,000 bytes; expected at most 100,000,000"):
        read_pack(pack)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="too short"):
        read_pack(pack)


def test_what_a_record_claims_is_not_allocated(pack: Path):
    """Shapes of terabytes, and a plan of thousands of blocks, in a process that may take 400 MB of addresses."""

    def enlarge(record: dict[str, Any]) -> None:
        for tensor in record["plan"]["kinds"][0]["tensors"]:
            tensor["shape"] = [10**6, 10**6]

    edit_json(pack / "pack.json", enlarge)
    code = textwrap.dedent(
        """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
        from blockexpand.errors import BlockexpandError
        from blockexpand.packs import read_pack
        try:
            read_pack(sys.argv[1])
        except BlockexpandError as error:
            print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", code, str(pack)], capture_output=True, text=True, check=True)
    assert "expected BF16 [1000000, 1000000]" in done.stdout


def test_changed_packs_are_read_or_refused_in_a_line(ground: PackGround, tmp_path: Path):
    """A pack with bytes changed anywhere is refused, or is the same pack: never another one, never a traceback."""
    pack = make_pack(ground.trained["law"], tmp_path / "pack", "law")
    record, weights = pack.folder / "pack.json", pack.folder / "blocks.safetensors"
    honest, chance, num_attached = (record.read_bytes(), weights.read_bytes()), random.Random(3), 0
    for turn in range(40):
        which = turn % 2
        path, data = ((record, honest[0]), (weights, honest[1]))[which]
        path.write_bytes(mutate(data, chance.getrandbits(32)) or data)
        if value_or_line(lambda: read_pack(pack.folder)) is not None:
            out = tmp_path / f"out{turn}"
            if value_or_line(lambda out=out: attach_on_disk(ground.base, [pack.folder], out)) is not None:
                num_attached += 1
        path.write_bytes(data)
    assert attach_on_disk(ground.base, [pack.folder], tmp_path / "honest") is not None
    assert num_attached < 40


def test_changed_packs_are_scaled_or_refused_in_a_line(ground: PackGround, tmp_path: Path):
    """Whatever is changed: a pack that can be opened again, or one line and nothing at the output."""
    pack = make_pack(ground.trained["law"], tmp_path / "pack", "law")
    record, weights = pack.folder / "pack.json", pack.folder / "blocks.safetensors"
    honest, chance, num_refused = (record.read_bytes(), weights.read_bytes()), random.Random(5), 0
    for turn in range(40):
        which = turn % 2
        path, data = ((record, honest[0]), (weights, honest[1]))[which]
        path.write_bytes(mutate(data, chance.getrandbits(32)) or data)
        out = tmp_path / f"out{turn}"
        if value_or_line(lambda out=out: scale_on_disk(pack.folder, out, 0.5)) is None:
            num_refused += 1
            assert not out.exists()
        else:
            read_pack(out)
        path.write_bytes(data)
    assert 5 < num_refused < 40
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


FILES: dict[str, tuple[Callable[[list[Any]], object], str]] = {
    "a path": (
        lambda files: files.append({"name": "../evil.safetensors", "text": "{}", "padding": 0}),
        "'../evil.safetensors' is not that of a weights file in the same folder",
    ),
    "another file": (
        lambda files: files.append({"name": "setup.py", "text": "import os", "padding": 0}),
        "'setup.py' is not that of a weights file",
    ),
    "much padding": (lambda files: files[1].update(padding=10**12), "1,000,000,000,000 spaces behind its header"),
    "no JSON": (lambda files: files[1].update(text="{"), "is not JSON"),
    "a tensor that is not there": (
        lambda files: files[1].update(text=files[1]["text"].replace("model.norm.weight", "model.norm.wait")),
        "'model.norm.wait', which is not there",
    ),
    "another dtype": (
        lambda files: files[1].update(text=files[1]["text"].replace("BF16", "F16")),
        "as F16 .*, and it is BF16",
    ),
    "no config": (lambda files: files.pop(0), "has no config.json"),
    "a file fewer": (lambda files: files.pop(), "no recorded file has the tensor"),
}


@pytest.mark.parametrize("what", FILES)
def test_recorded_headers_that_lie(what: str, ground: PackGround, tmp_path: Path):
    change, expected = FILES[what]
    folder = shutil.copytree(ground.trained["code"], tmp_path / "folder")
    edit_json(folder / "blockexpand.json", lambda record: change(record["base_files"]))
    with pytest.raises(BlockexpandError, match=expected):
        detach_on_disk(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil.safetensors").exists()


def test_a_recorded_config_that_lies_is_not_used(ground: PackGround, tmp_path: Path):
    """The config's text has to have the digest in the plan; else what can be undone is."""
    folder = shutil.copytree(ground.trained["code"], tmp_path / "folder")

    def lie(record: dict[str, Any]) -> None:
        text = json.loads(record["base_files"][0]["text"])
        record["base_files"][0]["text"] = json.dumps({**text, "auto_map": {"AutoModelForCausalLM": "evil.Model"}})

    edit_json(folder / "blockexpand.json", lie)
    with pytest.raises(CheckpointError, match=r"config.json has the digest sha256:.*, and the plan is for sha256:"):
        detach_on_disk(folder, tmp_path / "out")
