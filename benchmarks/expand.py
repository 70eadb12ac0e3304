"""What does expanding cost beside copying the bytes, and beside load-rename-save?

A random bf16 Llama checkpoint in shards is written first (1.1b: 22 blocks of hidden size 2048 as TinyLlama's, and
2 new; 7b: 32 blocks of 4096 as Llama 2's, and 8 new). Compared, each a process of its own:

- `blockexpand expand`, which also reads and hashes every tensor of the base, and `expand --no-digest`, which does not;
- `cp -r` of the expanded folder: the same bytes (holes stay holes), nothing else;
- load-rename-save, the procedure of LLaMA-Factory's expansion script, redone here by its steps: transformers loads
  the whole model; each tensor gets its new name, each new block a copy of the one below with its two output
  projections zero; safetensors saves all in shards of at most 5 GB, with index and config. (No tokenizer is there
  to be copied by anyone.) Its result is compared with ours, tensor by tensor, in the first round.

Measured: seconds until every byte is on the disk (each file and folder of the output is fsynced inside the timed
span, whoever wrote it), CPU seconds, peak memory of the process. The base is in the page cache as far as memory
allows, unless `--cold` drops it before each run. Rounds alternate.

    .venv/bin/python benchmarks/expand.py [--shape 1.1b|7b] [--rounds 5] [--cold] [--work FOLDER] [--json]
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from measuring import (
    Cost,
    Row,
    Spread,
    alternate,
    machine,
    measure,
    parser_of,
    ratios,
    run_task,
    serve_or,
    show,
    task_command,
)

_BF16_BYTES = 2
_POOL_BYTES = 8 << 20
_RIVAL_SHARD = "5GB"
"""The default of LLaMA-Factory's script."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """The sizes of a Llama, and how it is to be expanded."""

    num_blocks: int
    num_new: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    vocabulary: int
    shard_bytes: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape, in the order of the stack."""
        key_value = self.hidden // self.num_heads * self.num_kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for block in range(self.num_blocks):
            inside = {
                "input_layernorm": (self.hidden,),
                "self_attn.q_proj": (self.hidden, self.hidden),
                "self_attn.k_proj": (key_value, self.hidden),
                "self_attn.v_proj": (key_value, self.hidden),
                "self_attn.o_proj": (self.hidden, self.hidden),
                "post_attention_layernorm": (self.hidden,),
                "mlp.gate_proj": (self.intermediate, self.hidden),
                "mlp.up_proj": (self.intermediate, self.hidden),
                "mlp.down_proj": (self.hidden, self.intermediate),
            }
            yield from ((f"model.layers.{block}.{tail}.weight", shape) for tail, shape in inside.items())
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def config(self) -> dict[str, object]:
        """The config.json that goes with them."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.num_blocks,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        }

    @property
    def base_bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(_num_bytes(shape) for _, shape in self.tensors())

    @property
    def expanded_bytes(self) -> int:
        """The same with the new blocks."""
        block = sum(_num_bytes(shape) for name, shape in self.tensors() if name.startswith("model.layers.0."))
        return self.base_bytes + self.num_new * block


SHAPES = {
    "tiny": LlamaShape(
        num_blocks=8, num_new=2, hidden=64, intermediate=176, num_heads=4, num_kv_heads=2, vocabulary=256,
        shard_bytes=1 << 18,
    ),
    "1.1b": LlamaShape(
        num_blocks=22, num_new=2, hidden=2048, intermediate=5632, num_heads=32, num_kv_heads=4, vocabulary=32000,
        shard_bytes=10**9,
    ),
    "7b": LlamaShape(
        num_blocks=32, num_new=8, hidden=4096, intermediate=11008, num_heads=32, num_kv_heads=32, vocabulary=32000,
        shard_bytes=5 * 10**9,
    ),
}  # fmt: skip


def _num_bytes(shape: Sequence[int]) -> int:
    total = _BF16_BYTES
    for size in shape:
        total *= size
    return total


# --- the base ---------------------------------------------------------------------------------------------


def write_llama(folder: Path, shape: LlamaShape) -> None:
    """Write a checkpoint of this shape, finite random bf16 in it, with nothing but the standard library."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2), encoding="utf-8")
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, sizes in shape.tensors():
        if shards[-1] and size + _num_bytes(sizes) > shape.shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, sizes))
        size += _num_bytes(sizes)
    pool = _random_bf16()
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, tensors, pool)
        weight_map |= {name: file for name, _ in tensors}
    index = {"metadata": {"total_size": shape.base_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _random_bf16() -> memoryview:
    """Numbers between 0.002 and 0.016 of either sign, as weights are; written twice over, so any start will do."""
    # The upper byte holds the sign and seven bits of the exponent, the lower its last bit and the mantissa.
    upper = os.urandom(_POOL_BYTES // 2).translate(bytes((0x3B, 0x3C, 0xBB, 0xBC)) * 64)
    pool = bytearray(_POOL_BYTES)
    pool[0::2], pool[1::2] = os.urandom(_POOL_BYTES // 2), upper
    return memoryview(pool + pool)


def _write_shard(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], pool: memoryview) -> None:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors:
        end = position + _num_bytes(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (position, end)}
        position = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "xb", buffering=0) as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for name, shape in tensors:
            remaining, start = _num_bytes(shape), _BF16_BYTES * (hash(name) % (_POOL_BYTES // _BF16_BYTES))
            while remaining:
                written = stream.write(pool[start : start + min(remaining, _POOL_BYTES)])
                remaining -= written
        os.fsync(stream.fileno())


def _write_base(folder: str, shape: str) -> None:
    write_llama(Path(folder), SHAPES[shape])


# --- the rivals' tasks ------------------------------------------------------------------------------------


def _load_rename_save(base: str, out: str, num_new: int) -> None:
    """Everything into memory, a new dictionary of tensors, everything out again."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    state = model.state_dict()
    group = config.num_hidden_layers // num_new
    deeper, position = {}, 0
    for block in range(config.num_hidden_layers):
        prefix = f"model.layers.{block}."
        tensors = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        deeper |= {f"model.layers.{position}.{tail}": t for tail, t in tensors.items()}
        position += 1
        if (block + 1) % group == 0:
            for tail, tensor in tensors.items():
                writes = tail in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
                made = torch.zeros_like(tensor) if writes else torch.clone(tensor)
                deeper[f"model.layers.{position}.{tail}"] = made
            position += 1
    deeper |= {name: t for name, t in state.items() if not name.startswith("model.layers.")}
    config.num_hidden_layers = position
    config.save_pretrained(out)
    split = split_torch_state_dict_into_shards(deeper, max_shard_size=_RIVAL_SHARD)
    for file, names in split.filename_to_tensors.items():
        save_file({name: deeper[name] for name in names}, os.path.join(out, file), metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        Path(out, "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _same_tensors(one: str, other: str) -> bool:
    """Whether two checkpoints hold the same tensors, byte for byte."""
    from blockexpand.checkpoint import digest_tensors, open_checkpoint

    return digest_tensors(open_checkpoint(one)) == digest_tensors(open_checkpoint(other))


# --- measuring --------------------------------------------------------------------------------------------


def _flush(folder: Path) -> None:
    for path in (*sorted(folder.rglob("*")), folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _forget(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclasses.dataclass
class _Course:
    """The folders of one benchmark, and the runs in them."""

    base: Path
    reference: Path
    """What ours makes of the base: what `cp` copies, and what load-rename-save has to make too."""
    out: Path
    shape: LlamaShape
    cold: bool
    num_compared: int = 0

    def commands(self) -> dict[str, list[str]]:
        """Every rival's command; each writes `out`."""
        ours = [
            str(Path(sys.executable).with_name("blockexpand")), "expand", str(self.base), str(self.out),
            "--blocks", str(self.shape.num_new), "--quiet",
        ]  # fmt: skip
        theirs = {"base": str(self.base), "out": str(self.out), "num_new": self.shape.num_new}
        return {
            "expand": ours,
            "expand --no-digest": [*ours, "--no-digest"],
            "cp -r": ["cp", "-r", str(self.reference), str(self.out)],
            "load-rename-save": task_command(__file__, "load-rename-save", **theirs),
        }

    def run(self, name: str) -> Cost:
        """One rival's run, from a quiet disk until its output is durable; then the output goes."""
        os.sync()
        if self.cold:
            for folder in (self.base, self.reference):
                _forget(folder)
        start = time.perf_counter()
        cost, _ = measure(self.commands()[name])
        cpu_seconds = _cpu_seconds()
        _flush(self.out)
        cost = dataclasses.replace(
            cost,
            seconds=time.perf_counter() - start,
            cpu_seconds=cost.cpu_seconds + _cpu_seconds() - cpu_seconds,
        )
        if name == "load-rename-save" and not self.num_compared:
            if not run_task(__file__, "same", one=str(self.reference), other=str(self.out)):
                sys.exit("load-rename-save made other tensors than blockexpand expand: the comparison is void")
            self.num_compared += 1
        shutil.rmtree(self.out)
        return cost


def _rows(costs: dict[str, list[Cost]]) -> list[Row]:
    seconds = {name: [cost.seconds for cost in found] for name, found in costs.items()}
    return [
        {
            "who": name,
            "seconds, durable": Spread.of(seconds[name]),
            "times cp": ratios(seconds[name], seconds["cp -r"]),
            "times load-rename-save": ratios(seconds[name], seconds["load-rename-save"]),
            "CPU seconds": Spread.of(cost.cpu_seconds for cost in found),
            "peak MB": Spread.of(cost.peak_bytes / 1e6 for cost in found),
        }
        for name, found in costs.items()
    ]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache before each run")
    parser.add_argument("--work", help="where the temporary folder is made")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="blockexpand-expand-", dir=arguments.work) as work:
        # The base, the reference and one output stand side by side.
        needed, free = shape.base_bytes + 2 * shape.expanded_bytes, shutil.disk_usage(work).free
        if needed * 1.05 > free:
            sys.exit(
                f"expand.py --shape {arguments.shape} writes {needed / 1e9:.1f} GB and {work} has {free / 1e9:.1f} GB "
                "free; free some space, or name another folder with --work"
            )
        course = _Course(
            base=Path(work) / "base", reference=Path(work) / "reference", out=Path(work) / "out", shape=shape,
            cold=arguments.cold,
        )  # fmt: skip
        print(f"  writing a base of {shape.base_bytes / 1e9:.1f} GB", file=sys.stderr, flush=True)
        run_task(__file__, "write-base", folder=str(course.base), shape=arguments.shape)
        measure([str(course.reference) if part == str(course.out) else part for part in course.commands()["expand"]])
        runs = {name: partial(course.run, name) for name in course.commands()}
        costs = alternate(runs, arguments.rounds)
    what = f"{shape.num_blocks} + {shape.num_new} blocks, {shape.expanded_bytes / 1e9:.2f} GB out"
    title = f"expand, {what}, {arguments.rounds} rounds, {'cold' if arguments.cold else 'warm'} cache"
    show(title, facts, _rows(costs), arguments.json)


if __name__ == "__main__":
    serve_or(main, {"write-base": _write_base, "load-rename-save": _load_rename_save, "same": _same_tensors})
