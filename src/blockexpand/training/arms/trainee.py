"""What every arm gives the loop: a model, what of it trains, how to be the base, what to ship."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.families import modules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainee:
    """A model ready to train."""

    model: PreTrainedModel
    """A transformers causal language model; its forward is the arm's."""
    trainable: Mapping[str, nn.Parameter]
    """Exactly what trains, in float32, by name."""
    writers: frozenset[str]
    """Which of these are residual writers that started at zero."""
    reference: Callable[[], AbstractContextManager[PreTrainedModel]]
    """A context in which the model given behaves as the base did."""
    tensors: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    """What changed, by the names of the checkpoint on disk, given the values of `trainable` by their names."""
    others: tuple[PreTrainedModel, ...] = ()
    """Further models that the reference runs, of the same checkpoint: all frozen."""
    starts_as_base: bool = True
    """Whether the model, before its first step, is the base; if not, forgetting is measured from the reference."""
    exportable: bool = True
    """Whether a checkpoint of the family can hold what was trained."""


class Arm(Protocol):
    """A method: settings that can load a checkpoint into a trainee."""

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool, empty: bool = False) -> Trainee:
        """The trainee of the checkpoint in `folder`, its frozen weights in `dtype`.

        `needs_reference` says whether the run will ask how the base answers (a second copy, for an arm that
        cannot step back into the base); an arm that does not start as the base has one in any case. `empty`: no
        weights are read and parameters have no memory (the meta device), so that several processes can each fill
        in their part.
        """
        ...


def load_model(folder: Path, dtype: torch.dtype, empty: bool = False) -> PreTrainedModel:
    """The causal language model in `folder`, frozen, in eval mode, without remote code or network.

    `empty`: without its values, on the meta device.

    Raises:
        LiveError: transformers cannot load it, or a tensor is missing.
    """
    model = cast(PreTrainedModel, modules.load_model(folder, dtype=dtype, device="meta" if empty else "cpu"))
    model.requires_grad_(False)
    return model


def refuse_many(kind: str, empty: bool) -> None:
    """Refuse to be sharded over processes, for an arm whose added weights no checkpoint holds.

    Raises:
        TrainingError: `empty` is asked for.
    """
    if empty:
        raise TrainingError(
            f"arm.kind {kind!r} trains in one process, and there are several here; expected 'blocks', 'old-blocks' or "
            "'full'; start it without torchrun, or with --nproc-per-node 1"
        )


def make_trainable(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Switch the parameters on and hold them in float32.

    bf16 masters lose updates: 12 % of the weights never moved in 100 steps of AdamW at lr 1e-4, 70 % at
    2e-5 (measured, docs/log.md).
    """
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return dict(parameters)
