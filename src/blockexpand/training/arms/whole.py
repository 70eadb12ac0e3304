"""The arms that train parameters the base already has: all of them, or as many old blocks."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.training.arms.trainee import Trainee, load_model, make_trainable


class Full:
    """Every parameter trains."""

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool, empty: bool = False) -> Trainee:
        """Load the checkpoint; the reference, when one is needed, is a frozen second copy."""
        model = load_model(folder, dtype, empty)
        return _trainee(model, dict(model.named_parameters()), needs_reference)


class OldBlocks:
    """As many of the base's own blocks: the control asked for in issue 9 of the paper's repository."""

    def __init__(self, blocks: tuple[int, ...]) -> None:
        """`blocks` are indices of old blocks."""
        self._blocks = blocks

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool, empty: bool = False) -> Trainee:
        """Load the checkpoint and switch the chosen blocks on."""
        model = load_model(folder, dtype, empty)
        layers = model.get_decoder().layers
        check_blocks(self._blocks, len(layers), folder)
        chosen = {id(p) for index in self._blocks for p in layers[index].parameters()}
        parameters = {name: p for name, p in model.named_parameters() if id(p) in chosen}
        return _trainee(model, parameters, needs_reference)


def check_blocks(blocks: tuple[int, ...], depth: int, folder: Path) -> None:
    """Refuse indices that are none of the base's blocks.

    Raises:
        TrainingError: there are none, or one is outside.
    """
    outside = [index for index in blocks if not 0 <= index < depth]
    if outside or not blocks:
        raise TrainingError(
            f"arm.blocks: {list(blocks)} are not blocks of {folder}; expected indices from 0 to {depth - 1}"
        )


def _trainee(model: PreTrainedModel, parameters: Mapping[str, nn.Parameter], needs_reference: bool) -> Trainee:
    base = copy.deepcopy(model) if needs_reference else None

    @contextlib.contextmanager
    def reference() -> Generator[PreTrainedModel]:
        assert base is not None, "a reference was not asked for when the model was loaded"
        yield base

    trainable = make_trainable(parameters)
    return Trainee(
        model=model,
        trainable=trainable,
        writers=frozenset(),
        reference=reference,
        tensors=dict,
        others=(base,) if base is not None else (),
    )
