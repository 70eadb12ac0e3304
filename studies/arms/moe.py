"""The arm `moe`: the paper's mixture of two down-projections (section 3.5, appendix H).

Beside each block's down-projection W stands a second one V, and both see every token: the block writes
s W x + (1 - s) V x, where (s, 1 - s) = softmax(a, b) of two scalars. V, a and b train. The paper starts with V = 0,
a = 1, b = 0 (issue 1 of its repository): W then counts 0.73, so the model is not the base at its first step.

The scalars do not depend on the token, so the two projections are one matrix, s W + (1 - s) V: what is shipped is a
plain checkpoint with that matrix in the place of W. Refused: a family whose blocks do not have one linear layer each
from the MLP's inner width back to the residual stream (experts, norms behind the branch).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import TrainingError
from blockexpand.families import Family, family_for
from blockexpand.live import blocks_of
from blockexpand.training import Trainee, load_model, make_trainable, refuse_many

SCALARS = (1.0, 0.0)
"""The two scalars at the start (issue 1 of the paper's repository)."""


class TwoProjections(nn.Module):
    """A frozen linear layer and a trained one on the same input, mixed by a softmax of two scalars."""

    def __init__(self, old: nn.Linear, start: Literal["zero", "copy"]) -> None:
        """Keep the old layer; make the second one and the scalars."""
        super().__init__()
        self.old = old
        value = torch.zeros_like(old.weight) if start == "zero" else old.weight.detach().clone()
        self.second = nn.Parameter(value)
        self.scalars = nn.Parameter(torch.tensor(SCALARS, dtype=torch.float32))
        self.is_base = False
        """Whether the old layer stands alone, as in the base."""

    def forward(self, inner_BTF: Tensor) -> Tensor:
        """What goes back to the residual stream."""
        old_BTD = self.old(inner_BTF)
        if self.is_base:
            return old_BTD
        share_2 = torch.softmax(self.scalars, 0).to(old_BTD.dtype)
        second_BTD = nn.functional.linear(inner_BTF, self.second.to(inner_BTF.dtype))
        return share_2[0] * old_BTD + share_2[1] * second_BTD


class Moe:
    """The paper's comparison to block expansion by a mixture of experts."""

    def __init__(self, start: Literal["zero", "copy"] = "zero") -> None:
        """How the second projection starts."""
        self._start: Literal["zero", "copy"] = start

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool, empty: bool = False) -> Trainee:
        """Load the checkpoint and put a second projection beside each block's; the reference leaves it out.

        Raises:
            TrainingError: `empty` is asked for, or a block has no one down-projection.
        """
        del needs_reference
        refuse_many("moe", empty)
        checkpoint = open_checkpoint(folder)
        family = family_for(checkpoint.config, str(folder), checkpoint.tensors)
        model = load_model(folder, dtype)
        path = _path_of_blocks(model)
        mixed = {}
        for index, block in enumerate(blocks_of(model)):
            name = down_projection(block, family, f"block {index} of {folder}")
            two = TwoProjections(cast(nn.Linear, block.get_submodule(name)), self._start)
            parent, _, own = name.rpartition(".")
            block.get_submodule(parent).register_module(own, two)
            mixed[f"{path}.{index}.{name}"] = two
        parameters = {f"{n}.{p}": _trained(two, p) for n, two in mixed.items() for p in ("second", "scalars")}

        @contextlib.contextmanager
        def reference() -> Generator[PreTrainedModel]:
            for two in mixed.values():
                two.is_base = True
            try:
                yield model
            finally:
                for two in mixed.values():
                    two.is_base = False

        return Trainee(
            model=model,
            trainable=make_trainable(parameters),
            writers=frozenset(),
            reference=reference,
            tensors=lambda values: merged(mixed, values),
            starts_as_base=self._start == "copy",
        )


def _trained(two: TwoProjections, name: str) -> nn.Parameter:
    """One of its two trained parameters."""
    return {"second": two.second, "scalars": two.scalars}[name]


def _path_of_blocks(model: PreTrainedModel) -> str:
    first = blocks_of(model)[0]
    return next(name for name, module in model.named_modules() if module is first).rpartition(".")[0]


def down_projection(block: nn.Module, family: Family, where: str) -> str:
    """The name, in a block, of the one linear layer that writes the MLP's product to the residual stream.

    Raises:
        TrainingError: there is none, or more than one.
    """
    facts = family.block
    names = {facts.name_in_memory(tail).removesuffix(".weight") for tail in facts.writers if tail.endswith(".weight")}
    names -= {
        name
        for part, module in block.named_modules()
        for name in names
        if type(module).__name__.endswith("Attention") and name.startswith(f"{part}.")
    }
    found = [name for name, m in block.named_modules() if name in names and isinstance(m, nn.Linear)]
    if len(found) != 1:
        raise TrainingError(
            f"{where}, of family {family.name!r}, has {len(found)} linear layers that write the MLP's product to the "
            f"residual stream ({', '.join(found) or 'none'}); the arm 'moe' expected one; choose another arm"
        )
    return found[0]


def merged(mixed: Mapping[str, TwoProjections], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The one matrix that the two projections are, by its name on disk."""
    tensors = {}
    for name, two in mixed.items():
        share_2 = torch.softmax(values[f"{name}.scalars"].detach().float(), 0)
        old_DF = two.old.weight.detach().float()
        tensors[f"{name}.weight"] = share_2[0] * old_DF + share_2[1] * values[f"{name}.second"].detach().float()
        if two.old.bias is not None:
            tensors[f"{name}.bias"] = share_2[0] * two.old.bias.detach().float()
    return tensors
