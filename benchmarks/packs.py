"""Packs of the tiny base: trained apart, put together, switched; and how long that takes.

    .venv/bin/python benchmarks/packs.py train      # five short runs on the demo's texts and on C++ headers
    .venv/bin/python benchmarks/packs.py compose    # code + C++ by several rules, against one expansion trained on both
    .venv/bin/python benchmarks/packs.py sizes      # how large packs are, plain and compressed
    .venv/bin/python benchmarks/packs.py speed      # attach, detach, switch: time and memory (packs_speed.py)

`train --only code code-free` makes those two alone, which is all that `sizes` needs. What is made stays under
`runs/packs/`. benchmarks/routing.py goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import Any

import torch

from blockexpand import live
from blockexpand.corpus import Source, open_corpus, prepare
from blockexpand.data import TINY_BASE as BASE
from blockexpand.evaluation.held_out import document_losses
from blockexpand.expansion import expand, plan
from blockexpand.packs import About, extract, load_with_packs, read_pack
from blockexpand.packs.in_memory import only
from blockexpand.progress import progress_on_stderr
from blockexpand.records.run import (
    NO_RETENTION,
    BlocksArm,
    DataSettings,
    OptimizerSettings,
    RetentionSettings,
    TrainSettings,
)
from blockexpand.staging import RECORD_NAME
from blockexpand.training import train
from packs_speed import speed
from texts import english_text, python_text

WORK = Path("runs/packs")
TOKENS = 32_000
"""Domain tokens of each pack; twice as many where one expansion learns both."""
KEEPING = RetentionSettings(replay=0.25, ce_weight=0.0, kl_weight=8.0)
"""The demo's, without a budget: composition is measured on what was trained to the end."""
RUNS: dict[str, tuple[tuple[str, ...], int, bool]] = {
    "code-free": (("code",), 4, False),
    "cpp-free": (("cpp",), 4, False),
    "both-free": (("code", "cpp"), 8, False),
    "code": (("code",), 4, True),
    "cpp": (("cpp",), 4, True),
    "both": (("code", "cpp"), 8, True),
}
"""Each run: its texts, its new blocks, and whether it keeps to the base on general text."""


def make_texts(wanted: Collection[str]) -> None:
    """Prepare the demo's Python and English, C++ headers, and both domains together: those of them that are wanted and
    not there.
    """
    import torch as installed

    headers = Source(kind="code", path=str(Path(installed.__file__).parent / "include"), endings=(".h",))
    texts = {
        "code": python_text(),
        "cpp": dataclasses.replace(python_text(), sources=(headers,)),
        "code+cpp": dataclasses.replace(
            python_text(),
            sources=(dataclasses.replace(Source(path="stdlib"), share=0.5), dataclasses.replace(headers, share=0.5)),
        ),
        "general": english_text(),
    }
    for name, recipe in texts.items():
        if name in wanted and not (WORK / "text" / name / RECORD_NAME).is_file():
            prepare(recipe, BASE, WORK / "text" / name)


def train_all(only: Sequence[str]) -> None:
    """Of these runs those that are not there yet, and a pack of each."""
    make_texts({"general", *("+".join(RUNS[name][0]) for name in only)})
    for name in only:
        texts, blocks, keeps = RUNS[name]
        expanded, out = WORK / f"expanded-{blocks}", WORK / "run" / name
        if not expanded.exists():
            expand(BASE, expanded, plan(BASE, blocks))
        if not (out / RECORD_NAME).is_file():
            shutil.rmtree(out, ignore_errors=True)
            train(TrainSettings(
                model=str(expanded),
                out=str(out),
                arm=BlocksArm(),
                data=DataSettings(
                    domain=str(WORK / "text" / "+".join(texts)), general=str(WORK / "text" / "general"),
                    validation_rows=8,
                ),
                domain_tokens=TOKENS * len(texts),
                rows_per_step=8 if keeps else 6,
                rows_per_pass=8,
                optimizer=OptimizerSettings(name="muon", lr=2e-2),
                retention=KEEPING if keeps else NO_RETENTION,
                measure_every_steps=1000,
                checkpoint_every_steps=1000,
            ))  # fmt: skip
        if not (WORK / "pack" / name).exists():
            extract(out, WORK / "pack" / name, About(name=name))
        print(name, "trained", flush=True)


def losses(model: Any, texts: Sequence[str] = ("general", "code", "cpp"), split: str = "test") -> dict[str, float]:
    """Nats per token on each text's split."""
    found = {}
    for name in texts:
        rows = open_corpus(WORK / "text" / name).rows(split)
        parts = document_losses(model, rows, 8, name)
        found[name] = float(parts.nats_M.sum() / parts.tokens_M.sum())
    return found


def compose() -> None:
    """Code and C++ put together by several rules, of packs with and without retention; losses on the test splits."""
    for ending in ("-free", ""):
        packs = [WORK / "pack" / f"{name}{ending}" for name in ("code", "cpp", "both")]
        if all(pack.exists() for pack in packs):
            print(f"packs trained {'without' if ending else 'with'} retention:")
            _compose(packs)


def _compose(packs: Sequence[Path]) -> None:
    code, cpp, joint = (read_pack(path) for path in packs)
    named = [
        dataclasses.replace(p, record=dataclasses.replace(p.record, name=n)) for p, n in ((code, "code"), (cpp, "cpp"))
    ]
    model = load_with_packs(BASE, named)
    base, results = {}, {}
    with only(model):
        base = losses(model)
    for name in ("code", "cpp"):
        with only(model, name):
            results[f"{name} alone"] = losses(model)
    results["stacked, by name"] = losses(model)
    with _reversed(model):
        results["stacked, the other way"] = losses(model)
    with _side_by_side(model):
        results["side by side (sum of both)"] = losses(model)
    both = load_with_packs(BASE, [joint])
    results["one expansion of 8 blocks, trained on both"] = losses(both)
    print("base: " + ", ".join(f"{name} {loss:.4f}" for name, loss in base.items()))
    for rule, found in results.items():
        gained = ", ".join(f"{name} gain {base[name] - found[name]:+.4f}" for name in ("code", "cpp"))
        print(f"{rule:45} general {found['general'] / base['general'] - 1:+.2%}, {gained}", flush=True)


def _blocks(model: Any, name: str) -> list[torch.nn.Module]:
    from blockexpand.packs.in_memory import blocks_of

    new = live.new_blocks(model)
    return [new[block] for block in sorted(blocks_of(model, [name]))]


@contextlib.contextmanager
def _reversed(model: Any) -> Generator[None]:
    """The later pack below the earlier one, in each place where both have a block."""
    pairs = list(zip(_blocks(model, "code"), _blocks(model, "cpp"), strict=True))
    stack, partner = model.model.layers, {}
    for one, other in pairs:
        partner[one], partner[other] = other, one
    before = list(stack)
    _put(model, [partner.get(block, block) for block in before])
    try:
        yield
    finally:
        _put(model, before)


def _put(model: Any, blocks: list[torch.nn.Module]) -> None:
    from blockexpand.families import known_families
    from blockexpand.families.modules import put_stack

    put_stack(model, known_families()["llama"], blocks)


@contextlib.contextmanager
def _side_by_side(model: Any) -> Generator[None]:
    """Both blocks of a place see the same input, and what each adds is summed: no checkpoint can hold that."""
    handles, inputs = [], {}
    for one, other in zip(_blocks(model, "code"), _blocks(model, "cpp"), strict=True):

        def keep(_: Any, args: Any, kwargs: Any, one: Any = one) -> None:
            inputs[one] = args[0] if args else kwargs["hidden_states"]

        def swap(_: Any, args: Any, kwargs: Any, one: Any = one) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            inputs[one, "added"] = given - inputs[one]
            return ((inputs[one], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": inputs[one]})

        def add(_: Any, __: Any, output: Any, one: Any = one) -> Any:
            added = inputs[one, "added"]
            return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

        handles += [
            one.register_forward_pre_hook(keep, with_kwargs=True),
            other.register_forward_pre_hook(swap, with_kwargs=True),
            other.register_forward_hook(add),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=("train", "compose", "speed"))
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="of `train`: which runs")
    given = parser.parse_args()
    stages = {
        "train": lambda: train_all(given.only),
        "compose": compose,
        "speed": lambda: speed(WORK),
    }
    torch.set_num_threads(1)
    for name in given.stages:
        print(f"--- {name} (load {os.getloadavg()[0]:.1f})", flush=True)
        with progress_on_stderr():
            stages[name]()


if __name__ == "__main__":
    main()
