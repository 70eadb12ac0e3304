"""What does `verify` cost beside reading the bytes, and how much memory does the proof take block by block?

A random bf16 Llama (see expand.py for the shapes) is expanded. Compared, each a process of its own, in alternation:

- comparing all old tensors, and the new blocks' copies, with the base's, byte by byte, as `verify` does;
- hashing all tensors of both folders, as `verify` did before;
- `cmp` of each of the base's shards with the output's that has its bytes (headers skipped);
- `cat` of the same files into nothing.

Then, once each: the whole proof with whole models, and with `--memory-gb` (the same logits; no gradients).

    .venv/bin/python benchmarks/verify.py [--shape 1.1b] [--rounds 3] [--cold] [--memory-gb 2] [--no-proof]
        [--work FOLDER]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from bases import SHAPES, write_llama
from measuring import Cost, Row, Spread, alternate, machine, measure, parser_of, ratios, run_task, serve_or, show
from measuring import task_command as command_of


def _write_base(folder: str, shape: str) -> None:
    write_llama(Path(folder), SHAPES[shape])


def _compare(base: str, out: str) -> int:
    from blockexpand.checkpoint import compare_tensors, open_checkpoint
    from blockexpand.expansion.proof import planned_tensors
    from blockexpand.families import family_for
    from blockexpand.records.expansion import read_expansion

    one, other, plan = open_checkpoint(base), open_checkpoint(out), read_expansion(out).plan
    family = family_for(one.config, one.source, one.tensors)
    names = {name: [family.renumbered(name, plan.new_index)] for name in one.tensors}
    for new, donor, starts in planned_tensors(family, plan):
        if starts == "donor":
            names[donor].append(new)
    return len(compare_tensors(one, other, names).different)


def _hash(base: str, out: str) -> int:
    from blockexpand.checkpoint import digest_tensors, open_checkpoint

    return sum(len(digest_tensors(open_checkpoint(folder))) for folder in (base, out))


def _shell(base: Path, out: Path, tool: str) -> list[str]:
    """The same bytes through cmp or cat."""
    from blockexpand.checkpoint import read_header

    commands = []
    olds = sorted(base.glob("*.safetensors"))
    for old, new in zip(olds, sorted(out.glob("*.safetensors"))[: len(olds)], strict=True):
        skips = f"{read_header(old).data_start}:{read_header(new).data_start}"
        commands.append(f"cmp -i {skips} {old} {new}" if tool == "cmp" else f"cat {old} {new} > /dev/null")
    return ["sh", "-ec", "\n".join(commands)]


def _run(command: list[str], folders: list[Path], cold: bool) -> Cost:
    os.sync()
    for path in (path for folder in folders if cold for path in folder.iterdir()):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    return measure(command)[0]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--memory-gb", type=float, default=2.0)
    parser.add_argument("--no-proof", action="store_true")
    parser.add_argument("--work")
    arguments = parser.parse_args()
    shape, facts = SHAPES[arguments.shape], machine()
    tool = str(Path(sys.executable).with_name("blockexpand"))
    with tempfile.TemporaryDirectory(prefix="blockexpand-verify-", dir=arguments.work) as work:
        base, out = Path(work) / "base", Path(work) / "out"
        if 1.1 * (shape.base_bytes + shape.expanded_bytes) > shutil.disk_usage(work).free:
            sys.exit(f"verify.py: {work} has too little space for both folders; name another with --work")
        run_task(__file__, "write-base", folder=str(base), shape=arguments.shape)
        measure([tool, "expand", str(base), str(out), "--blocks", str(shape.num_new), "--no-digest", "--quiet"])
        folders = {"base": str(base), "out": str(out)}
        commands = {
            "compare": command_of(__file__, "compare", **folders),
            "hash both": command_of(__file__, "hash", **folders),
            "cmp": _shell(base, out, "cmp"),
            "cat": _shell(base, out, "cat"),
        }
        costs = alternate(
            {name: partial(_run, command, [base, out], arguments.cold) for name, command in commands.items()},
            arguments.rounds,
        )
        rows: list[Row] = [
            {
                "what": name,
                "seconds": Spread.of(cost.seconds for cost in found),
                "times cmp": ratios([c.seconds for c in found], [c.seconds for c in costs["cmp"]]),
                "times cat": ratios([c.seconds for c in found], [c.seconds for c in costs["cat"]]),
                "peak MB": Spread.of(cost.peak_bytes / 1e6 for cost in found),
            }
            for name, found in costs.items()
        ]
        show(f"verify's bytes, {arguments.shape}, {arguments.rounds} rounds", facts, rows, arguments.json)
        if not arguments.no_proof:
            limits = {"whole models": "1000", "block by block": str(arguments.memory_gb)}
            proofs: list[Row] = []
            for name, limit in limits.items():
                cost, _ = measure([tool, "verify", str(base), str(out), "--memory-gb", limit, "--quiet"])
                proofs.append(
                    {"proof": name, "GB allowed": limit, "seconds": cost.seconds, "peak MB": cost.peak_bytes / 1e6}
                )
            show(f"the proof, {arguments.shape}", facts, proofs, arguments.json)


if __name__ == "__main__":
    serve_or(main, {"write-base": _write_base, "compare": _compare, "hash": _hash})
