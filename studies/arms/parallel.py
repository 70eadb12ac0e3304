"""The arm `parallel`: Control LLM's way (arXiv 2501.10979), copies of blocks that train beside them.

A block with a copy gives (1 - share) of its own output and `share` of the copy's, both on the same input. At the start
the copy is the block, and the mixture its output up to nothing: it is computed as own + share * (copy - own), whose
second part is zero to the bit. What differs from Control LLM is said in docs/comparing.md.

No checkpoint of a family can hold two blocks side by side, so nothing is exported: the run keeps what trained, and
`load_shipped` (running.py) builds the model again to be measured. Refused: blocks that are not there, blocks whose
output is no tensor.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.live import blocks_of
from blockexpand.training import Trainee, check_blocks, load_model, make_trainable, refuse_many


class SideBySide:
    """What a block with a copy beside it gives; put in the place of the block's own forward."""

    def __init__(self, block: nn.Module, beside: nn.Module, share: float) -> None:
        """The two, and the copy's share."""
        self._own, self._beside, self._share = block.forward, beside, share
        self.is_base = False
        """Whether the old block stands alone, as in the base."""

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The mixture of both outputs."""
        own_BTD = self._own(*args, **kwargs)
        if self.is_base:
            return own_BTD
        if not isinstance(own_BTD, torch.Tensor):
            raise TrainingError(
                f"a block gave a {type(own_BTD).__name__}; the arm 'parallel' expected one tensor, the hidden states; "
                "choose another arm for this family"
            )
        return own_BTD + self._share * (self._beside(*args, **kwargs) - own_BTD)


class Parallel:
    """Some blocks with a trained copy beside each."""

    def __init__(self, blocks: tuple[int, ...], share: float = 0.5) -> None:
        """Which blocks of the base, and the copies' share of their outputs."""
        if not 0 < share <= 1 or len(set(blocks)) != len(blocks):
            raise TrainingError(f"blocks {list(blocks)}, share {share}: expected each block once, a share in (0, 1]")
        self._blocks, self._share = tuple(blocks), share

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool, empty: bool = False) -> Trainee:
        """Load the checkpoint and put the copies beside its blocks; the reference leaves them out.

        Raises:
            TrainingError: `empty` is asked for, or a block is not there.
        """
        del needs_reference
        refuse_many("parallel", empty)
        model = load_model(folder, dtype)
        layers = blocks_of(model)
        check_blocks(self._blocks, len(layers), folder)
        copies = nn.ModuleDict({str(index): copy.deepcopy(layers[index]) for index in self._blocks})
        pairs = []
        for number, index in enumerate(self._blocks):
            for module in copies[str(index)].modules():
                if "layer_idx" in vars(module):
                    vars(module)["layer_idx"] = len(layers) + number  # a place of its own in the cache
            pair = SideBySide(layers[index], copies[str(index)], self._share)
            vars(layers[index])["forward"] = pair
            pairs.append(pair)
        model.register_module("beside", copies)
        _make_room(model, self._blocks)

        @contextlib.contextmanager
        def reference() -> Generator[PreTrainedModel]:
            for pair in pairs:
                pair.is_base = True
            try:
                yield model
            finally:
                for pair in pairs:
                    pair.is_base = False

        return Trainee(
            model=model,
            trainable=make_trainable({f"beside.{name}": p for name, p in copies.named_parameters()}),
            writers=frozenset(),
            reference=reference,
            tensors=dict,
            exportable=False,
        )


def _make_room(model: PreTrainedModel, blocks: tuple[int, ...]) -> None:
    """Have the cache hold the copies' keys and values too; the stack itself is as long as its list of blocks."""
    config = model.config
    kinds = vars(config).get("layer_types")
    if kinds is not None:
        vars(config)["layer_types"] = [*kinds, *(kinds[index] for index in blocks)]
    vars(config)["num_hidden_layers"] = config.num_hidden_layers + len(blocks)
