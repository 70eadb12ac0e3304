"""A run before it starts: whether it can be made, and what it takes; nothing is loaded.

In: settings whose checkpoint and data exist (headers and records are read, no tensor). Out: `RunTakes`, with the
warnings that the settings deserve. Refused, in a dry run as in the run itself: data of another tokenizer, rows that
are too long, tokens that the model has no embeddings for, a board that is not installed, what does not fit in memory.
"""

from __future__ import annotations

import dataclasses

from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.errors import FamilyError, TrainingError
from blockexpand.expansion import survey
from blockexpand.expansion.cost import RunCost, RunShape, run_cost, state_bytes, state_per_process, width_of
from blockexpand.families import family_for
from blockexpand.live.device import total_bytes, training_dtype
from blockexpand.records.expansion import read_expansion
from blockexpand.records.run import BlocksArm, CustomArm, FullArm, LoraArm, OldBlocksArm, TrainSettings
from blockexpand.training.arms import check_blocks
from blockexpand.training.data import open_corpora
from blockexpand.training.metrics import check_boards
from blockexpand.training.processes import World
from blockexpand.units import format_bytes

_MOST_PROCESSES = 4096
_SHARE_FOR_GRADIENTS = 0.1
"""Of a device's memory: up to it, whole gradients are kept between passes. (New blocks of an 8B: 7 GB.)"""
_MANY_EPOCHS = 10
_FEW_STEPS = 20
"""With fewer, warm-up and the forgetting budget's controller have nothing to work with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunTakes:
    """What a run would take."""

    domain_tokens: int
    """Positions of domain rows, padding included."""
    general_tokens: int
    """Positions of general rows on top."""
    general: str | None
    """Where those come from; `self`: the base writes them first."""
    domain_epochs: float
    """How often each domain row is seen."""
    num_steps: int
    rows_per_step: int
    row_tokens: int
    processes: int
    cost: RunCost | None
    """None for an arm of the caller's own, and where no family is known: it can't be counted."""
    memory_bytes: int | None
    """In each process, with the rows of a pass."""
    warnings: tuple[str, ...]


def check_run(settings: TrainSettings, processes: int = 1) -> RunTakes:
    """Refuse what the run would refuse, and say what it takes.

    Args:
        settings: The run.
        processes: How many it is to run on, one a device.

    Raises:
        CheckpointError, PlanError: the checkpoint cannot be read.
        CorpusError: the data cannot be opened.
        TrainingError: they do not fit together, or a board is missing.
    """
    if settings.rows_per_step < processes:
        raise TrainingError(
            f"rows_per_step is {settings.rows_per_step}, and there are {processes} processes; expected at least "
            "one row each; raise rows_per_step or start fewer"
        )
    check_boards(settings.track)
    checkpoint = open_checkpoint(settings.model)
    settings = dataclasses.replace(settings, model=str(checkpoint.folder))
    if isinstance(settings.arm, BlocksArm):
        read_expansion(settings.model)
    corpora = open_corpora(settings)
    domain = corpora["domain"]
    row_tokens, rows = domain.record.row_tokens, domain.rows(settings.data.domain_split).num_rows
    num_steps = settings.num_steps(row_tokens)
    cost = _cost(settings, checkpoint, row_tokens)
    epochs = num_steps * settings.num_domain_rows / rows
    return RunTakes(
        domain_tokens=num_steps * settings.num_domain_rows * row_tokens,
        general_tokens=num_steps * settings.num_general_rows * row_tokens,
        general=settings.general,
        domain_epochs=round(epochs, 3),
        num_steps=num_steps,
        rows_per_step=settings.rows_per_step,
        row_tokens=row_tokens,
        processes=processes,
        cost=cost,
        memory_bytes=None if cost is None else cost.memory_bytes(rows_of_pass(settings), processes),
        warnings=tuple(_warnings(settings, num_steps, epochs)),
    )


def rows_of_pass(settings: TrainSettings) -> int:
    """Rows of the largest pass."""
    return min(settings.rows_per_pass, settings.rows_per_step)


def _warnings(settings: TrainSettings, num_steps: int, epochs: float) -> list[str]:
    found = []
    if epochs > _MANY_EPOCHS:
        found.append(
            f"each domain row is seen {epochs:,.0f} times: what is learnt by heart then is no gain on other text; give "
            "more data, or fewer domain_tokens"
        )
    if num_steps < _FEW_STEPS:
        found.append(
            f"{num_steps} steps of {settings.rows_per_step} rows are few to warm up and to hold a budget in: learn "
            "from more tokens, or take fewer rows a step"
        )
    if settings.measure_every_steps > num_steps and settings.data.validation_rows:
        found.append(
            f"held-out loss is measured every {settings.measure_every_steps} steps, and there are {num_steps}: only "
            "before the first and after the last; lower measure_every_steps"
        )
    return found


def _cost(settings: TrainSettings, checkpoint: Checkpoint, row_tokens: int) -> RunCost | None:
    shape = shape_of(settings, checkpoint, row_tokens)
    try:
        if isinstance(settings.arm, OldBlocksArm):
            check_blocks(settings.arm.blocks, survey(checkpoint).depth, checkpoint.folder)
        return None if shape is None else run_cost(checkpoint, shape)
    except FamilyError:
        return None


def shape_of(settings: TrainSettings, checkpoint: Checkpoint, row_tokens: int) -> RunShape | None:
    """What the run's memory depends on; None for an arm of the caller's own."""
    arm = settings.arm
    if isinstance(arm, CustomArm):
        return None
    new = read_expansion(checkpoint.folder).plan.new_positions if isinstance(arm, BlocksArm) else ()
    adapters = arm if isinstance(arm, LoraArm) else None
    return RunShape(
        trains="all" if isinstance(arm, FullArm) else "adapters" if adapters else "blocks",
        trained_blocks=tuple(sorted(arm.blocks)) if isinstance(arm, OldBlocksArm) else tuple(new),
        adapter_rank=adapters.rank or 0 if adapters else 0,
        adapter_parameters=adapters.trainable_parameters or 0 if adapters else 0,
        copies_base=settings.retention.needs_reference and isinstance(arm, FullArm | OldBlocksArm),
        width_bytes=width_of(checkpoint, settings.precision),
        packed=settings.base_precision,
        recompute=settings.recompute,
        row_tokens=row_tokens,
    )


def device_bytes(world: World) -> int:
    """The memory of this process's device; on the host, its share of the machine's."""
    return total_bytes(world.device) // (world.local_size if world.device.type == "cpu" else 1)


def keeps_gradients(num_trained: int, world: World) -> bool:
    """Whether each process can keep the gradients of so many numbers whole from one pass of a step to the next.

    Summing them over the processes only after the last pass saves the other sums.
    """
    return 4 * num_trained <= _SHARE_FOR_GRADIENTS * device_bytes(world)


def check_fits(settings: TrainSettings, world: World) -> None:
    """Refuse a run whose weights, masters, moments and gradients cannot fit, whatever its rows.

    Only several processes, and the arm `blocks`, ask for the family: any model that transformers loads may train
    otherwise. Without it the old blocks that train are counted as if they did not: the sum is then too small.

    Raises:
        TrainingError: with what it needs, what there is, and what would do.
    """
    checkpoint = open_checkpoint(settings.model)
    shape = shape_of(settings, checkpoint, row_tokens=1)
    if shape is None:
        return
    width = training_dtype(settings.precision, checkpoint.folder, world.device).itemsize
    shape = dataclasses.replace(shape, width_bytes=width)
    known = world.size > 1 or isinstance(settings.arm, BlocksArm)
    family = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors) if known else None
    state, gathered = state_bytes(checkpoint, shape, family)
    there, needed = device_bytes(world), state_per_process(state, gathered, world.size)
    if needed <= there:
        return
    enough = next(
        (n for n in range(world.size + 1, _MOST_PROCESSES) if state_per_process(state, gathered, n) <= there), None
    )
    ways = [f"start {enough} processes on such devices (torchrun)"] if enough else []
    for kind in ("int8", "nf4") if isinstance(settings.arm, BlocksArm) and world.size == 1 else ():
        if state_bytes(checkpoint, dataclasses.replace(shape, packed=kind), family)[0] <= there:
            ways.append(f"set base_precision={kind}")
            break
    raise TrainingError(
        f"{settings.model} needs {format_bytes(needed)} in each of {world.size} processes for weights, gradients and "
        f"the optimiser's moments, and a device has {format_bytes(there)}; expected it to fit; "
        f"{' or '.join(ways) or 'take a smaller model, or larger devices'}"
    )


def rows_that_fit(settings: TrainSettings, world: World, row_tokens: int) -> int | None:
    """The rows of a pass that would fit in the device's memory, by what is counted; None where it can't be counted."""
    cost = _cost(settings, open_checkpoint(settings.model), row_tokens)
    if cost is None:
        return None
    room = device_bytes(world) - cost.memory_bytes(0, world.size)
    return max(0, min(rows_of_pass(settings), room // max(1, cost.row_bytes)))
