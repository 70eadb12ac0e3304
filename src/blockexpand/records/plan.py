"""The plan: which new blocks, where, copied from whom, and what starts at zero. Decided once, then only read.

In: what `plan()` decided, or a `plan.json`. Out: a frozen value that maps old indices to new ones. Refused
when it is read: positions that do not follow from the insertions, donors the base does not have, ids that
are not the ones the positions give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from blockexpand.records.codec import WRITTEN_WHEN_SET, check, read_record, write_record

Init = Literal["identity", "copy", "random"]
"""How new blocks start: silent, so that nothing changes; as plain copies; or with random matrices. The latter two are
ablations: the deeper model is another function from the start."""
Starts = Literal["donor", "zero", "minus-one", "random"]
PlacementKind = Literal["interleaved", "prefix", "suffix", "explicit"]

MOST_BLOCKS = 10_000
"""Deeper than any model; what a file claims beyond it is not looked at block by block."""
SILENT = ("zero", "minus-one")
"""What a residual writer starts as so that its block adds nothing."""


@dataclass(frozen=True, kw_only=True)
class Insertion:
    """One new block, before it has a position."""

    after: int
    """The old block it is stacked on; -1 for below the first."""
    donor: int
    """The old block it is a copy of."""


@dataclass(frozen=True, kw_only=True)
class BlockTensor:
    """One tensor of a block; every block of its kind has it alike."""

    tail: str
    """Its name inside the block."""
    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    """The sizes of its dimensions."""
    starts: Starts
    """What it is in a new block: its donor's bytes, or what makes it write nothing to the residual stream: zeros, or
    -1 for a gain that is stored as gain minus one. For an ablation, random numbers."""
    parameter: bool
    """Whether it is trained and counted; a stored buffer is not."""


@dataclass(frozen=True, kw_only=True)
class BlockKind:
    """The blocks that are made alike."""

    blocks: tuple[int, ...]
    """Their indices in the base."""
    tensors: tuple[BlockTensor, ...]
    """What each of them has."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Figures for reading; nothing later depends on them."""

    parameters_before: int
    """Of the base; a tied head counts once."""
    parameters_new: int
    """Of the new blocks: what is trained."""
    parameters_after: int
    """Of the expanded model."""
    weights_bytes_before: int
    """The tensors of the base on disk, and in memory in its own dtype."""
    weights_bytes_after: int
    """The tensors of the expanded model."""
    training_memory_bytes: int
    """Frozen weights in the base's dtype, and 16 bytes for each new parameter: fp32 master, gradient and two
    moments. Activations, which depend on the batch, are not in it."""


@dataclass(frozen=True, kw_only=True)
class NewBlock:
    """One block to insert."""

    id: str
    """Its name wherever it is kept: `after7.0` is the first new block on top of old block 7."""
    position: int
    """Its index in the new stack."""
    donor: int
    """The old block it is a copy of."""
    after: int
    """The old block it stands on; -1 for below the first."""


@dataclass(frozen=True, kw_only=True)
class StackEntry:
    """One block of the new stack: old, or new."""

    position: int
    """Its index in the new stack."""
    old: int | None
    """Its index in the base, or None when it is new."""
    new: NewBlock | None
    """The new block, or None when it is old."""

    @property
    def source(self) -> int:
        """The old block whose bytes and kind it has."""
        if self.new is not None:
            return self.new.donor
        assert self.old is not None, "a stack entry is old or new"
        return self.old


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """The model a plan is for; a plan does not fit any other."""

    source: str
    """The folder or hub id as it was given; for people, never compared."""
    family: str
    """The family's name."""
    model_type: str
    """The config's model_type."""
    num_blocks: int
    """The blocks before expansion."""
    config_digest: str
    """The digest of config.json's content."""
    layout_digest: str
    """The digest of all tensors' names, dtypes and shapes."""
    discovered: bool = field(default=False, metadata=WRITTEN_WHEN_SET)
    """Whether no file says what the family is: it was found by structure, and the whole proof decides."""
    hub: str | None = field(default=None, metadata=WRITTEN_WHEN_SET)
    """What it is on the hub, `org/name@commit`, where it came from there; for people, never compared."""

    def __post_init__(self) -> None:
        check(1 <= self.num_blocks <= MOST_BLOCKS, "num_blocks", self.num_blocks, f"1 to {MOST_BLOCKS:,}")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How the new blocks were placed."""

    kind: PlacementKind
    """interleaved, prefix, suffix, or explicit positions."""
    per_group: int = 1
    """New blocks on top of each group; 1 unless interleaved."""
    group_sizes: tuple[int, ...] = ()
    """Old blocks in each group, bottom first; empty unless interleaved."""

    @property
    def words(self) -> str:
        """The placement in a line, with the choice that an uneven division forced."""
        if not self.group_sizes:
            return self.kind
        sizes, count = self.group_sizes, len(self.group_sizes)
        each = f"{self.per_group} new on top of each"
        if len(set(sizes)) == 1:
            return f"interleaved: {count} groups of {sizes[0]}, {each}"
        larger = [str(i) for i, size in enumerate(sizes, start=1) if size == max(sizes)]
        return (
            f"interleaved: {count} groups of {', '.join(map(str, sizes))}, {each}; {sum(sizes)} is not a multiple of "
            f"{count}, so group{'s' if len(larger) > 1 else ''} {', '.join(larger)} (from the bottom) "
            f"hold{'' if len(larger) > 1 else 's'} one more, as evenly among the others as can be"
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What expansion, training and every later step read; nothing in it is ever derived again elsewhere."""

    FORMAT: ClassVar[str] = "blockexpand.plan"
    FORMAT_VERSION: ClassVar[int] = 1

    base: BaseFacts
    """The model it is for."""
    placement: Placement
    """How the new blocks were placed."""
    new_blocks: tuple[NewBlock, ...]
    """The new blocks, from the bottom of the stack to its top."""
    kinds: tuple[BlockKind, ...]
    """Which old blocks are made alike, and the tensors of each kind: which of them start at zero in a new one."""
    config_changes: dict[str, Any]
    """The entries of config.json that get new values."""
    config_before: dict[str, Any]
    """What these entries are in the base, as they are in force there."""
    notes: tuple[str, ...]
    """What a person should know before going on."""
    cost: Cost
    """What it costs; for reading only."""
    init: Init = field(default="identity", metadata=WRITTEN_WHEN_SET)
    """How the new blocks start: silent, or, for an ablation, not."""

    def __post_init__(self) -> None:
        depth, blocks = self.base.num_blocks, self.new_blocks
        check(len(blocks) > 0, "new_blocks", list(blocks), "at least one new block")
        check(len(blocks) <= MOST_BLOCKS, "new_blocks", len(blocks), f"at most {MOST_BLOCKS:,} new blocks")
        for block in blocks:
            check(-1 <= block.after < depth, f"{block.id}.after", block.after, f"-1 to {depth - 1}")
            check(0 <= block.donor < depth, f"{block.id}.donor", block.donor, f"0 to {depth - 1}")
        expected = number(Insertion(after=b.after, donor=b.donor) for b in blocks)
        for block, right in zip(blocks, expected, strict=True):
            check(block == right, "new_blocks", block, f"{right}, which the order of the list gives")
        check(
            set(self.config_before) == set(self.config_changes),
            "config_before",
            self.config_before,
            "the same keys",
        )
        listed = sorted(block for kind in self.kinds for block in kind.blocks)
        check(listed == list(range(depth)), "kinds", listed, "each block of the base once")
        for tensors in {block.donor: self.tensors_of(block.donor) for block in blocks}.values():
            silent = any(t.starts in SILENT for t in tensors)
            expected = "a tensor that starts at zero" if self.init == "identity" else f"none at zero with {self.init}"
            check(silent == (self.init == "identity"), "kinds", [t.tail for t in tensors], expected)

    @property
    def num_blocks(self) -> int:
        """The blocks after expansion."""
        return self.base.num_blocks + len(self.new_blocks)

    @property
    def zeroed(self) -> tuple[str, ...]:
        """The tails that start at zero (or -1, for a gain stored so) in new blocks, of whatever kind."""
        tensors = (t for block in self.new_blocks for t in self.tensors_of(block.donor))
        return tuple(dict.fromkeys(t.tail for t in tensors if t.starts in SILENT))

    @property
    def silent_words(self) -> tuple[str, ...]:
        """The same with numbered tensors as one: `experts.*.down_proj.weight`."""
        return tuple(dict.fromkeys(".".join("*" if p.isdigit() else p for p in t.split(".")) for t in self.zeroed))

    def tensors_of(self, old: int) -> tuple[BlockTensor, ...]:
        """The tensors of a block of the base, and so of its copies."""
        return next(kind.tensors for kind in self.kinds if old in kind.blocks)

    @property
    def new_positions(self) -> tuple[int, ...]:
        """The new blocks' indices in the new stack."""
        return tuple(block.position for block in self.new_blocks)

    @property
    def stack(self) -> tuple[StackEntry, ...]:
        """The new stack from bottom to top."""
        new = {block.position: block for block in self.new_blocks}
        old = iter(range(self.base.num_blocks))
        return tuple(
            StackEntry(position=i, old=None, new=new[i])
            if i in new
            else StackEntry(position=i, old=next(old), new=None)
            for i in range(self.num_blocks)
        )

    @property
    def sources(self) -> tuple[int, ...]:
        """For each block of the new stack, the old block whose bytes and kind it has."""
        return tuple(entry.source for entry in self.stack)

    @property
    def old_to_new(self) -> tuple[int, ...]:
        """The index in the new stack of each old block."""
        return tuple(entry.position for entry in self.stack if entry.new is None)

    @property
    def new_to_old(self) -> tuple[int | None, ...]:
        """The index in the base of each block of the new stack; None for new blocks."""
        return tuple(entry.old for entry in self.stack)

    def new_index(self, old: int) -> int:
        """The index in the new stack of an old block, or of one that stands after the stack (see `Family`)."""
        return self.old_to_new[old] if old < self.base.num_blocks else old + len(self.new_blocks)

    def save(self, path: Path | str) -> None:
        """Write it as `plan.json`."""
        write_record(path, self)


def number(insertions: Iterable[Insertion]) -> tuple[NewBlock, ...]:
    """Give insertions, sorted from bottom to top, their ids and positions."""
    blocks: list[NewBlock] = []
    on_the_same: Counter[int] = Counter()
    for count, item in enumerate(insertions):
        stem = f"after{item.after}" if item.after >= 0 else "before0"
        blocks.append(
            NewBlock(
                id=f"{stem}.{on_the_same[item.after]}",
                position=item.after + 1 + count,
                donor=item.donor,
                after=item.after,
            )
        )
        on_the_same[item.after] += 1
    return tuple(blocks)


def read_plan(path: Path | str) -> Plan:
    """A saved plan.

    Raises:
        RecordError: the file is not a plan of this version, or contradicts itself.
    """
    return read_record(Plan, path)
