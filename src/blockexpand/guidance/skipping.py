"""A model without one of its blocks, for the cost of the blocks above it.

In: a model in memory and rows of tokens. Out: the logits, what entered and left each block, and for each block the
logits without it. Skipping block i hands its input on as its output. All blocks below it compute what they computed
for the whole model, so they are not run again: they hand on what was kept, and only the blocks above i run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# B = rows of a pass, T = tokens of a row, D = hidden size, V = vocabulary.


class Passes:
    """One batch through the whole model, and then without each block."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], tokens_BT: Tensor) -> None:
        """Run the whole model, and keep what passes between its blocks."""
        self._model, self._blocks, self._tokens_BT = model, blocks, tokens_BT
        self.inputs_BTD: list[Tensor] = []
        """What enters each block."""
        self._outputs: list[Any] = []
        with contextlib.ExitStack() as hooks:
            for block in blocks:
                hooks.callback(block.register_forward_hook(self._keep, with_kwargs=True).remove)
            self.logits_BTV = self._run()
        assert len(self.inputs_BTD) == len(blocks), (
            f"{len(self.inputs_BTD)} of {len(blocks)} blocks were run, each once"
        )

    @property
    def outputs_BTD(self) -> list[Tensor]:
        """What leaves each block."""
        return [output[0] if isinstance(output, tuple) else output for output in self._outputs]

    def _keep(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        del block
        self.inputs_BTD.append(args[0] if args else kwargs["hidden_states"])
        self._outputs.append(output)

    @torch.no_grad()
    def _run(self) -> Tensor:
        return self._model(input_ids=self._tokens_BT, use_cache=False).logits

    def without(self, skipped: int) -> Tensor:
        """The logits [B, T, V] of the model without one block."""
        hidden_BTD, kept = self.inputs_BTD[skipped], self._outputs[skipped]
        handed_on = (hidden_BTD, *kept[1:]) if isinstance(kept, tuple) else hidden_BTD
        with _standing_in(self._blocks[: skipped + 1], handed_on):
            return self._run()


@contextlib.contextmanager
def _standing_in(blocks: Sequence[nn.Module], handed_on: Any) -> Generator[None]:
    """Have blocks give one and the same output for a while; everything else that the model asks of them stays."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        return handed_on

    try:
        for block in blocks:
            vars(block)["forward"] = forward
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
