"""Each script of examples/, run as anybody runs it, in a process of its own and with no network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import blockexpand
from blockexpand.data import TINY_BASE as BASE
from world_ground import offline

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAINERS = ("trainer.py", "trl_sft.py")


def run(script: str, out: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), str(out)]
    done = subprocess.run(command, env=offline(), cwd=out.parent, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        *TRAINERS,
        "switch_packs.py",
        "method.py",
    }


@pytest.mark.parametrize("script", TRAINERS)
def test_three_lines_in_a_trainer_s_script_make_new_blocks_train(script: str, tmp_path: Path) -> None:
    text = (EXAMPLES / script).read_text()
    assert re.findall(r"# blockexpand (\d)", text) == ["1", "2", "3"]
    said = run(script, tmp_path / "out")
    first, last = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+)", said).groups())
    assert last < first
    finished = tmp_path / "out/blocks/model"
    assert blockexpand.verify(BASE, finished).passed
    deeper, started = (blockexpand.load(f)[0].state_dict() for f in (finished, tmp_path / "out/deeper"))
    moved = {name for name in started if not torch.equal(deeper[name], started[name])}
    new = tuple(f"model.layers.{n}." for n in blockexpand.load(finished)[1].new_positions)
    assert moved
    assert all(name.startswith(new) for name in moved)


def test_packs_are_switched_while_the_model_stays_loaded(tmp_path: Path) -> None:
    said = run("switch_packs.py", tmp_path / "out")
    found = re.findall(r"on: (\S+); loss: code ([\d.]+), verse ([\d.]+)", said)
    losses = {on: (float(code), float(verse)) for on, code, verse in found}
    assert len(losses) == 4, said
    none, code, verse = losses["none"], losses["code"], losses["verse"]
    assert code[0] < none[0]
    assert verse[1] < none[1]
    assert code[0] < verse[0]
    assert verse[1] < code[1]
