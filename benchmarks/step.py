"""What does a training step cost beside transformers' Trainer?

One random Llama of 16 blocks is expanded by 4 (hidden 512, vocabulary 32000) and trained on 4 rows of 512 random
tokens a step. Every rival trains the same object, as our arm `blocks` loads it: everything the base had is frozen,
in bf16 when the arithmetic is; the new blocks are in fp32; bf16 means autocast. Compared:

- blockexpand: `blockexpand.training.loop.Loop`, its own data, loss, clipping and metrics included;
- Trainer: transformers' Trainer with AdamW, clipping at 1, no logging, saving or evaluation, `use_cache` off;
- Trainer, recomputing: the same with `activation_checkpointing`.

All see the same rows in the same order; the first step's loss is printed as the proof. Each run is a process of its
own, rounds alternate, and each process's first step is left out. Measured: tokens a second (of the median step),
peak memory of the process, and how far it rises over what was resident before the first step.

    .venv/bin/python benchmarks/step.py [--rounds 3] [--steps 3] [--precision float32|bfloat16] [--tiny] [--json]
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import (
    Row,
    Spread,
    alternate,
    machine,
    parser_of,
    peak_bytes,
    ratios,
    resident_bytes,
    run_task,
    serve_or,
    show,
)

if TYPE_CHECKING:
    from blockexpand.training.arms.trainee import Trainee
    from blockexpand.training.data import RunData
    from blockexpand.training.settings import TrainSettings

_ROWS = 4
_OURS = "blockexpand"
_RIVALS = {_OURS: None, "Trainer": False, "Trainer, recomputing": True}
"""Each rival, and whether it is a Trainer that recomputes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Size:
    """The sizes of the model and of the data."""

    num_blocks: int = 16
    num_new: int = 4
    hidden: int = 512
    intermediate: int = 1376
    vocabulary: int = 32000
    row_tokens: int = 512


_SIZES = {
    "full": _Size(),
    "tiny": _Size(num_blocks=4, num_new=2, hidden=64, intermediate=176, vocabulary=256, row_tokens=32),
}

# --- tasks ------------------------------------------------------------------------------------------------


def _make(folder: str, size: str, num_steps: int) -> None:
    """A random base, its expansion, and the rows of all steps."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from blockexpand import expand, plan
    from blockexpand.corpus.packing import Piece
    from blockexpand.corpus.tokens import Encoded
    from blockexpand.corpus.writing import Shape, fetch_from, write_shard

    sizes, work = _SIZES[size], Path(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=sizes.num_blocks,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=sizes.row_tokens,
    )
    LlamaForCausalLM(config).save_pretrained(work / "base")
    expand(work / "base", work / "model", plan(work / "base", sizes.num_new))
    tokens_NT = np.random.default_rng(0).integers(sizes.vocabulary, size=(_ROWS * num_steps, sizes.row_tokens))
    trained_T = np.ones(sizes.row_tokens, dtype=bool)
    rows = [[Piece(document=number, start=0, length=sizes.row_tokens)] for number in range(len(tokens_NT))]
    encoded = [Encoded(tokens_A=tokens_T, trained_A=trained_T) for tokens_T in tokens_NT]
    shape = Shape(row_tokens=sizes.row_tokens, vocabulary_size=sizes.vocabulary, pad=0)
    write_shard(work / "train.arrow", rows, shape, fetch_from(encoded))


def _prepared(folder: str, precision: str) -> tuple[TrainSettings, RunData, Trainee]:
    """The settings, rows and model that all rivals share."""
    import torch

    from blockexpand.corpus.dataset import TokenRows
    from blockexpand.training.arms.blocks import Blocks
    from blockexpand.training.data import RunData
    from blockexpand.training.settings import BlocksArm, DataSettings, TrainSettings
    from blockexpand.training.world import World

    work = Path(folder)
    rows = TokenRows(work / "train.arrow")
    settings = TrainSettings(
        model=str(work / "model"),
        out=str(work / "run"),
        arm=BlocksArm(),
        data=DataSettings(domain=folder, validation_rows=0),
        domain_tokens=rows.num_rows * rows.row_tokens,
        rows_per_step=_ROWS,
        rows_per_pass=_ROWS,
        precision="bfloat16" if precision == "bfloat16" else "float32",
        checkpoint_every_steps=10**9,
    )
    world = World(device=torch.device("cpu"))
    data = RunData(settings=settings, domain=rows, general=None, validation={}, largest_token=0, world=world)
    return settings, data, Blocks().load(work / "model", vars(torch)[precision], needs_reference=False)


class _Watch:
    """Notes the time and the peak of memory after each step."""

    def __init__(self) -> None:
        """Start now."""
        self.resident = resident_bytes()
        self.marks = [time.perf_counter()]
        self.peak = 0

    def advance(self, amount: float, note: str = "") -> None:
        """A step is done (a `blockexpand.progress.Bar`)."""
        del amount, note
        self.marks.append(time.perf_counter())
        self.peak = peak_bytes()

    def result(self, loss: float, num_tokens: int) -> dict[str, float]:
        """The figures of the run, its first step left out."""
        seconds = [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]
        return {
            "tokens_per_second": num_tokens / statistics.median(seconds[1:]),
            "peak_bytes": self.peak,
            "growth_bytes": self.peak - self.resident,
            "first_loss": loss,
        }


def _ours(folder: str, precision: str) -> dict[str, float]:
    from blockexpand.training.checkpoints import Progress
    from blockexpand.training.loop import Loop
    from blockexpand.training.tracker import Tracker, read_metrics

    settings, data, trainee = _prepared(folder, precision)
    with tempfile.TemporaryDirectory(dir=folder) as run:
        loop = Loop(settings, trainee, data, Path(run))
        tracker = Tracker(Path(run), 0)
        watch = _Watch()
        loop.run(Progress(step=0, settings_digest=""), tracker, watch, [])
        tracker.close()
        loop.close()
        first = next(row for row in read_metrics(Path(run) / "metrics.jsonl") if row["kind"] == "train")
    return watch.result(first["domain_loss"], _ROWS * data.domain.row_tokens)


def _trainer(folder: str, precision: str, recomputing: bool) -> dict[str, float]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    settings, data, trainee = _prepared(folder, precision)
    trainee.model.config.use_cache = False
    num_steps = settings.num_steps(data.domain.row_tokens)
    rows = [row for step in range(num_steps) for row in data.passes(step)[0].batch.tokens_BT]
    arguments = TrainingArguments(
        output_dir=str(Path(folder) / "trainer"),
        per_device_train_batch_size=_ROWS,
        max_steps=num_steps,
        train_sampling_strategy="sequential",
        learning_rate=settings.optimizer.lr,
        max_grad_norm=settings.optimizer.clip_norm,
        bf16=precision == "bfloat16",
        activation_checkpointing=recomputing,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )

    class Watching(TrainerCallback):
        """Passes each step's end on."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, state, control, kwargs
            watch.advance(0)

    class Noting(Trainer):
        """A Trainer that keeps the losses of its steps."""

        losses: list[float]

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.losses.append(loss.item())
            return loss

    dataset: Any = [{"input_ids": tokens_T, "labels": tokens_T} for tokens_T in rows]
    trainer = Noting(model=trainee.model, args=arguments, train_dataset=dataset, callbacks=[Watching()])
    trainer.losses = []
    watch = _Watch()
    trainer.train()
    return watch.result(trainer.losses[0], _ROWS * data.domain.row_tokens)


# --- the table --------------------------------------------------------------------------------------------


def _rows(folder: str, precision: str, num_rounds: int) -> list[Row]:
    runs = {}
    for name, recomputing in _RIVALS.items():
        common = {"folder": folder, "precision": precision}
        if recomputing is None:
            runs[name] = partial(run_task, __file__, "ours", **common)
        else:
            runs[name] = partial(run_task, __file__, "trainer", **common, recomputing=recomputing)
    print(f"  {precision}", file=sys.stderr, flush=True)
    results = alternate(runs, num_rounds)
    speed = {name: [run["tokens_per_second"] for run in found] for name, found in results.items()}
    return [
        {
            "who": name,
            "arithmetic": precision,
            "tokens/s": Spread.of(speed[name]),
            "blockexpand, times this": ratios(speed[_OURS], speed[name]),
            "peak MB": Spread.of(run["peak_bytes"] / 1e6 for run in found),
            "growth MB": Spread.of(run["growth_bytes"] / 1e6 for run in found),
            "first loss": f"{found[0]['first_loss']:.4f}",
        }
        for name, found in results.items()
    ]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps of each process, the first of which is left out")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="only this one")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see whether it runs")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps {arguments.steps}: expected 2 or more, since the first is left out")
    size = "tiny" if arguments.tiny else "full"
    facts, sizes = machine(), _SIZES[size]
    precisions = [arguments.precision] if arguments.precision else ["float32", "bfloat16"]
    with tempfile.TemporaryDirectory(prefix="blockexpand-step-") as folder:
        run_task(__file__, "make", folder=folder, size=size, num_steps=arguments.steps)
        rows = [row for precision in precisions for row in _rows(folder, precision, arguments.rounds)]
    what = f"{sizes.num_blocks} + {sizes.num_new} blocks, hidden {sizes.hidden}, {_ROWS} x {sizes.row_tokens} tokens"
    show(f"step, {what}, {arguments.rounds} rounds of {arguments.steps} steps", facts, rows, arguments.json)


if __name__ == "__main__":
    serve_or(main, {"make": _make, "ours": _ours, "trainer": _trainer})
