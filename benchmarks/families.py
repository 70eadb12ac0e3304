"""Prove every family on tiny models made in code, and write what was found to docs/families.md.

    python benchmarks/families.py

Each model of the zoo (tests/families/zoo.py) is made with random weights in bfloat16, expanded, and proved in
bfloat16 and float32 with all three parts of docs/proof.md. A test holds that the table names the families served.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "families")]

import torch  # noqa: E402
import transformers  # noqa: E402
from zoo import ZOO, Case, write  # noqa: E402

from blockexpand.expansion import expand, plan, verify  # noqa: E402  # noqa: E402
from blockexpand.families import Family, known_families, refused_model_types  # noqa: E402
from blockexpand.records.expansion import Proof  # noqa: E402  # noqa: E402
from blockexpand.records.plan import Plan  # noqa: E402  # noqa: E402

RULES = {
    "copy-from-donor": "list, donor's item",
    "threshold": "threshold, written out as {list_key}",
    "pattern": "list, written out when the class would derive it",
    "indices": "indices, renumbered",
    "first": "number of first blocks, recounted",
    "every": "period and offset: whole periods, or refused",
    "between": "first, last and interval, recounted, or refused",
    "repeats": "nested list, written out",
}


def main() -> None:
    """Prove all, write the page."""
    torch.set_num_threads(1)
    rows = []
    for index, row in enumerate(ZOO, start=1):
        print(f"{index}/{len(ZOO)} {row.id}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            base = write(row, Path(folder) / "base")
            made = plan(base, **row.request)
            expand(base, Path(folder) / "out", made)
            rows.append((row, made, verify(base, Path(folder) / "out")))
    page = render(rows)
    (ROOT / "docs" / "families.md").write_text(page, encoding="utf-8")
    failed = [row.id for row, _, proof in rows if not proof.passed]
    print(f"{len(rows) - len(failed)} of {len(rows)} proved" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


HEAD = """\
# Families

Written by `python benchmarks/families.py`; do not edit. Each family is a file in
`src/blockexpand/families/data/`. What the parts of the proof are: [proof.md](proof.md).

{proved} of {served} families proved on {models} tiny models (random weights, hidden 32, stored in bfloat16).
transformers {transformers}, torch {torch}, {machine}, one thread.

## What is served

`*` stands for a number. A writer marked -1 is a gain stored as gain minus one; the other writers start at 0.

| family | classes | residual writers | config entries that speak of single blocks |
| --- | --- | --- | --- |
"""
PROOF = """
## The proof

Part 1: logits, logits through the cache and greedy words, bit for bit in bfloat16 and float32. Part 2: the smallest
gradient norm over the new blocks' writers at step 0 and over all their tensors at step 1. Part 3: how far one AdamW
step at lr 1e-5 moves the model (KL, nats a token).

| family | settings | old + new | kinds of block | part 1 | part 2: step 0, step 1 | part 3 |
| --- | --- | --- | --- | --- | --- | --- |
"""
REFUSED = """
## What is refused

| model_type | why |
| --- | --- |
"""
ALWAYS = """
Refused in every family: models that run code of their own (`auto_map`); quantised weights (GPTQ, AWQ, bitsandbytes,
MXFP4, compressed-tensors and others), in which zero bytes need not be zeros, except FP8 with a scale beside each
weight (`quant_method` fp8), which is expanded exactly; any tensor that the family does not name; and lists in
config.json with one item a block that it does not know.

A model type that is on neither list has no file: it goes through structural discovery ([discovery.md](discovery.md)).
"""


def render(rows: list[tuple[Case, Plan, Proof]]) -> str:
    """The page."""
    proved = {row.family for row, _, _ in rows if all(p.passed for r, _, p in rows if r.family == row.family)}
    families = known_families().values()
    head = HEAD.format(
        proved=len(proved),
        served=len(families),
        models=len(rows),
        transformers=transformers.__version__,
        torch=torch.__version__,
        machine=platform.machine(),
    )
    settings = [
        f"| {family.name} with {rule.key} other than {' or '.join(map(repr, rule.allowed))} | {rule.why} |"
        for family in families
        for rule in family.only
    ]
    refused = [f"| {name} | {why} |" for name, why in refused_model_types().items()]
    tables = (
        (head, [facts(family) for family in families]),
        (PROOF, [figures(*row) for row in rows]),
        (REFUSED, [*refused, *settings]),
    )
    return "".join(words + "".join(f"{line}\n" for line in lines) for words, lines in tables) + ALWAYS


def facts(family: Family) -> str:
    """A family's line of the first table."""
    writers = [
        f"`{tail.replace('{n}', '*')}`{' -1' if tail in family.block.minus_one else ''}"
        for tail in family.block.writers
    ]
    rules = []
    for rule in family.per_layer:
        keys = [value for key, value in vars(rule).items() if key == "key" or key.endswith("_key")]
        rules.append(f"`{'`, `'.join(k for k in keys if k)}`: {RULES[rule.kind].format(**vars(rule))}")
    extra = [f"`{family.extra_blocks_key}`: those blocks are renumbered"] if family.extra_blocks_key else []
    cells = [", ".join(family.architectures), ", ".join(writers), "; ".join([*rules, *extra]) or "none"]
    return f"| {family.name} | {' | '.join(cells)} |"


def figures(row: Case, made: Plan, proof: Proof) -> str:
    """A model's line of the second table."""
    small = {
        key: value for key, value in {**row.settings, **(row.text or {})}.items() if isinstance(value, bool | str | int)
    }
    settings = ", ".join(f"{k} {v}" for k, v in small.items() if "size" not in k and k not in ("head_dim",)) or "plain"
    identity = [check for check in proof.checks if check.name.endswith((" in BF16", " in F32"))]
    gradient = [check for check in proof.checks if check.name.startswith("at step")]
    drift = next(check for check in proof.checks if "moves" in check.name)
    norms = ", ".join(check.figure.rpartition(" ")[2] if check.passed else "FAILED" for check in gradient)
    cells = [
        row.family,
        settings,
        f"{made.base.num_blocks} + {len(made.new_blocks)}",
        str(max(1, len(made.kinds))),
        f"{sum(check.passed for check in identity)} of {len(identity)} bit-identical",
        norms,
        drift.figure.split()[1] if drift.passed else "FAILED",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
