"""How should new blocks start, and how fast should their gains learn, where a norm stands behind each branch?

    python benchmarks/post_norm.py [WORDS..]

A tiny OLMo 2 is trained from nothing on the bytes of prose (licences and readmes of some packages), two
blocks are inserted, and only they are trained on the bytes of Python's standard library. The ways differ in what
makes a new block silent and in the gains' learning rate; everything else, the order of the data included, is the
same. Prints, for each way, how far the first step at the full rate moves the model on prose, and the losses after
the training (nats a byte, mean over seeds). With words, only the ways whose names hold one of them.
"""

from __future__ import annotations

import copy
import random
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Olmo2Config, Olmo2ForCausalLM

from blockexpand.expansion import plan
from blockexpand.live import expand_live, freeze, writers
from blockexpand.records.plan import Plan

# B = rows of a batch, T = bytes of a row, V = vocabulary.
B, T = 16, 128
BASE_STEPS, BASE_RATE = 600, 2e-3
STEPS, RATE = 200, 1e-3
SEEDS = (0, 1)
HELD_OUT_ROWS = 64
HIDDEN, BLOCKS, NEW = 64, 6, 2


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to start and to train."""

    name: str
    """What the table calls it."""
    gain_scale: float = 1.0
    """The gains' learning rate over that of all else."""
    projection_scale: float = 1.0
    """The learning rate of the projections before the gains over that of all else."""
    start: Callable[[nn.Module, float], object] | None = None
    """What is done to each new block after the plan's silent start; `gain` is the donors' mean gain."""


def projections_times(factor: float) -> Callable[[nn.Module, float], object]:
    """Behind a norm the projection's size does not matter to what it gives, only to how fast it turns."""

    def start(block: Any, gain: float) -> None:
        del gain
        block.self_attn.o_proj.weight.mul_(factor)
        block.mlp.down_proj.weight.mul_(factor)

    return start


def projections_instead(block: Any, gain: float) -> None:
    """What others do: zero projections behind the gains as they were."""
    block.self_attn.o_proj.weight.zero_()
    block.mlp.down_proj.weight.zero_()
    block.post_attention_layernorm.weight.fill_(gain)
    block.post_feedforward_layernorm.weight.fill_(gain)


WAYS = (
    Way(name="zero projections (what others do)", start=projections_instead),
    *(Way(name=f"zero gains, gain rate x{scale:g}", gain_scale=scale) for scale in (1, 3, 10, 30, 100)),
    Way(name="zero gains, gain rate x10, projections x0.1", gain_scale=10, start=projections_times(0.1)),
    Way(name="zero gains, gain rate x10, projection rate x8", gain_scale=10, projection_scale=8),
    *(
        Way(
            name=f"zero gains, gain rate x{scale:g}, projections /{part}",
            gain_scale=scale,
            start=projections_times(1 / part),
        )
        for scale, part in ((3, 8), (10, 8), (10, 32), (3, 32), (30, 32), (3, 128))
    ),
)


PROSE_OF = ("torch", "transformers", "numpy", "scipy", "matplotlib", "pyarrow", "tensorboard", "peft", "accelerate")
"""Packages whose pages are the prose: all that is installed would be another text on every machine."""

_PAGES = ("LICENSE*", "*.md", "*.rst", "METADATA")


def bytes_of(patterns: tuple[str, ...], folder: Path, limit: int) -> Tensor:
    """The files' bytes, in a fixed order, up to a limit."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    random.Random(0).shuffle(files)
    data = bytearray()
    for path in files:
        data += path.read_bytes()
        if len(data) >= limit:
            break
    return torch.frombuffer(data, dtype=torch.uint8).long()


def rows(data: Tensor, generator: torch.Generator, count: int) -> Tensor:
    """Rows [count, T] from anywhere in the data."""
    starts = torch.randint(len(data) - T, (count,), generator=generator)
    return torch.stack([data[i : i + T] for i in starts])


def loss_of(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    """Nats a byte."""
    logits_BTV = model(tokens_BT, use_cache=False).logits
    return nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())


@torch.no_grad()
def held_out(model: nn.Module, data: Tensor) -> float:
    """The loss on rows that are never trained on: the data's last tenth."""
    tail = data[-len(data) // 10 :]
    return float(loss_of(model, rows(tail, torch.Generator().manual_seed(7), HELD_OUT_ROWS)))


def train(model: nn.Module, groups: list[dict[str, Any]], data: Tensor, steps: int, seed: int) -> None:
    """AdamW with a short warm-up and a linear fall."""
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    generator, body = torch.Generator().manual_seed(seed), data[: -len(data) // 10]
    for step in range(steps):
        share = min(1.0, (step + 1) / 20) * (1 - step / steps)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share
        loss_of(model, rows(body, generator, B)).backward()
        optimizer.step()
        optimizer.zero_grad()


def groups_of(model: nn.Module, way: Way) -> list[dict[str, Any]]:
    """The new blocks' parameters, their gains and the projections before these with rates of their own."""
    gains, scales = writers(model), {"gain": way.gain_scale, "projection": way.projection_scale, "rest": 1.0}
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in freeze(model):
        projects = name.endswith(("o_proj.weight", "down_proj.weight"))
        groups.setdefault("gain" if name in gains else "projection" if projects else "rest", []).append(parameter)
    return [{"params": params, "lr": RATE * scales[kind]} for kind, params in groups.items()]


@torch.no_grad()
def started(base: Olmo2ForCausalLM, made: Plan, way: Way) -> nn.Module:
    """A copy of the base, deeper, started in this way."""
    gains = [p.mean() for n, p in base.named_parameters() if n.endswith("post_feedforward_layernorm.weight")]
    gain = float(torch.stack(gains).mean())
    model = expand_live(copy.deepcopy(base), made)
    if way.start is not None:
        for block in made.new_blocks:
            way.start(model.get_submodule(f"model.layers.{block.position}"), gain)
    return model


def first_step(base: Olmo2ForCausalLM, made: Plan, way: Way, prose: Tensor, code: Tensor) -> float:
    """The rise of the loss on prose after one step at the full rate."""
    model = started(base, made, way)
    before = held_out(model, prose)
    optimizer = torch.optim.AdamW(groups_of(model, way), weight_decay=0.0)
    loss_of(model, rows(code, torch.Generator().manual_seed(1), B)).backward()
    optimizer.step()
    return held_out(model, prose) - before


def main() -> None:
    """Train the base, then each way with each seed; print a table."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    packages = Path(sysconfig.get_paths()["purelib"])
    prose = bytes_of(tuple(f"{name}*/**/{kind}" for name in PROSE_OF for kind in _PAGES), packages, 3_000_000)
    code = bytes_of(("**/*.py",), Path(sysconfig.get_paths()["stdlib"]), 3_000_000)
    config = Olmo2Config(
        vocab_size=256,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=T,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    base = Olmo2ForCausalLM(config)
    train(base, [{"params": list(base.parameters()), "lr": BASE_RATE}], prose, BASE_STEPS, 0)
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder)
        made = plan(folder, NEW)
    print(f"base: prose {held_out(base, prose):.3f}, code {held_out(base, code):.3f} nats a byte")
    print("| way | first step: prose loss + | code after | prose after |")
    print("| --- | --- | --- | --- |")
    chosen = [way for way in WAYS if any(word in way.name for word in sys.argv[1:] or [""])]
    for way in chosen:
        losses = []
        for seed in SEEDS:
            model = started(base, made, way)
            train(model, groups_of(model, way), code, STEPS, 100 + seed)
            losses.append((held_out(model, code), held_out(model, prose)))
        on_code, on_prose = (sum(column) / len(losses) for column in zip(*losses, strict=True))
        spread = max(c for c, _ in losses) - min(c for c, _ in losses)
        step = first_step(base, made, way, prose, code)
        print(f"| {way.name} | {step:+.2g} | {on_code:.3f} (seeds within {spread:.3f}) | {on_prose:.3f} |", flush=True)


if __name__ == "__main__":
    main()
