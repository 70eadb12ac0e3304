"""Reference arms: the paper's mixture of two down-projections, Control LLM's copies beside blocks, depth up-scaling."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand import live
from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import TrainingError
from blockexpand.families import Family, family_for
from blockexpand.families.modules import renumber
from blockexpand.training.arms import Trainee, check_blocks, load_model, make_trainable, refuse_many

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

    def __init__(self, start: Literal["zero", "copy"]) -> None:
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
        for index, block in enumerate(cast(nn.ModuleList, model.get_decoder().layers)):
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
    blocks = model.get_decoder().layers
    return next(name for name, module in model.named_modules() if module is blocks)


def down_projection(block: nn.Module, family: Family, where: str) -> str:
    """The name, in a block, of the one linear layer that writes the MLP's product to the residual stream.

    Raises:
        TrainingError: there is none, or more than one.
    """
    facts = family.block
    tails = [t for t in facts.writers if t.endswith(".weight") and t not in facts.attention_output]
    names = {facts.name_in_memory(tail).removesuffix(".weight") for tail in tails}
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

    def __init__(self, blocks: tuple[int, ...], share: float) -> None:
        """Which blocks of the base, and the copies' share of their outputs."""
        self._blocks, self._share = blocks, share

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool, empty: bool = False) -> Trainee:
        """Load the checkpoint and put the copies beside its blocks; the reference leaves them out.

        Raises:
            TrainingError: `empty` is asked for, or a block is not there.
        """
        del needs_reference
        refuse_many("parallel", empty)
        model = load_model(folder, dtype)
        layers = cast(nn.ModuleList, model.get_decoder().layers)
        check_blocks(self._blocks, len(layers), folder)
        copies = nn.ModuleDict({str(index): copy.deepcopy(layers[index]) for index in self._blocks})
        pairs = []
        for number, index in enumerate(self._blocks):
            renumber(copies[str(index)], len(layers) + number)  # a place of its own in the cache
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


class Upscaled:
    """Continued training of the whole deeper model (arXiv 2312.15166, section 2; arXiv 2403.04652, section 7.3)."""

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool, empty: bool = False) -> Trainee:
        """Load the deeper checkpoint, and the base out of a second copy of it.

        Raises:
            PlanError: the folder has no record of an expansion.
            TrainingError: `empty` is asked for.
        """
        refuse_many("upscaled", empty)
        loaded, plan = live.load(folder, dtype=dtype)
        model = cast(PreTrainedModel, loaded.eval())
        starts_as_base = plan.init == "identity"
        base = None
        if needs_reference or not starts_as_base:
            base = cast(PreTrainedModel, live.load(folder, dtype=dtype)[0].eval().requires_grad_(False))

        @contextlib.contextmanager
        def reference() -> Generator[PreTrainedModel]:
            assert base is not None, "a reference was not asked for when the model was loaded"
            with live.bypass(base):
                yield base

        return Trainee(
            model=model,
            trainable=make_trainable(dict(model.named_parameters())),
            writers=frozenset(live.writers(loaded)),
            reference=reference,
            tensors=dict,
            others=(base,) if base is not None else (),
            starts_as_base=starts_as_base,
        )
