"""What `packs.py speed` runs: how long packs take to attach, detach and switch, and the memory that attaching needs.

In: the tiny base, and a random Llama of about 1 GB. Out: times as ratios to a copy of the pack's bytes in memory (best
of five in one process, one thread), and memory in packs: each figure from a process of its own. There a smaller pack is
attached and detached first, so that imports are not counted; then the kernel's mark of the largest resident memory is
put back (`/proc/self/clear_refs`, Linux only), so that the peak is that of this one attach and of nothing before it.
"""

from __future__ import annotations

import functools
import gc
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockexpand.data import TINY_BASE as BASE
from measuring import Spread, run_task, serve_or

VERIFY = ("none", "files", "donors", "all")
ROUNDS = 3
SHAPES = {
    "large": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12, "num_attention_heads": 32,
              "num_key_value_heads": 8},
    "small": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1, "head_dim": 16},
}  # fmt: skip


def speed(work: Path) -> None:
    """Both bases; the figures are printed as they come."""
    small = _pack_of(_made(work, "small"), work / "speed-small.pack", 1)
    for title, base in (("tiny base", BASE), ("about 1 GB", _made(work, "large"))):
        folder = _pack_of(base, work / f"speed-{title}.pack", 4)
        places = {"base": str(base), "pack": str(folder)}
        for line in run_task(__file__, "times", **places):
            print(f"{title}: {line}", flush=True)
        warm = {"small_base": str(work / "small"), "small_pack": str(small)}
        for verify in VERIFY:
            found = [run_task(__file__, "memory", **places, **warm, verify=verify) for _ in range(ROUNDS)]
            told = ", ".join(f"{what} {_told(Spread.of(one[what] for one in found))}" for what in found[0])
            print(f"{title}: memory in packs, checked {verify:6}: {told}", flush=True)


def _told(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.smallest:.3f} to {spread.largest:.3f})"


def _made(work: Path, shape: str) -> Path:
    folder = work / shape
    if not folder.exists():
        run_task(__file__, "make", folder=str(folder), shape=shape)
    return folder


def _pack_of(base: Path, folder: Path, blocks: int) -> Path:
    """A pack of fresh blocks: their numbers do not matter here."""
    run_task(__file__, "pack", base=str(base), folder=str(folder), blocks=blocks)
    return folder


# --- tasks, each in a process of its own ---------------------------------------------------------------


def make(folder: str, shape: str) -> None:
    """Write a random Llama in bfloat16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(BASE)
    config.update(SHAPES[shape])
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def pack(base: str, folder: str, blocks: int) -> None:
    """Expand, and take the blocks out."""
    from blockexpand.expansion import expand, plan
    from blockexpand.packs import About, extract

    out = Path(folder)
    expanded = out.with_suffix(".expanded")
    for old in (expanded, out):
        shutil.rmtree(old, ignore_errors=True)
    expand(base, expanded, plan(base, blocks))
    extract(expanded, out, About(name="speed"))
    shutil.rmtree(expanded)


def times(base: str, pack: str) -> list[str]:
    """Lines about seconds."""
    import torch

    from blockexpand.packs import attach, detach, load_with_packs, read_pack
    from blockexpand.packs.in_memory import attach_to_model, disable, enable

    torch.set_num_threads(1)
    opened, model = read_pack(pack), load_with_packs(base, [], torch.bfloat16)
    size = sum(entry.num_bytes for entry in opened.stored.values())
    source = torch.ones(size, dtype=torch.uint8)
    copy = _best(source.clone)
    lines = [f"pack {size / 1e6:.1f} MB, {opened.num_bytes / size:.5f} of its blocks; a copy {copy * 1e3:.1f} ms"]
    for verify in VERIFY:
        took = []
        for _ in range(5):
            took.append(_time(functools.partial(attach_to_model, model, [opened], verify=verify)))
            detach(model)
        lines.append(f"attach, checked {verify:6}: {min(took) * 1e3:7.1f} ms = {min(took) / copy:5.1f} copies")
    attach(model, opened)
    turn_off, turn_on = functools.partial(disable, model, "speed"), functools.partial(enable, model, "speed")
    off = _best(turn_off, turn_on)
    turn_off()
    on = _best(turn_on, turn_off)
    turn_on()
    gone = _time(functools.partial(detach, model))
    return [*lines, f"off {off * 1e3:.2f} ms, on {on * 1e3:.2f} ms, detach {gone * 1e3:.2f} ms"]


def memory(base: str, pack: str, small_base: str, small_pack: str, verify: Any) -> dict[str, float]:
    """The growth of this process by one attach, in packs: at its peak, afterwards, and after detaching."""
    import torch

    from blockexpand.packs import detach, load_with_packs, read_pack
    from blockexpand.packs.in_memory import attach_to_model

    torch.set_num_threads(1)
    detach(attach_to_model(load_with_packs(small_base, [], torch.bfloat16), [read_pack(small_pack)], verify=verify))
    opened, model = read_pack(pack), load_with_packs(base, [], torch.bfloat16)
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    attach_to_model(model, [opened], verify=verify)
    peak, after = _status("VmHWM"), _status("VmRSS")
    detach(model)
    gc.collect()
    size = sum(entry.num_bytes for entry in opened.stored.values())
    grown = {"peak": peak - before, "kept": after - before, "after detach": _status("VmRSS") - before}
    return {what: num_bytes / size for what, num_bytes in grown.items()}


def _status(name: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _time(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _best(work: Callable[[], Any], between: Callable[[], Any] = lambda: None) -> float:
    took = []
    for _ in range(7):
        took.append(_time(work))
        between()
    return min(took)


if __name__ == "__main__":
    serve_or(lambda: speed(Path("runs/packs")), {"make": make, "pack": pack, "times": times, "memory": memory})
