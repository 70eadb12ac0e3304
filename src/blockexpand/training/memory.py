"""Whether a run fits into its devices' memory, before anything is loaded.

In: the checkpoint's header, what trains, how many processes there are. Out: nothing, when weights, masters,
moments and gradients fit. Refused: a run that cannot fit whatever its rows, with the number of processes
that would do. Activations are not counted: they depend on `rows_per_pass`, which can be lowered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import TrainingError
from blockexpand.families import family_for
from blockexpand.live.device import total_bytes, training_dtype
from blockexpand.records.expansion import read_expansion
from blockexpand.records.run import BlocksArm, FullArm, OldBlocksArm, TrainSettings, UpscaledArm
from blockexpand.training.processes import World
from blockexpand.units import format_bytes

_TRAINED_BYTES = 16
"""Of each number that trains: master, gradient and AdamW's two moments, in float32."""
_MOST_PROCESSES = 4096
_QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5625}
"""Of each number in a quantised matrix of an old block; nf4 has a float32 scale for 64 numbers."""
_SHARE_FOR_GRADIENTS = 0.1
"""Of a device's memory: up to it, whole gradients are kept between passes. (New blocks of an 8B: 7 GB.)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run keeps in memory, in bytes."""

    state_bytes: int
    """Weights, and for what trains gradients and moments: cut over the processes."""
    gathered_bytes: int
    """What each of several processes gathers at a time: all outside the blocks, and two blocks."""

    def per_process(self, size: int) -> int:
        """Bytes in each of `size` processes."""
        return self.state_bytes if size == 1 else -(-self.state_bytes // size) + self.gathered_bytes


def needs_of(settings: TrainSettings, sharded: bool = True) -> Needs:
    """What the run keeps in memory, by the headers of its checkpoint.

    Only several processes, and the arm `blocks`, ask for the family: any model that transformers loads may train
    otherwise. Without it the old blocks that train are counted as if they did not: the sum is then too small.
    """
    folder = Path(settings.model)
    checkpoint = open_checkpoint(folder)
    known = sharded or isinstance(settings.arm, BlocksArm)
    family = family_for(checkpoint.config, str(folder), checkpoint.tensors) if known else None
    trained = _trained_blocks(settings, folder)
    width = frozen_bytes(settings)
    whole_copy = settings.retention.kl_weight > 0 and isinstance(settings.arm, FullArm | OldBlocksArm | UpscaledArm)
    state, outer, blocks = 0, 0, {}
    for name, entry in checkpoint.tensors.items():
        block = family.locate(name).block if family is not None else None
        trains = isinstance(settings.arm, FullArm | UpscaledArm) or (block is not None and block in trained)
        held = width
        if block is not None and len(entry.shape) == 2:
            held = _QUANTISED_BYTES.get(settings.base_precision, width)
        each = (_TRAINED_BYTES if trains else held) + (width if whole_copy else 0)
        state += round(each * entry.num_elements)
        if block is None:
            outer += width * entry.num_elements
        else:
            blocks[block] = blocks.get(block, 0) + width * entry.num_elements
    return Needs(state_bytes=state, gathered_bytes=outer + _two_largest(blocks))


def frozen_bytes(settings: TrainSettings) -> int:
    """Of each frozen number and each activation."""
    return training_dtype(settings.precision, Path(settings.model), torch.device("cpu")).itemsize


def _trained_blocks(settings: TrainSettings, folder: Path) -> frozenset[int]:
    if isinstance(settings.arm, OldBlocksArm):
        return frozenset(settings.arm.blocks)
    if isinstance(settings.arm, BlocksArm):
        return frozenset(block.position for block in read_expansion(folder).plan.new_blocks)
    return frozenset()


def _two_largest(blocks: Mapping[int, int]) -> int:
    return sum(sorted(blocks.values())[-2:])


def device_bytes(world: World) -> int:
    """The memory of this process's device; on the host, its share of the machine's."""
    return total_bytes(world.device) // (world.local_size if world.device.type == "cpu" else 1)


def keeps_gradients(num_trained: int, world: World) -> bool:
    """Whether each process can keep the gradients of so many numbers whole from one pass of a step to the next.

    Summing them over the processes only after the last pass saves the other sums.
    """
    return 4 * num_trained <= _SHARE_FOR_GRADIENTS * device_bytes(world)


def check_fits(settings: TrainSettings, world: World) -> None:
    """Refuse a run that cannot fit.

    Raises:
        TrainingError: with what it needs, what there is, and how many processes would do.
    """
    needs, there = needs_of(settings, sharded=world.size > 1), device_bytes(world)
    needed = needs.per_process(world.size)
    if needed <= there:
        return
    enough = next((n for n in range(world.size + 1, _MOST_PROCESSES) if needs.per_process(n) <= there), None)
    advice = (
        f"start {enough} processes on such devices (torchrun)"
        if enough
        else "no number of such devices would do; take larger ones"
    )
    raise TrainingError(
        f"{settings.model} needs {format_bytes(needed)} in each of {world.size} processes for weights, gradients and "
        f"the optimiser's moments, and a device has {format_bytes(there)}; expected it to fit; {advice}"
    )
