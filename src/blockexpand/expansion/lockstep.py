"""A model larger than the memory, run on several inputs at once: each block is loaded once for all of them.

In: a checkpoint, its family, how many bytes its blocks may take, and functions that each call the model (with or
without a KV cache, or generate with it). Out: what the functions return, to the bit what the whole model gives: the
arithmetic is transformers' own. Each function runs in a thread of its own, which stops before every block; when all
have come to a block that is not in memory, the ones before it go and it and as many after it as may be are loaded.
Only one thread computes at a time. A function that calls the model n times needs the checkpoint to be read n times,
together with all the others; when everything fits, it is read once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from threading import Semaphore
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from blockexpand.checkpoint import Checkpoint
from blockexpand.errors import ExpansionError
from blockexpand.families import Family
from blockexpand.families.modules import put_stack, stack_of, to_device
from blockexpand.families.parts import load_blocks, load_outside

Result = TypeVar("Result")


class BlockByBlock:
    """A model whose blocks come and go."""

    def __init__(self, checkpoint: Checkpoint, family: Family, *, dtype: torch.dtype, device: str, memory: int) -> None:
        """Load all but the blocks; `memory` is the most bytes that the model may take.

        Raises:
            ExpansionError: that is not enough for what is outside the blocks and one of them.
        """
        self._checkpoint, self._family, self._dtype, self._device = checkpoint, family, dtype, device
        blocks = block_bytes(checkpoint, family, dtype)
        outside = tensor_bytes(checkpoint, dtype) - sum(blocks)
        # While blocks are loaded, the file's pages that they come from count as ours, too.
        self._window = (memory - outside) // (2 * max(blocks))
        if self._window < 1:
            raise ExpansionError(
                f"the proof of {checkpoint.source} in {dtype} may take {memory:,} bytes, and embeddings, head and one "
                f"block take {outside + 2 * max(blocks):,}; expected at least that; allow more, or use a machine with "
                "more memory"
            )
        self._num_blocks = len(blocks)
        self.model = load_outside(checkpoint.folder, family, len(blocks), dtype=dtype, device=device)
        self._stack = list(stack_of(self.model, family))
        self._files = list(range(len(blocks)))
        self._loaded: range = range(0)

    def keep(self, blocks: Sequence[int]) -> None:
        """Go on with these blocks of the checkpoint only."""
        kept = [self._stack[number] for number in blocks]
        put_stack(self.model, self._family, kept)
        self._stack, self._files = kept, list(blocks)

    def run(self, functions: Sequence[Callable[[], Result]]) -> list[Result]:
        """Call all the functions, each of which may call `model`; what they return."""
        handles = [
            block.register_forward_pre_hook(functools.partial(_stop, position))
            for position, block in enumerate(self._stack)
        ]
        lanes: list[_Lane[Result]] = []
        with ThreadPoolExecutor(len(functions)) as pool:
            try:
                lanes += [_Lane(function, pool) for function in functions]
                for lane in lanes:
                    lane.go_on()
                while waiting := [lane for lane in lanes if lane.position is not None]:
                    self._load(min(lane.position for lane in waiting if lane.position is not None))
                    for lane in waiting:
                        while lane.position in self._loaded:
                            lane.go_on()
            finally:
                for lane in lanes:
                    lane.give_up()
                for handle in handles:
                    handle.remove()
                self._release()
        return [lane.result() for lane in lanes]

    def _load(self, first: int) -> None:
        """Have block `first` of the stack in memory, and those after it that fit."""
        if first in self._loaded:
            return
        self._release()
        self._loaded = range(first, min(first + self._window, len(self._stack)))
        numbers = [self._files[position] for position in self._loaded]
        part = load_blocks(self._checkpoint.folder, self._family, self._num_blocks, numbers, dtype=self._dtype)
        found = stack_of(part, self._family)
        for position, number in zip(self._loaded, numbers, strict=True):
            block = to_device(found[number], self._device)
            _take(self._stack[position], block)

    def _release(self) -> None:
        for position in self._loaded:
            self._stack[position].to("meta")
        self._loaded = range(0)


def _take(shape: nn.Module, block: nn.Module) -> None:
    """Give the block that the model runs the tensors of the one that was loaded."""
    for name, module in block.named_modules():
        target = shape.get_submodule(name)
        for key, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            setattr(target, key, value)


class _GivenUpError(Exception):
    """Ends the thread of a function whose result nobody wants any more."""


class _Lane(Generic[Result]):
    """One function on its way through the model, in a thread that only works while `go_on` waits for it."""

    def __init__(self, function: Callable[[], Result], pool: ThreadPoolExecutor) -> None:
        """Have the function wait in its thread for the first `go_on`."""
        self.position: int | None = -1
        """The block that it stands before; -1 before it began, None when it is done."""
        self._resume, self._stopped = Semaphore(0), Semaphore(0)
        self._given_up = False
        self._future = pool.submit(self._work, function, torch.get_num_threads())
        self._future.add_done_callback(lambda _: self._end())

    def go_on(self) -> None:
        """Let it run up to the next block, or to its end.

        Raises:
            Exception: whatever the function raised.
        """
        self._resume.release()
        self._stopped.acquire()
        if self.position is None:
            self._future.result()

    def stop_at(self, position: int) -> None:
        """Called in its thread, before block `position`."""
        self.position = position
        self._stopped.release()
        self._resume.acquire()
        if self._given_up:
            raise _GivenUpError

    def give_up(self) -> None:
        """End it, if it is not done."""
        self._given_up = True
        self._resume.release()

    def result(self) -> Result:
        """What it returned."""
        return self._future.result()

    def _work(self, function: Callable[[], Result], num_threads: int) -> Result:
        self._resume.acquire()
        if self._given_up:
            raise _GivenUpError
        _LANE.set(self)
        # Both are a thread's own: sums are split by the number of threads.
        torch.set_num_threads(num_threads)
        with torch.no_grad():
            return function()

    def _end(self) -> None:
        self.position = None
        self._stopped.release()


_LANE: ContextVar[_Lane[Any]] = ContextVar("blockexpand_lane")


def _stop(position: int, *_: object) -> None:
    _LANE.get().stop_at(position)


def tensor_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """What all the checkpoint's tensors take in memory in this dtype."""
    return sum(entry.num_elements for entry in checkpoint.tensors.values()) * dtype.itemsize


def block_bytes(checkpoint: Checkpoint, family: Family, dtype: torch.dtype) -> list[int]:
    """What each block takes in memory in this dtype."""
    sizes = [0] * family.depth(checkpoint.config)
    for name, entry in checkpoint.tensors.items():
        block = family.locate(name).block
        # Blocks after the last are for predicting further tokens: transformers does not load them.
        if block is not None and block < len(sizes):
            sizes[block] += entry.num_elements * dtype.itemsize
    return sizes
