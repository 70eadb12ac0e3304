"""What does a training step cost beside the other ways to train the same blocks, and beside the arithmetic it needs?

One random Llama of 16 blocks is expanded by 4 (hidden 512, vocabulary 32000) and trained on 4 rows of 512 random
tokens a step. Every rival trains the same object, as our arm `blocks` loads it: everything the base had is frozen,
in bf16 when the arithmetic is; the new blocks are in fp32; bf16 means autocast. Compared:

- floor: the products that a step needs, and nothing else: every linear layer forward, towards the input from the
  first new block on, towards the weight in new blocks, the head forward and back, each timed in its own shape; the
  products of causal attention (half of them, forward and back) counted at the rate of those;
- Trainer: transformers' Trainer with AdamW, clipping at 1, no logging or evaluation, `use_cache` off;
- Trainer, recomputing: the same with its `activation_checkpointing`;
- LLaMA-Factory's way: the Trainer, and only layers with trainable parameters checkpointed (reentrant), the input of
  the first of them made to require a gradient, as its default does (re-created from model/model_utils/checkpointing.py
  of LLaMA-Factory 0.9; the package itself is not run);
- LoRA: the Trainer with peft's adapters on every linear layer of the base's blocks, as many parameters as new blocks;
- ms-swift's way: the Trainer, every layer checkpointed (reentrant) and the embeddings made to require a gradient, its
  default (re-created, as above);
- blockexpand: `blockexpand.training.loop.Loop`, its own data, loss, clipping and metrics included: as it comes, with
  each policy of recomputing, and compiled.

All see the same rows in the same order; the first step's loss is printed as the proof. Each run is a process of its
own, rounds alternate, and each process's first step is left out. Measured of the other steps: CPU seconds (of all
threads) over the floor's; tokens a second of the median step; the largest resident memory, and how far it rises over
what was resident before the first step; the bytes of a checkpoint over those of new blocks in fp32 and two moments.

    .venv/bin/python benchmarks/train.py [--rounds 3] [--steps 4] [--precision float32|bfloat16] [--only NAME ..]
        [--tiny] [--model FOLDER] [--json]

With --model a real checkpoint takes the place of the random one, with six new blocks; then there is no floor.
"""

from __future__ import annotations

import argparse
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
    ratios,
    resident_bytes,
    run_task,
    serve_or,
    show,
)

if TYPE_CHECKING:
    from blockexpand.records.run import TrainSettings
    from blockexpand.training.arms import Trainee
    from blockexpand.training.data import RunData

_ROWS = 4
_REAL_NEW, _REAL_VOCABULARY = 6, 40_000
"""With --model: new blocks, and token ids that are drawn."""
_OURS = "blockexpand"
_LORA = "Trainer, peft LoRA of as many parameters"
_PLAIN, _AGAIN, _FACTORY, _SWIFT = "Trainer", "Trainer, recomputing", "LLaMA-Factory's way", "ms-swift's way"
_TRAINERS = {_PLAIN: "none", _LORA: "lora", _AGAIN: "activation_checkpointing", _FACTORY: "trainable", _SWIFT: "all"}
"""Each rival that is a Trainer, and how it recomputes."""
_WAYS: dict[str, dict[str, Any]] = {
    _OURS: {},
    f"{_OURS}, recompute new": {"recompute": "new"},
    f"{_OURS}, recompute from-first-new": {"recompute": "from-first-new"},
    f"{_OURS}, compiled": {"compile_blocks": True},
    f"{_OURS}, compiled, from-first-new": {"compile_blocks": True, "recompute": "from-first-new"},
}
"""Ours, and what is set."""


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


def _make(folder: str, size: str, num_steps: int, model: str | None = None) -> None:
    """A base (a random one, or the one named), its expansion, and the rows of all steps."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from blockexpand import expand, plan

    sizes, work = _SIZES[size], Path(folder)
    if model is not None:
        (work / "base").symlink_to(Path(model).resolve())
        expand(model, work / "model", plan(model, _REAL_NEW))
        write_rows(work, _REAL_VOCABULARY, (_ROWS * num_steps, sizes.row_tokens))
        return
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
    write_rows(work, sizes.vocabulary, (_ROWS * num_steps, sizes.row_tokens))


def write_rows(work: Path, vocabulary: int, shape_NT: tuple[int, int]) -> None:
    """Rows of random tokens, each one document, as `train.arrow`."""
    import numpy as np

    from blockexpand.corpus.rows import Shape, write_documents
    from blockexpand.corpus.tokenizer import Encoded

    num_tokens = shape_NT[1]
    tokens_NT = np.random.default_rng(0).integers(vocabulary, size=shape_NT)
    trained_T = np.ones(num_tokens, dtype=bool)
    encoded = [Encoded(tokens_A=tokens_T, trained_A=trained_T) for tokens_T in tokens_NT]
    shape = Shape(row_tokens=num_tokens, vocabulary_size=vocabulary, pad=0)
    write_documents(work / "train.arrow", encoded, shape=shape, num_bytes=0)


def _prepared(folder: str, precision: str, **changes: Any) -> tuple[TrainSettings, RunData, Trainee]:
    """The settings, rows and model that all rivals share."""
    import torch

    from blockexpand.corpus.rows import TokenRows
    from blockexpand.records.run import NO_RETENTION, BlocksArm, DataSettings, TrainSettings
    from blockexpand.training.arms import Blocks
    from blockexpand.training.data import RunData
    from blockexpand.training.processes import World

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
        retention=NO_RETENTION,
        **changes,
    )
    world = World(device=torch.device("cpu"))
    data = RunData(settings=settings, domain=rows, general=None, validation={}, world=world)
    trainee = Blocks().load(work / "model", vars(torch)[precision], needs_reference=False)
    return settings, data, trainee


class _Watch:
    """Notes wall time, CPU time and the peak of memory after each step."""

    def __init__(self) -> None:
        """Start now."""
        self.resident = resident_bytes()
        self.marks = [(time.perf_counter(), time.process_time())]
        self.peak = 0

    def advance(self, amount: float, note: str = "", total: float | None = None) -> None:
        """A step is done (a `blockexpand.progress.Bar`)."""
        del amount, note, total
        self.marks.append((time.perf_counter(), time.process_time()))
        if len(self.marks) == 2:
            _forget_peak()  # what compiling took is not a step's
        else:
            self.peak = _peak_bytes()

    def result(self, loss: float, num_tokens: int, checkpoint: Path) -> dict[str, float]:
        """The figures of the run, its first step left out."""
        seconds, cpu = ([b[i] - a[i] for a, b in zip(self.marks[1:], self.marks[2:], strict=False)] for i in (0, 1))
        return {
            "tokens_per_second": num_tokens / statistics.median(seconds),
            "cpu_seconds": statistics.median(cpu),
            "peak_bytes": self.peak,
            "growth_bytes": self.peak - self.resident,
            "first_loss": loss,
            "checkpoint_bytes": sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()),
        }


def _forget_peak() -> None:
    """Begin the kernel's record of the largest resident memory anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def ours(folder: str, precision: str, changes: dict[str, Any]) -> dict[str, float]:
    from blockexpand.records.run import read_metrics
    from blockexpand.training.checkpoints import Progress
    from blockexpand.training.computation import compile_blocks, recompute_blocks
    from blockexpand.training.loop import Loop
    from blockexpand.training.metrics import Tracker

    settings, data, trainee = _prepared(folder, precision, **changes)
    if settings.compile_blocks:
        compile_blocks(trainee.model)
    recompute_blocks(trainee.model, settings.recompute)
    with tempfile.TemporaryDirectory(dir=folder) as run:
        loop = Loop(settings, trainee, data, Path(run))
        tracker = Tracker(Path(run), 0)
        watch = _Watch()
        loop.run(Progress(step=0), tracker, watch, [])
        tracker.close()
        loop.close()
        first = next(row for row in read_metrics(Path(run) / "metrics.jsonl") if row["kind"] == "train")
        return watch.result(first["domain_loss"], _ROWS * data.domain.row_tokens, Path(run) / "checkpoints")


def _checkpointed(model: Any, which: str) -> None:
    """Another tool's recomputing, by what it documents."""
    from functools import partial as bound

    from torch.utils.checkpoint import checkpoint

    def only_trainable(function: Any, *args: Any) -> Any:
        if not any(parameter.requires_grad for parameter in function.args[0].parameters()):
            return function(*args)
        args[0].requires_grad_(True)
        return checkpoint(function, *args, use_reentrant=True)

    always = bound(checkpoint, use_reentrant=True)
    model._set_gradient_checkpointing(
        enable=True, gradient_checkpointing_func=only_trainable if which == "trainable" else always
    )
    if which == "all":
        model.enable_input_require_grads()


def trainer(folder: str, precision: str, recomputing: str) -> dict[str, float]:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from blockexpand.training.arms import Lora

    settings, data, trainee = _prepared(folder, precision)
    if recomputing == "lora":
        number = sum(parameter.numel() for parameter in trainee.trainable.values())
        lora = Lora(rank=None, trainable_parameters=number)
        trainee = lora.load(Path(folder) / "base", vars(torch)[precision], needs_reference=False)
    trainee.model.config.use_cache = False
    if recomputing in ("trainable", "all"):
        _checkpointed(trainee.model, recomputing)
    num_steps = settings.num_steps(data.domain.row_tokens)
    rows = [row for step in range(num_steps) for row in data.passes(step)[0].batch.tokens_BT]
    out = tempfile.TemporaryDirectory(dir=folder)
    arguments = TrainingArguments(
        output_dir=out.name,
        per_device_train_batch_size=_ROWS,
        max_steps=num_steps,
        train_sampling_strategy="sequential",
        learning_rate=settings.optimizer.lr,
        max_grad_norm=settings.optimizer.clip_norm,
        bf16=precision == "bfloat16",
        activation_checkpointing=recomputing == "activation_checkpointing",
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="steps",
        save_steps=num_steps,
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
    noting = Noting(model=trainee.model, args=arguments, train_dataset=dataset, callbacks=[Watching()])
    noting.losses = []
    watch = _Watch()
    noting.train()
    with out:
        return watch.result(noting.losses[0], _ROWS * data.domain.row_tokens, Path(out.name))


def _floor(size: str, precision: str, first_new: int) -> dict[str, float]:
    """CPU seconds and tokens a second of the products alone."""
    import torch

    sizes = _SIZES[size]
    dtype = vars(torch)[precision]
    tokens, hidden, inner = _ROWS * sizes.row_tokens, sizes.hidden, sizes.intermediate
    num_blocks = sizes.num_blocks + sizes.num_new
    linears = [(hidden, hidden)] * 4 + [(hidden, inner)] * 2 + [(inner, hidden)]
    differentiated = num_blocks - first_new
    # (rows, inner, columns) of a product, and how often a step needs it.
    products: dict[tuple[int, int, int], int] = {}
    for (a, b), forward, backward, weight in (
        *((shape, num_blocks, differentiated, sizes.num_new) for shape in linears),
        ((hidden, sizes.vocabulary), 1, 1, 0),
    ):
        for shape, times in (((tokens, a, b), forward), ((tokens, b, a), backward), ((a, tokens, b), weight)):
            products[shape] = products.get(shape, 0) + times
    flops = cpu = wall = 0.0
    for (m, k, n), times in products.items():
        left, right = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype).T
        seconds = [_product_seconds(left, right) for _ in range(6)][1:]
        cpu += times * statistics.median(s[0] for s in seconds)
        wall += times * statistics.median(s[1] for s in seconds)
        flops += times * 2.0 * m * k * n
    # Two products of T x T x hidden forward and four back, half of them above the diagonal.
    attention = 2.0 * _ROWS * sizes.row_tokens**2 * hidden / 2 * (2 * num_blocks + 4 * differentiated)
    share = 1 + attention / flops
    return {"cpu_seconds": cpu * share, "tokens_per_second": tokens / (wall * share), "flops": flops + attention}


def _product_seconds(left: Any, right: Any) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    left @ right
    return time.process_time() - cpu, time.perf_counter() - wall


# --- the table --------------------------------------------------------------------------------------------


def _rows(folder: str, size: str, precision: str, arguments: argparse.Namespace) -> list[Row]:
    common = {"folder": folder, "precision": precision}
    runs = {name: partial(run_task, __file__, "trainer", **common, recomputing=how) for name, how in _TRAINERS.items()}
    runs |= {name: partial(run_task, __file__, "ours", **common, changes=changes) for name, changes in _WAYS.items()}
    if arguments.only:
        runs = {name: run for name, run in runs.items() if name in (*arguments.only, _PLAIN)}
    print(f"  {precision}", file=sys.stderr, flush=True)
    if arguments.model:
        return _real_rows(alternate(runs, arguments.rounds), precision)
    first_new = _SIZES[size].num_blocks // _SIZES[size].num_new
    runs["floor"] = partial(run_task, __file__, "floor", size=size, precision=precision, first_new=first_new)
    results = alternate(runs, arguments.rounds)
    floors = results.pop("floor")
    sizes = _SIZES[size]
    trained = sizes.num_new * (4 * sizes.hidden**2 + 3 * sizes.hidden * sizes.intermediate + 2 * sizes.hidden)
    rows: list[Row] = []
    for name, found in results.items():
        row: Row = {"who": name, "arithmetic": precision}
        row["CPU seconds over the floor"] = _over(found, floors, "cpu_seconds")
        row["tokens/s"] = Spread.of(run["tokens_per_second"] for run in found)
        for rival in (_FACTORY, _AGAIN):
            if rival in results:
                row[f"times {rival}"] = _over(found, results[rival], "tokens_per_second")
        row["peak MB"] = Spread.of(run["peak_bytes"] / 1e6 for run in found)
        row["times Trainer's"] = _over(found, results[_PLAIN], "peak_bytes")
        row["growth MB"] = Spread.of(run["growth_bytes"] / 1e6 for run in found)
        row["checkpoint, times what trains"] = f"{found[0]['checkpoint_bytes'] / (12 * trained):.3f}"
        row["first loss"] = f"{found[0]['first_loss']:.4f}"
        rows.append(row)
    cpu, flops = statistics.median(f["cpu_seconds"] for f in floors), floors[0]["flops"]
    print(
        f"  floor: {cpu:.3f} CPU seconds, {flops / (_ROWS * sizes.row_tokens) / 1e6:.0f} MFLOP a token", file=sys.stderr
    )
    return rows


def _real_rows(results: dict[str, list[dict[str, float]]], precision: str) -> list[Row]:
    """With a real model: each beside the Trainer with the base frozen."""
    rows: list[Row] = []
    for name, found in results.items():
        row: Row = {"who": name, "arithmetic": precision}
        row["CPU seconds a step"] = Spread.of(run["cpu_seconds"] for run in found)
        row["times Trainer's"] = _over(found, results[_PLAIN], "cpu_seconds")
        row["tokens/s"] = Spread.of(run["tokens_per_second"] for run in found)
        row["peak MB"] = Spread.of(run["peak_bytes"] / 1e6 for run in found)
        row["growth MB"] = Spread.of(run["growth_bytes"] / 1e6 for run in found)
        row["first loss"] = f"{found[0]['first_loss']:.4f}"
        rows.append(row)
    return rows


def _over(mine: list[dict[str, float]], others: list[dict[str, float]], key: str) -> Spread:
    return ratios([run[key] for run in mine], [run[key] for run in others])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps of each process, the first of which is left out")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="only this one")
    parser.add_argument("--only", nargs="+", choices=(*_TRAINERS, *_WAYS), help="only these, and the Trainer")
    parser.add_argument("--model", help="a folder of a real checkpoint, in the place of the random one")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see whether it runs")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps {arguments.steps}: expected 2 or more, since the first is left out")
    size = "tiny" if arguments.tiny else "full"
    facts, sizes = machine(), _SIZES[size]
    precisions = [arguments.precision] if arguments.precision else ["float32", "bfloat16"]
    with tempfile.TemporaryDirectory(prefix="blockexpand-train-") as folder:
        run_task(__file__, "make", folder=folder, size=size, num_steps=arguments.steps, model=arguments.model)
        rows = [row for precision in precisions for row in _rows(folder, size, precision, arguments)]
    what = (
        arguments.model
        or f"{sizes.num_blocks} + {sizes.num_new} blocks, hidden {sizes.hidden}, {_ROWS} x {sizes.row_tokens} tokens"
    )
    show(
        f"train, {arguments.model or what}, {arguments.rounds} rounds of {arguments.steps} steps",
        facts,
        rows,
        arguments.json,
    )


if __name__ == "__main__":
    serve_or(main, {"make": _make, "ours": ours, "trainer": trainer, "floor": _floor})
