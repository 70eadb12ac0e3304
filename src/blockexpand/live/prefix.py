"""The blocks below the lowest new one give the same hidden states with and without new blocks: run them once.

In: these blocks, and passes over the same rows, or over the last of them. Out: the first pass runs and keeps what the
last of them gives; the others begin from that, to the bit. For models that hand hidden states from block to block and
nothing else beside; whether a model is one is found out by `shares_prefix`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Prefix:
    """What the last of some blocks gave."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        """`blocks` are the lowest of a model, in order."""
        self.blocks = list(blocks)
        self._held: list[Any] = []

    @contextlib.contextmanager
    def kept(self) -> Generator[None]:
        """Inside, one forward pass runs as it is, and what the blocks give is kept."""
        self._held.clear()
        handle = self.blocks[-1].register_forward_hook(lambda _module, _args, output: self._held.append(output))
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def given(self, first_row: int = 0, num_rows: int | None = None) -> Generator[None]:
        """Inside, the blocks run nothing and hand on what was kept, of `num_rows` rows those from `first_row` on.

        Rows that were run as one (flash attention takes them so) are given as one, too.
        """
        (kept,) = self._held
        if first_row:
            assert num_rows is not None, "of how many rows?"
            kept = _rows_from(kept, first_row, num_rows)

        def forward(*args: Any, **kwargs: Any) -> Any:
            del args, kwargs
            return kept

        before: list[tuple[nn.Module, Callable[..., Any] | None]] = []
        try:
            for block in self.blocks:
                before.append((block, vars(block).get("forward")))
                vars(block)["forward"] = forward
            yield
        finally:
            for block, own in before:
                del vars(block)["forward"]
                if own is not None:
                    vars(block)["forward"] = own


def _rows_from(hidden_BTD: Tensor, first_row: int, num_rows: int) -> Tensor:
    if len(hidden_BTD) == num_rows:
        return hidden_BTD[first_row:]
    rows_BTD = hidden_BTD.reshape(num_rows, -1, hidden_BTD.shape[-1])
    return rows_BTD[first_row:].reshape(1, -1, hidden_BTD.shape[-1])


@torch.no_grad()
def shares_prefix(prefix: Prefix, run: Callable[[], Tensor], reference: Callable[[], Tensor]) -> bool:
    """Whether `reference` gives the same bits when it begins from what the blocks gave in `run`, on the same rows."""
    if not prefix.blocks:
        return False
    with prefix.kept():
        run()
    if len(prefix._held) != 1 or not isinstance(prefix._held[0], Tensor):
        return False
    with prefix.given():
        from_kept = reference()
    return torch.equal(from_kept, reference())
