"""A run: its settings, what it measured, and the record that a finished one leaves.

In: a recipe (YAML) and overrides. Out: `TrainSettings`, strict and frozen, with sources; `RunRecord`, and the lines of
its metrics. Refused: unknown keys, wrong types, values out of bounds; each by the path of the key.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from blockexpand.errors import RecordError
from blockexpand.records.budget import BudgetStatement
from blockexpand.records.codec import (
    WRITTEN_WHEN_SET,
    apply_overrides,
    check,
    from_plain,
    read_record,
    read_yaml,
    to_plain,
)
from blockexpand.staging import RECORD_NAME

Attention = Literal["auto", "sdpa", "flex", "flash", "eager"]
BasePrecision = Literal["same", "int8", "nf4"]
Recompute = Literal["none", "new", "from-first-new"]
"""Which blocks run a second time in the backward pass, so that only their input is kept: none of them, those that
train, or every block from the first that trains on."""
SELF = "self"
"""In the place of a folder of general text: text that the base itself writes."""
REPLAY = "replay"
"""The split of general text that is rehearsed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksArm:
    """Block expansion: only the new blocks of an expanded checkpoint train."""

    kind: Literal["blocks"] = "blocks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OldBlocksArm:
    """The control: as many of the blocks the base already has."""

    kind: Literal["old-blocks"]
    blocks: tuple[int, ...]
    """Which of them, by their index from 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullArm:
    """Every parameter trains: continued pretraining, instruction tuning, or from scratch."""

    kind: Literal["full"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraArm:
    """LoRA on every linear layer of the blocks, through peft."""

    kind: Literal["lora"]
    rank: int | None = None
    trainable_parameters: int | None = None
    """Instead of `rank`: the rank whose number of parameters comes nearest to this one."""

    def __post_init__(self) -> None:
        """Check that exactly one of the two is set."""
        given = (self.rank is not None) + (self.trainable_parameters is not None)
        check(given == 1, "rank", self.rank, "either rank or trainable_parameters, and not both")
        size = self.rank if self.rank is not None else self.trainable_parameters
        check(size is not None and size > 0, "rank", size, "more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CustomArm:
    """A method of the caller's own, given to `train` as an object; the record and the run's digest know it by these."""

    kind: Literal["custom"]
    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Whatever tells two such arms apart."""


ArmSettings = BlocksArm | OldBlocksArm | FullArm | LoraArm | CustomArm


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is trained on, and what the run steers by."""

    domain: str
    """A prepared folder: the text to learn."""
    general: str | None = None
    """A prepared folder: text like what the base knew, for retention; `self`, which is what a run without one takes:
    text that the base writes itself."""
    general_kind: str = dataclasses.field(default="general", metadata=WRITTEN_WHEN_SET)
    """What kind of text it is, in the budget's statement."""
    more_general: dict[str, str] = dataclasses.field(default_factory=dict, metadata=WRITTEN_WHEN_SET)
    """Further kinds of general text (code, chats), a prepared folder each: rehearsed and kept like the first. Kinds
    called `own prose` and `own chats` are what the base wrote itself, whose rise is measured as the KL to the base."""
    domain_split: str = "train"
    general_split: str = REPLAY
    """What is rehearsed; `replay` is `train` in a folder that has no such split."""
    validation_split: str = "validation"
    """Of both folders; the run steers by its first rows, in a fixed order, and tests the budget on documents of the
    general text's that are in none of these."""
    validation_rows: int = 16
    """Rows of each folder's validation split that are measured each time."""
    calibration_rows: int | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """Rows of general text that the budget is tested on at the end; None: as many as cost a twentieth of the run, and
    at least those that hold a hundred documents."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self.validation_rows >= 0, "validation_rows", self.validation_rows, "0 (off) or more")
        rows = self.calibration_rows
        check(rows is None or rows > 0, "calibration_rows", rows, "more than 0")
        taken = {"domain", self.general_kind} & set(self.more_general) | {"domain"} & {self.general_kind}
        check(not taken, "more_general", sorted(taken), "kinds of names of their own, and none called domain")
        check(not self.more_general or self.general is not None, "more_general", None, "`general` beside it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Which optimiser moves what, how fast."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: torch.optim.Muon on the blocks' matrices, AdamW on everything else."""
    lr: float = 2e-4
    """Peak learning rate (paper section 4.1: 2e-4); of Muon in AdamW's scale (`match_rms_adamw`)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Paper, Table 12."""
    eps: float = 1e-8
    weight_decay: float = 0.1
    """On the blocks' matrices only (paper section 4.1: 0.1)."""
    writer_lr_scale: float = 1.0
    """The learning rate of the residual writers (which start at zero) over that of all else."""
    lr_scales: dict[str, float] | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """Further learning rates over that of all else, by patterns of parameters' names, e.g. {"*.o_proj.weight": 8}: what
    several name is multiplied. For families with a norm behind each branch: docs/log.md, 2026-11-25."""
    clip_norm: float = 1.0
    """Largest gradient norm (paper section 4.1: 1.0)."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self.lr > 0, "lr", self.lr, "more than 0")
        check(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two numbers in [0, 1)")
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        check(self.writer_lr_scale > 0, "writer_lr_scale", self.writer_lr_scale, "more than 0")
        for pattern, scale in (self.lr_scales or {}).items():
            check(scale > 0, f"lr_scales[{pattern!r}]", scale, "more than 0")
        check(self.clip_norm > 0, "clip_norm", self.clip_norm, "more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The learning rate over the run."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.06
    """Share of all steps over which it rises from 0 (paper section 4.1: 6 %)."""
    final: float = 0.0
    """What remains of it at the end, as a share of the peak."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(0 <= self.warmup < 1, "warmup", self.warmup, "a share in [0, 1)")
        check(0 <= self.final <= 1, "final", self.final, "a share in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetentionSettings:
    """How the general ability is kept while the domain is learnt: on unless `retention: none` is written."""

    replay: float = 0.25
    """Share of each step's rows that are general text; at least one row where it is not 0."""
    ce_weight: float = 0.0
    """Weight of the general rows' cross-entropy against the domain's."""
    kl_weight: float = 8.0
    """Weight of KL(base || model) on the general rows; the base is the bypassed model. The KL keeps more than the rows'
    own cross-entropy does (measured on the tiny base, docs/log.md; arXiv 2605.26097 has weight 10 on a fifth)."""
    forgetting_budget: float | None = None
    """How much the general loss may rise, as a share of the base's (0.01 = 1 %): steered for by adapting the general
    rows' weight and by choosing the checkpoint, and held, with 95 % confidence, by scaling what was learnt."""
    budgets: dict[str, float] = dataclasses.field(default_factory=dict, metadata=WRITTEN_WHEN_SET)
    """Of kinds of general text whose budget is another than `forgetting_budget`, by their names."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(0 <= self.replay < 1, "replay", self.replay, "a share in [0, 1)")
        check(self.ce_weight >= 0, "ce_weight", self.ce_weight, "0 or more")
        check(self.kl_weight >= 0, "kl_weight", self.kl_weight, "0 or more")
        budget = self.forgetting_budget
        check(budget is None or budget > 0, "forgetting_budget", budget, "more than 0, e.g. 0.01 for 1 %")
        check(not self.budgets or budget is not None, "budgets", self.budgets, "`forgetting_budget` beside them")
        for kind, one in self.budgets.items():
            check(one > 0, f"budgets.{kind}", one, "more than 0, e.g. 0.01 for 1 %")
        some = self.ce_weight > 0 or self.kl_weight > 0
        check(self.replay == 0 or some, "replay", self.replay, "0 when ce_weight and kl_weight are both 0")

    @property
    def needs_general(self) -> bool:
        """Whether general text is trained on or measured."""
        return self.replay > 0 or self.forgetting_budget is not None

    @property
    def needs_reference(self) -> bool:
        """Whether the base is asked for its answers."""
        return self.replay > 0 and self.kl_weight > 0


NO_RETENTION = RetentionSettings(replay=0.0, kl_weight=0.0)
"""What `retention: none` is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One run."""

    model: str
    """The folder of the checkpoint to start from (an expanded one, for the arm `blocks`)."""
    out: str
    """The run folder."""
    arm: ArmSettings
    data: DataSettings
    domain_tokens: int
    """Domain tokens to train on; general rows come on top."""
    rows_per_step: int = 16
    rows_per_pass: int = 16
    """Rows of one forward pass; fewer need less memory and give the same step."""
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = dataclasses.field(default_factory=ScheduleSettings)
    retention: RetentionSettings = dataclasses.field(default_factory=RetentionSettings)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic and the frozen weights; auto: bfloat16 where the checkpoint is of 16 bits and the device has
    it. What trains is always held in float32."""
    base_precision: BasePrecision = "same"
    """Of the old blocks' linear layers: as `precision`, or quantised (bitsandbytes) while the new blocks stay whole.
    What is kept, and compared with, is then the quantised base; what is exported is the unquantised one."""
    attention: Attention = "auto"
    """How blocks attend: flash (varlen, CUDA), flex (block mask, CUDA), sdpa, eager; auto takes the first that the
    device, the packages and the family have. Documents in one row never see each other: probed at the start."""
    compile_blocks: bool = False
    """Compile each block once (torch.compile): a slow start, then faster steps. Needs a C++ compiler."""
    recompute: Recompute = "none"
    """Which blocks are run again in the backward pass instead of keeping their activations: none, the new ones
    (what trains), or all from the first new one on, which needs the least memory. The bits are the same."""
    measure_every_steps: int = 50
    checkpoint_every_steps: int = 500
    keep_checkpoints: int = 2
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = dataclasses.field(
        default=("tensorboard",), metadata=WRITTEN_WHEN_SET
    )
    """Where the figures of metrics.jsonl are shown besides; trackio and wandb where they are installed."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self.domain_tokens > 0, "domain_tokens", self.domain_tokens, "more than 0")
        check(self.rows_per_step > 0, "rows_per_step", self.rows_per_step, "more than 0")
        check(self.rows_per_pass > 0, "rows_per_pass", self.rows_per_pass, "more than 0")
        check(self.keep_checkpoints > 0, "keep_checkpoints", self.keep_checkpoints, "more than 0")
        for name in ("measure_every_steps", "checkpoint_every_steps"):
            check(vars(self)[name] > 0, name, vars(self)[name], "more than 0")
        check(self.seed >= 0, "seed", self.seed, "0 or more")
        whole = self.base_precision == "same" or isinstance(self.arm, BlocksArm)
        check(whole, "base_precision", self.base_precision, f"same, for the arm {self.arm.kind}")
        steers = self.retention.forgetting_budget is None or self.data.validation_rows > 0
        check(steers, "data.validation_rows", self.data.validation_rows, "more than 0, to hold a forgetting_budget")
        check(
            self.rows_per_step > self.num_general_rows,
            "rows_per_step",
            self.rows_per_step,
            f"more than the {self.num_general_rows} general rows that retention puts into each (or `retention: none`)",
        )

    @property
    def general(self) -> str | None:
        """Where general text comes from: a prepared folder, or `self`; None when none is needed."""
        return self.data.general or (SELF if self.retention.needs_general else None)

    @property
    def num_general_rows(self) -> int:
        """General rows of each step."""
        return max(1, round(self.retention.replay * self.rows_per_step)) if self.retention.replay else 0

    @property
    def num_domain_rows(self) -> int:
        """Domain rows of each step."""
        return self.rows_per_step - self.num_general_rows

    def num_steps(self, row_tokens: int) -> int:
        """Steps that see `domain_tokens` domain tokens in rows of `row_tokens`."""
        return -(-self.domain_tokens // (self.num_domain_rows * row_tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """The held-out losses at one step, in nats per token."""

    step: int
    domain: float
    general: float | None
    rise: float | None
    """general / the base's general - 1."""
    budget_used: float | None = None
    """The share of the budget that the rise's upper bound is likely to take on the documents that test it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContents:
    """Digests of what a run was given, so that it is told from another whose folders only have the same names."""

    model: str
    """Of the checkpoint's tensors and its config."""
    domain: str
    """Of the prepared folder's record, which has the digests of its files."""
    general: dict[str, str]
    """The same, of each kind of general text; empty where there is none, or the base writes it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunStart:
    """What a run began with; saved as the run folder's `settings.json` before its first step."""

    FORMAT: ClassVar[str] = "blockexpand.run-start"
    FORMAT_VERSION: ClassVar[int] = 1

    settings: TrainSettings
    contents: RunContents


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a finished run was and gave; saved as the run folder's `blockexpand.json`."""

    FORMAT: ClassVar[str] = "blockexpand.run"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    settings: TrainSettings
    contents: RunContents
    settings_digest: str
    """Of the settings that make a run the same run, and of the contents."""
    num_steps: int
    num_tokens: int
    """Positions trained on, domain and general, padding included."""
    num_trainable_parameters: int
    num_parameters: int
    best: Measurement | None
    """Held-out losses of the checkpoint in `model/`, on the steering sample."""
    base: Measurement | None
    """The same of the model as it was loaded."""
    nothing_inside_budget: bool
    """Whether no step but the first (the base itself) met the budget: nothing that was learnt is in `model/` then."""
    train_seconds: float
    cpu_seconds: float
    """Processor time of the steps, all threads of the first process together."""
    tokens_per_second: float
    load: float
    """The machine's load average over its steps, this run's own threads included: speeds under load are noise."""
    peak_memory_bytes: int
    """Largest resident memory of the process (on an accelerator: largest allocation on the device)."""
    machine: str
    versions: dict[str, str]
    num_trained_tensors: int | None
    """Tensors of the checkpoint that trained (None: nothing was exported)."""
    num_unchanged_tensors: int | None
    """All its other tensors, each compared and found the same in `model/`, byte for byte."""
    num_skipped_steps: int = 0
    """Steps left out because their loss was not finite."""
    num_processes: int = 1
    """How many processes ended the run; the largest memory is the first one's."""
    exported: bool = True
    """Whether `model/` is a checkpoint; if not, no checkpoint of the family could hold it: see `load_shipped`."""
    kept: BudgetStatement | None = None
    """What is promised of the general loss of what was shipped; None: there was no budget."""


def settings_in(path: Path) -> TrainSettings:
    """The settings of a run folder's `settings.json`.

    Raises:
        RecordError: it is not there, or damaged.
    """
    return read_record(RunStart, path).settings


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def load_settings(path: Path, overrides: Sequence[str] = ()) -> TrainSettings:
    """The settings of a YAML recipe with `key=value` overrides applied.

    A recipe that names no arm trains the new blocks of an expanded checkpoint, or every parameter of another one.
    `retention: none` switches retention off; without a word it is on.

    Args:
        path: The recipe.
        overrides: Settings that replace the recipe's.

    Raises:
        RecordError: an unknown key, a wrong type, a value out of bounds.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise RecordError(f"{path} holds {type(data).__name__}; expected a mapping of settings")
    data = apply_overrides(data, list(overrides))
    if data.get("retention") == "none":
        data["retention"] = to_plain(NO_RETENTION)
    if "arm" not in data and isinstance(data.get("model"), str):
        expanded = (Path(data["model"]) / RECORD_NAME).is_file()
        data["arm"] = {"kind": "blocks" if expanded else "full"}
    return from_plain(TrainSettings, data, str(path))
