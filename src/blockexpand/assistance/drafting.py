"""A first recipe, with comments, from a few answers.

In: a `Draft`. Out: a YAML file that `train` or `sft` takes as it is. Refused: a file that is there already, and
answers that make no valid recipe; then nothing is written.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from blockexpand.errors import UsageError
from blockexpand.records import check
from blockexpand.staging import staged_file

Machine = Literal["cpu", "gpu-24gb", "gpu-80gb"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """What a recipe is made from."""

    model: str
    """The expanded folder."""
    data: str
    """The prepared folder: domain text, or chats."""
    kind: Literal["train", "sft"] = "train"
    general: str = "self"
    """A prepared folder of general text; "self": text that the base writes."""
    tokens: int = 100_000_000
    budget: float = 0.01
    """Forgetting that is allowed, as a share of the base's general loss."""
    machine: Machine = "gpu-80gb"
    out: str = "runs/first"

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self.tokens > 0, "tokens", self.tokens, "more than 0")
        check(0 < self.budget < 1, "budget", self.budget, "a share in (0, 1), e.g. 0.01")
        check(bool(self.model), "model", self.model, "the folder of an expanded checkpoint")
        check(bool(self.data), "data", self.data, "a folder that prepare wrote")


_MACHINES = {
    "cpu": ("float32", "none", 16, 4),
    "gpu-24gb": ("bfloat16", "from-first-new", 64, 1),
    "gpu-80gb": ("bfloat16", "none", 128, 4),
}
"""Precision, what is recomputed, rows of a step and of a pass: those of recipes/ for such machines."""

_TRAIN = """\
# Post-pretraining of the new blocks alone. Everything the base had stays as it is, to the bit.
#   blockexpand train {name} --dry-run     says what it takes
#   blockexpand train {name}               runs it; Ctrl-C saves, --resume goes on
model: {model}            # written by `blockexpand expand`
out: {out}
arm: {{kind: blocks}}
data:
  domain: {data}          # written by `blockexpand prepare`
  general: {general}      # text like what the base knows; self: the base writes it
domain_tokens: {tokens}
rows_per_step: {rows}
rows_per_pass: {rows_per_pass}          # lower it when memory runs out; the result is the same
optimizer: {{name: adamw, lr: {lr}, betas: [0.9, 0.95], weight_decay: 0.1, clip_norm: 1.0}}
schedule: {{kind: cosine, warmup: 0.06}}      # the paper's (section 4.1)
retention:                # keeps the general loss inside the budget
  replay: 0.25            # of each step's rows, this share is general text
  ce_weight: 0.0
  kl_weight: 8.0          # pull towards the base's own answers on it
  forgetting_budget: {budget}
precision: {precision}
{quantised}recompute: {recompute}     # none: fastest; from-first-new: least memory
measure_every_steps: 50
checkpoint_every_steps: 100
seed: 0
"""

_SFT = """\
# Instruction tuning: every parameter trains, on the assistants' turns only.
#   blockexpand sft {name} --dry-run     says what it takes
#   blockexpand sft {name}               runs it; Ctrl-C saves, --resume goes on
model: {model}
out: {out}
arm: {{kind: full}}
data:
  domain: {data}          # chats, written by `blockexpand prepare`
domain_tokens: {tokens}
rows_per_step: {rows}
rows_per_pass: {rows_per_pass}          # lower it when memory runs out; the result is the same
optimizer: {{name: adamw, lr: 2.0e-5, betas: [0.9, 0.95], weight_decay: 0.0, clip_norm: 1.0}}
schedule: {{kind: cosine, warmup: 0.03}}      # the paper's (section 4.1)
precision: {precision}
recompute: {recompute}     # none: fastest; from-first-new: least memory
measure_every_steps: 50
checkpoint_every_steps: 100
seed: 0
"""


def draft_recipe(draft: Draft, path: str | Path, overwrite: bool = False) -> Path:
    """Write the recipe; it is read back, as `train` would, before it gets its name.

    Raises:
        UsageError: the file is there already.
        RecordError: the answers make no valid recipe.
    """
    from blockexpand.records.run import load_settings

    path = Path(path)
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already; expected a new file; give another name or --overwrite")
    precision, recompute, rows, rows_per_pass = _MACHINES[draft.machine]
    text = (_TRAIN if draft.kind == "train" else _SFT).format(
        name=path,
        model=_scalar(draft.model),
        out=_scalar(draft.out),
        data=_scalar(draft.data),
        general=_scalar(draft.general),
        tokens=draft.tokens,
        budget=draft.budget,
        precision=precision,
        recompute=recompute,
        rows=rows,
        rows_per_pass=rows_per_pass,
        lr="1.0e-3" if draft.machine == "cpu" else "5.0e-5",
        quantised="base_precision: int8     # the frozen blocks; the new ones stay whole\n"
        if draft.machine == "gpu-24gb"
        else "",
    )
    with staged_file(path) as staged:
        staged.write(text.encode())
        staged.flush()
        load_settings(Path(staged.name))
    return path


def _scalar(text: str) -> str:
    """A YAML scalar: quoted where plain YAML would read something else."""
    import yaml

    return yaml.safe_dump(text, default_style=None, width=10_000).removesuffix("...\n").strip()
