"""What somebody who names only a model, data and a time has left open: rules that were measured, and a measured step.

In: the model's headers, how much data there is, the device. Out: a `LearnPlan`: how many new blocks, which rows and
steps, the optimiser and its rate; how long a step takes here and what a row needs in memory, from one row that really
trains. The rules and their figures: docs/learn.md. Refused: what does not fit into memory or onto the disk, with what
would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from blockexpand.checkpoint import Checkpoint
from blockexpand.errors import PlanError, TrainingError
from blockexpand.expansion import plan
from blockexpand.families import family_for
from blockexpand.families.modules import load_model
from blockexpand.live import bypass, expand_live, freeze
from blockexpand.live.device import choose_device, free_bytes, peak_bytes, total_bytes, training_dtype
from blockexpand.live.forward import RowBatch, base_answers, divergences, hidden_states
from blockexpand.live.generation import CONTEXT_KEYS
from blockexpand.live.loss import linear_losses
from blockexpand.live.parts import head_of
from blockexpand.records.learn import ALL_TEXT, Arm, DataSeen, LearnPlan, LearnSettings
from blockexpand.records.plan import Plan
from blockexpand.records.run import (
    SELF,
    BlocksArm,
    DataSettings,
    FullArm,
    LoraArm,
    OptimizerSettings,
    RetentionSettings,
    TrainSettings,
)
from blockexpand.training.budget import LEAST_DOCUMENTS
from blockexpand.training.data import CHATS, PROSE
from blockexpand.training.optimizers import build_optimizers
from blockexpand.units import format_bytes

_GENERAL_SHARE = 0.25
"""Of the rows of a step; with _KL_WEIGHT the best of what was tried on the tiny base (benchmarks/RESULTS.md)."""
_KL_WEIGHT = 8.0
_OPTIMIZERS: dict[Arm, Literal["adamw", "muon"]] = {"blocks": "muon", "full": "adamw", "lora": "adamw"}
_RATES: dict[Arm, tuple[float, float, float]] = {
    "blocks": (5e-3, 2e-2, 0.0),
    "full": (1e-4, 4e-4, 1e-5),
    "lora": (5e-4, 2e-3, 1e-4),
}
"""Each arm's at the width of SmolLM2, the largest and the smallest that it gets (docs/learn.md)."""
_WIDTH, _RATE_FALLS = 576, 1.7
"""Rates fall with a power of the width by which the tiny base (256) has the largest of them. New blocks have 1.8e-4 at
4,096, which is the paper's 2e-4, for Muon's updates are of AdamW's size; the others end where people are at 7B."""
_KINDS = {"prose": PROSE, "chats": CHATS}
"""What `--keep` calls what the base writes."""
_STEERING_ROWS, _STEERING_ROWS_ON_DEVICE, _CHECKPOINTS = 4, 16, 12
"""Rows of each kind that are measured on the way, and how often a run is saved."""
_MEASURED_SHARE, _LEAST_MEASUREMENTS, _MOST_MEASUREMENTS = 0.1, 2, 12
"""Of a run's time, that measuring on the way takes, and how often that may be."""
_HELD_OUT_TOKENS = 16_384
"""Of each held-out split at most: enough to tell, and a few passes on a processor."""
_FEW_DOCUMENTS = 500
"""Of general text; with fewer, fewer rows steer, so that documents are left to test the budget by."""
_LEAST_GENERAL = 2 * LEAST_DOCUMENTS
"""Documents of the user's general text: a tenth is tested on, or more where they are few, and some are rehearsed."""
_BLOCK_SHARE, _LEAST_BLOCKS = 0.2, 4
"""New blocks over old ones; of shallow models more, up to half: four of eight, four of eighteen, six of thirty were
tried (docs/learn.md)."""
_MANY_TOKENS, _LARGER_SHARE = 20_000_000, 0.25
"""With so much to learn, the paper's share: 8 of 32."""
_ROW_TOKENS, _ROW_TOKENS_ON_DEVICE = 512, 1024
_LEAST_ROWS, _MOST_ROWS, _LEAST_STEPS = 8, 128, 200
"""Rows of a step: eight, and more while that leaves so many steps."""
_ROWS_OF_A_PASS_ON_CPU = 2
_MOST_EPOCHS = 4
"""Repeated text is nearly as good as new up to here (Muennighoff et al. 2023, arXiv 2305.16264)."""
_LONG_SECONDS = 12 * 3600
_WARM_TOKENS = 64
_SHARE_OF_FREE = 0.5
"""Of the free memory, that the rows of a pass may take."""
_OTHER_PASSES = 40
"""Short forward passes that proving and looking take, in rows."""
_BUDGET_PASSES = 4
"""Over what tests the budget: of the base, and of the scales."""
_WRITTEN_AS_ROWS, _TESTED_ROWS = 120, 40
"""What writing general text takes, in forward passes of rows; and the rows that test the budget, of all kinds."""
_COPIES = 4
"""Of what trains, beside it on a processor: when a checkpoint is written with its moments, when scales are tried."""
_OVERHEAD = 1.1
"""The optimiser, and what the host does between passes."""


def decide(
    asked: LearnSettings, base: Checkpoint, depth: int, data: DataSeen, general: DataSeen, device: str, out: Path
) -> LearnPlan:
    """Everything that was left open.

    Raises:
        PlanError: the model cannot be expanded, or not by as many blocks as asked for.
        TrainingError: it does not fit into memory or onto the disk.
        DeviceError: there is no such device.
    """
    if asked.general and general.num_documents < _LEAST_GENERAL:
        raise TrainingError(
            f"{', '.join(asked.general)}: {general.num_documents} documents of general text; expected at least "
            f"{_LEAST_GENERAL}: a budget is promised by documents; give more, or leave out --general, and the model "
            "writes its own"
        )
    where = choose_device(device)
    dtype = training_dtype("auto", base.folder, where)
    grown = choose_plan(base, depth, asked.blocks, data.num_tokens)
    row_tokens = choose_row_tokens(base, where)
    _check_memory(base, grown, asked, where)
    measured = measure_row(base, grown if asked.arm == "blocks" else None, asked.arm, row_tokens, dtype, where)
    learnable = max(1, round(0.8 * data.num_tokens))
    tokens = asked.tokens if asked.tokens is not None else _MOST_EPOCHS * learnable
    steering = steering_rows(where, general.num_documents if asked.general else None)
    other = _OVERHEAD * measured.forward_seconds * _other_passes(asked, row_tokens, steering)
    rows, arms = choose_rows(tokens, row_tokens), 1 + len(asked.against)
    if asked.minutes is not None:
        left = (60 * asked.minutes - other) * (1 - _MEASURED_SHARE) / arms
        tokens = min(tokens, max(1, int(left / measured.step_seconds(rows) * _domain_rows(rows) * row_tokens)))
        rows = choose_rows(tokens, row_tokens)
    step_seconds = _OVERHEAD * measured.step_seconds(rows)
    step_tokens = _domain_rows(rows) * row_tokens
    num_steps = max(1, -(-tokens // step_tokens))
    if asked.minutes is not None:
        num_steps = max(1, min(num_steps, int(left / step_seconds)))
    measurement = 3 * steering * measured.forward_seconds
    num_measurements = int(_MEASURED_SHARE * num_steps * step_seconds / measurement)
    num_measurements = max(_LEAST_MEASUREMENTS, min(_MOST_MEASUREMENTS, num_measurements, num_steps))
    other += arms * num_measurements * measurement
    blocks = grown.new_blocks if asked.arm == "blocks" else ()
    plan_made = LearnPlan(
        num_old_blocks=depth,
        after=tuple(block.after for block in blocks),
        num_trained=measured.num_trained if asked.arm != "lora" else grown.cost.parameters_new,
        num_parameters=measured.num_parameters,
        data=data,
        domain_tokens=num_steps * step_tokens,
        epochs=num_steps * step_tokens / learnable,
        held_out_tokens=_HELD_OUT_TOKENS,
        steering_rows=steering,
        row_tokens=row_tokens,
        rows_per_step=rows,
        rows_per_pass=measured.rows_per_pass(rows, where),
        general_rows=rows - _domain_rows(rows),
        num_steps=num_steps,
        num_measurements=num_measurements,
        optimizer=_OPTIMIZERS[asked.arm],
        lr=choose_rate(asked.arm, base.folder),
        precision="bfloat16" if dtype == torch.bfloat16 else "float32",
        device=str(where),
        step_seconds=step_seconds,
        other_seconds=other,
        memory_bytes=measured.peak_bytes(rows, where),
        free_memory_bytes=free_bytes(where),
        disk_bytes=_disk_bytes(base, grown, asked),
        free_disk_bytes=shutil.disk_usage(next(p for p in (out, *out.absolute().parents) if p.exists())).free,
        warnings=_warnings(
            asked, num_steps, step_seconds, num_steps * step_tokens / learnable, 60 * (asked.minutes or 0) - other
        ),
    )
    wanted, free = plan_made.disk_bytes, plan_made.free_disk_bytes
    if wanted > free:
        raise TrainingError(
            f"{out} would take {format_bytes(wanted)} of disk, and {format_bytes(free)} are free; expected room for "
            "the model twice and its checkpoints; free some, or choose another --out"
        )
    return plan_made


def _domain_rows(rows: int) -> int:
    return rows - round(_GENERAL_SHARE * rows)


def steering_rows(device: torch.device, num_general_documents: int | None) -> int:
    """Rows of each kind of text that a run steers by; few where there is little general text (None: it is written)."""
    if num_general_documents is not None and num_general_documents <= _FEW_DOCUMENTS:
        return 2
    return _STEERING_ROWS if device.type == "cpu" else _STEERING_ROWS_ON_DEVICE


def _other_passes(asked: LearnSettings, row_tokens: int, steering: int) -> float:
    """What is neither a step nor a measurement on the way, in forward passes of rows."""
    arms = 1 + len(asked.against)
    judged = (1 + arms) * _HELD_OUT_TOKENS / row_tokens
    kept = arms * _BUDGET_PASSES * (_TESTED_ROWS + steering)
    return _OTHER_PASSES + judged + kept + (0 if asked.general else _WRITTEN_AS_ROWS)


def _warnings(
    asked: LearnSettings, num_steps: int, step_seconds: float, epochs: float, seconds: float
) -> tuple[str, ...]:
    found = []
    if asked.minutes is None and asked.tokens is None and step_seconds * num_steps > _LONG_SECONDS:
        found.append("this takes long: with --minutes M it learns what fits into them")
    if epochs > 2 * _MOST_EPOCHS:
        found.append(f"each token is seen {epochs:.0f} times; from about {_MOST_EPOCHS} on, more data helps more")
    if asked.minutes is not None and seconds < 0:
        found.append(f"{asked.minutes:g} minutes do not reach for proving and measuring alone, which are not left out")
    return tuple(found)


def _check_memory(base: Checkpoint, grown: Plan, asked: LearnSettings, device: torch.device) -> None:
    """Refuse what cannot fit whatever its rows, before anything is loaded."""
    there = total_bytes(device)
    needed = grown.cost.training_memory_bytes
    if asked.arm == "full" or "full" in asked.against:
        needed = 2 * base.num_bytes + 16 * grown.cost.parameters_before
    if needed > there:
        raise TrainingError(
            f"{base.source} needs {format_bytes(needed)} for weights, gradients and moments, and {device} has "
            f"{format_bytes(there)}; expected it to fit; take fewer --blocks or --arm lora (the weights alone are "
            f"{format_bytes(base.num_bytes)}), a smaller model, or `train` on several devices"
        )


def _disk_bytes(base: Checkpoint, grown: Plan, asked: LearnSettings) -> int:
    """The deeper model twice (before and after), a few checkpoints of what trains, and rivals' models."""
    return (
        2 * grown.cost.weights_bytes_after
        + 3 * 12 * grown.cost.parameters_new
        + len(asked.against) * (base.num_bytes + 3 * 12 * grown.cost.parameters_before)
    )


def settings_of(
    asked: LearnSettings,
    plan: LearnPlan,
    arm: Arm,
    *,
    model: Path,
    out: Path,
    domain: Path,
    general: Mapping[str, Path],
) -> TrainSettings:
    """A run of the plan: for each arm the same tokens and the same retention.

    Args:
        asked: What is kept, and the seed.
        plan: Rows, steps and tokens.
        arm: What trains.
        model: The checkpoint it starts from.
        out: The run's folder.
        domain: The prepared data.
        general: Prepared general text by its kind; none: the base writes it.
    """
    kinds = {"blocks": BlocksArm(), "full": FullArm(kind="full")}
    folders = {kind: str(folder) for kind, folder in general.items()}
    first = next(iter(folders), None)
    named = {_KINDS[kind]: share for kind, share in asked.keep.items() if kind in _KINDS}
    return TrainSettings(
        model=str(model),
        out=str(out),
        arm=kinds.get(arm) or LoraArm(kind="lora", trainable_parameters=plan.num_trained),
        data=DataSettings(
            domain=str(domain),
            general=SELF if first is None else folders.pop(first),
            general_kind=first or ALL_TEXT,
            more_general=folders,
            validation_rows=plan.steering_rows,
        ),
        domain_tokens=plan.domain_tokens,
        rows_per_step=plan.rows_per_step,
        rows_per_pass=plan.rows_per_pass,
        optimizer=OptimizerSettings(name=_OPTIMIZERS[arm], lr=choose_rate(arm, model)),
        retention=RetentionSettings(
            replay=plan.general_rows / plan.rows_per_step,
            kl_weight=_KL_WEIGHT,
            forgetting_budget=asked.keep.get(ALL_TEXT, max(asked.keep.values())),
            budgets=named,
        ),
        precision=plan.precision,
        measure_every_steps=-(-plan.num_steps // plan.num_measurements),
        checkpoint_every_steps=max(1, plan.num_steps // _CHECKPOINTS),
        seed=asked.seed,
    )


def choose_plan(base: Checkpoint, depth: int, blocks: int | None, data_tokens: int) -> Plan:
    """The plan with as many blocks as asked for, or as the rule says and the family can state.

    Raises:
        PlanError, FamilyError: the base cannot be expanded, or not by as many as asked for.
    """
    if blocks is not None:
        return plan(base, blocks)
    share = _LARGER_SHARE if data_tokens >= _MANY_TOKENS else _BLOCK_SHARE
    wanted = max(min(_LEAST_BLOCKS, depth // 2), round(share * depth), 1)
    counts = sorted(range(1, depth + 1), key=lambda count: (abs(count - wanted), -count))
    for count in counts:
        try:
            return plan(base, count)
        except PlanError:  # a config that cannot say so
            if count == counts[-1]:
                raise
    raise AssertionError("a model without blocks")


def choose_rows(num_tokens: int, row_tokens: int) -> int:
    """Rows of a step, general ones included, for so many domain tokens."""
    rows = _LEAST_ROWS
    while rows < _MOST_ROWS and num_tokens // (2 * rows * row_tokens) >= _LEAST_STEPS:
        rows *= 2
    return rows


def choose_rate(arm: Arm, model: Path) -> float:
    """The learning rate of an arm on a checkpoint, deeper or not."""
    rate, largest, smallest = _RATES[arm]
    width = AutoConfig.from_pretrained(model).get_text_config().hidden_size
    return float(f"{max(min(rate * (_WIDTH / width) ** _RATE_FALLS, largest), smallest):.2g}")


def choose_row_tokens(base: Checkpoint, device: torch.device) -> int:
    """The length of a row: short enough for a processor, and for the model."""
    longest = _ROW_TOKENS if device.type == "cpu" else _ROW_TOKENS_ON_DEVICE
    text = family_for(base.config, base.source, base.tensors).text(base.config)
    stated = [text[key] for key in CONTEXT_KEYS if isinstance(text.get(key), int)]
    return min([longest, *stated])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One row, on this machine."""

    train_seconds: float
    """Forward and backward."""
    forward_seconds: float
    """Of the base inside."""
    optimizer_seconds: float
    """A step of it."""
    row_bytes: int
    """What a row in a pass needs on top of the weights."""
    whole_bytes: int
    """With everything else of the process, or on the device, for a step of one row."""
    num_trained: int
    num_parameters: int

    def rows_per_pass(self, rows_per_step: int, device: torch.device) -> int:
        """As many rows as fit well, by halves of a step; on a processor few, for the sake of memory."""
        rows = min(rows_per_step, _ROWS_OF_A_PASS_ON_CPU) if device.type == "cpu" else rows_per_step
        while rows > 1 and rows * self.row_bytes > _SHARE_OF_FREE * free_bytes(device):
            rows = -(-rows // 2)
        return rows

    def peak_bytes(self, rows: int, device: torch.device) -> int:
        """Of the whole run."""
        return round(_OVERHEAD * (self.whole_bytes + (self.rows_per_pass(rows, device) - 1) * self.row_bytes))

    def step_seconds(self, rows_per_step: int) -> float:
        """A step, the reference's passes on general rows and the optimiser included."""
        general = round(_GENERAL_SHARE * rows_per_step)
        return rows_per_step * self.train_seconds + general * self.forward_seconds + self.optimizer_seconds


def measure_row(
    base: Checkpoint, grown: Plan | None, arm: Arm, row_tokens: int, dtype: torch.dtype, device: torch.device
) -> Measured:
    """Train one row of random tokens with the arm's optimiser, and forget the model again.

    Raises:
        LiveError: the base cannot be loaded.
    """
    family = family_for(base.config, base.source, base.tensors)
    loaded = load_model(Path(base.folder), dtype=dtype, device=str(device), loader=family.loader)
    model = cast(PreTrainedModel, loaded)
    vocabulary = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if grown is not None:
        expand_live(model, grown)
        trained = dict(freeze(model))
    else:
        trained = dict(model.requires_grad_(True).named_parameters())
    tokens_1T = np.random.default_rng(0).integers(vocabulary, size=(1, row_tokens))

    def row_of(length: int) -> RowBatch:
        shape_1T = (1, length)
        return RowBatch.of(tokens_1T[:, :length], np.arange(length)[None], np.ones(shape_1T, dtype=bool), device)

    def timed(row: RowBatch) -> float:
        start = time.perf_counter()
        hidden_RD = row.predicting(hidden_states(model, row))
        weight_R = torch.full((len(hidden_RD),), 1 / len(hidden_RD), device=device)
        linear_losses(hidden_RD, head_of(model), row.targets_R, weight_R)[0].backward()
        _wait(device)
        return time.perf_counter() - start

    row = row_of(row_tokens)
    timed(row_of(min(_WARM_TOKENS, row_tokens)))
    before = peak_bytes(device)
    train_seconds = timed(row)
    row_bytes = max(peak_bytes(device) - before, 1)
    start = time.perf_counter()
    with bypass(model) if grown is not None else contextlib.nullcontext():
        _, hidden_RD = base_answers(model, row)
    _wait(device)
    forward_seconds = time.perf_counter() - start
    divergences(model, row, hidden_RD, None)  # for its memory: retention holds two chunks of logits against each other
    start = time.perf_counter()
    if arm != "lora":
        for one in build_optimizers(trained, frozenset(), OptimizerSettings(name=_OPTIMIZERS[arm])):
            one.step()
    _wait(device)
    # LoRA's own are small, and here everything has trained.
    copied = 0 if arm == "lora" else _COPIES * sum(one.numel() * one.element_size() for one in trained.values())
    return Measured(
        train_seconds=train_seconds,
        forward_seconds=forward_seconds,
        optimizer_seconds=time.perf_counter() - start,
        row_bytes=row_bytes,
        whole_bytes=peak_bytes(device) + (copied if device.type == "cpu" else 0),
        num_trained=sum(parameter.numel() for parameter in trained.values()),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
