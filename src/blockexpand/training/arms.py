"""The methods that can be trained, behind one Protocol: blocks, old blocks, full, lora.

An arm gives the loop a `Trainee`: a model, what of it trains, how to be the base, what to ship. The base is inside an
expanded model (bypass) and inside adapters (switched off); the arms that move the base's own parameters keep a second
copy when a run asks for the base's answers. The old blocks of an expanded checkpoint may be held in 8 or 4 bits
(bitsandbytes): bypassed, it is then the base quantised in the same way, to the bit; the head, embeddings, norms and new
blocks stay floats, and so do experts that transformers holds as one tensor.
Refused: a machine without bitsandbytes, a model in which not exactly the old blocks' linear layers could be quantised,
and several processes for an arm whose added weights no checkpoint holds.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from blockexpand import live
from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.errors import TrainingError
from blockexpand.families import family_for, known_families, modules
from blockexpand.families.modules import stack_of
from blockexpand.live.parts import blocks_of
from blockexpand.records.expansion import read_expansion
from blockexpand.records.run import (
    ArmSettings,
    BasePrecision,
    BlocksArm,
    CustomArm,
    FullArm,
    LoraArm,
    OldBlocksArm,
)
from blockexpand.units import FLOATS


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
    num_shared_blocks: int = 0
    """So many of the lowest blocks are the same modules, or the same numbers, in the model and in its reference, and
    none of them trains."""
    starts_as_base: bool = True
    """Whether the model, before its first step, is the base; if not, forgetting is measured from the reference."""
    origins: Callable[[], Mapping[str, Tensor | float]] = dict
    """Asked once, before the first step: the values at which those of `trainable` that carry what is learnt to the
    output are the base's. With them there the model is the base, whatever the rest of `trainable` is. Empty: the arm
    has no way back."""
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


def load_model(folder: Path, dtype: torch.dtype | None = None, empty: bool = False) -> PreTrainedModel:
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


class Blocks:
    """LLaMA Pro's post-pretraining (paper section 3.2)."""

    def __init__(self, base_precision: BasePrecision = "same") -> None:
        """How the old blocks are held; the new ones are always whole."""
        self._base_precision: BasePrecision = base_precision

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool, empty: bool = False) -> Trainee:
        """Load the expanded checkpoint; the base is inside it, so a reference costs nothing."""
        del needs_reference
        if self._base_precision == "same":
            loaded: nn.Module = live.load(folder, dtype=dtype, device="meta" if empty else "cpu")[0]
        elif empty:
            raise TrainingError(
                f"base_precision is {self._base_precision!r}, and quantised weights cannot be sharded over processes; "
                "expected one process; start without torchrun, or set base_precision=same"
            )
        else:
            loaded = load_quantised(folder, self._base_precision, dtype)
        checkpoint = open_checkpoint(folder)
        family = family_for(checkpoint.config, str(folder), checkpoint.tensors)
        _check_shippable(checkpoint, live.tensors_on_disk(loaded, family))
        model = cast(PreTrainedModel, loaded.eval())
        trainable = make_trainable(dict(live.freeze(model)))
        return Trainee(
            model=model,
            trainable=trainable,
            writers=frozenset(live.writers(loaded)),
            origins=lambda: live.writers(model),
            reference=lambda: live.bypass(model),
            tensors=lambda values: live.tensors_on_disk(model, family, values),
            num_shared_blocks=min(live.plan_of(model).new_positions),
        )


def _check_shippable(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Refuse, before the first step, blocks that could not be written back into the checkpoint afterwards."""
    for name, tensor in tensors.items():
        entry = checkpoint.tensors.get(name)
        if entry is None or entry.shape != tuple(tensor.shape) or entry.dtype not in FLOATS:
            found = f"{entry.dtype} {list(entry.shape)}" if entry else "no such tensor"
            raise TrainingError(
                f"{checkpoint.source} has {found} for the new block's {name}, so training could not be kept; "
                f"expected {list(tensor.shape)} in {', '.join(FLOATS)}; expand a base with float weights"
            )


Quantised = Literal["int8", "nf4"]
_PACKED = frozenset({"Int8Params", "Params4bit"})
"""bitsandbytes' classes of quantised weights (bitsandbytes/nn/modules.py, 0.50)."""


def quantisation(kind: Quantised, dtype: torch.dtype, skipped: list[str]) -> BitsAndBytesConfig:
    """What transformers is asked for; `skipped` are the modules that stay floats."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=skipped
    )


def load_quantised(folder: Path, kind: Quantised, dtype: torch.dtype) -> PreTrainedModel:
    """The model of an expanded folder, in eval mode, with its old blocks quantised.

    Raises:
        TrainingError: bitsandbytes is missing, or not exactly the old blocks were quantised.
        PlanError: the folder has no record of an expansion.
        LiveError: transformers cannot load it, or it does not fit its record.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise TrainingError(
            f"base_precision is {kind!r}, and bitsandbytes is not installed; expected it beside torch; "
            "pip install 'blockexpand[quantised]', or set base_precision=same"
        )
    plan = read_expansion(folder).plan
    family = known_families()[plan.base.family]
    new = {block.position for block in plan.new_blocks}
    skipped = [f"{family.stack.module}.{position}" for position in sorted(new)]
    config = quantisation(kind, dtype, [*skipped, *(n.removesuffix(".weight") for n in family.outer.matrices)])
    model = modules.load_model(folder, dtype=dtype, loader=family.loader, quantization=config)
    _check_quantised(stack_of(model, family), new, str(folder))
    return cast(PreTrainedModel, live.adopt(model, plan))


def is_packed(module: nn.Module) -> bool:
    """Whether a linear layer's weight is quantised."""
    weight: Any = vars(module)["_parameters"].get("weight")
    return type(weight).__name__ in _PACKED


def _check_quantised(stack: nn.ModuleList, new: set[int], folder: str) -> None:
    """transformers chooses layers by patterns of names; see that it chose what was meant."""
    for position, block in enumerate(stack):
        linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
        found = sum(is_packed(module) for module in linears)
        expected = 0 if position in new else len(linears)
        if found != expected:
            raise TrainingError(
                f"block {position} of {folder} has {found} of its {len(linears)} linear layers quantised; expected "
                f"{expected}, since it is {'new' if position in new else 'old'}; set base_precision=same"
            )


class Lora:
    """LoRA of a given rank, or of the rank nearest to a given number of parameters."""

    def __init__(self, *, rank: int | None, trainable_parameters: int | None) -> None:
        """Exactly one of the two is set."""
        self._rank, self._trainable_parameters = rank, trainable_parameters

    def load(self, folder: Path, dtype: torch.dtype, needs_reference: bool, empty: bool = False) -> Trainee:
        """Load the checkpoint and wrap its linear layers; switching the adapters off gives the base.

        Raises:
            TrainingError: `empty` is asked for: adapters are drawn at random when they are made.
        """
        del needs_reference
        refuse_many("lora", empty)
        from peft import LoraConfig, PeftModel, get_peft_model

        base = load_model(folder, dtype)
        blocks = nn.ModuleList(blocks_of(base))
        linears = {name.rsplit(".", 1)[-1] for name, m in blocks.named_modules() if isinstance(m, nn.Linear | Conv1D)}
        rank = self._rank or nearest_rank(blocks, cast(int, self._trainable_parameters))
        # alpha = 2 r: the common choice; the learning rate is swept, which makes its value immaterial.
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=sorted(linears),
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(isinstance(m, Conv1D) for m in blocks.modules()),
        )
        with warnings.catch_warnings():
            # peft 0.21 asks transformers by a name that 5.24 has renamed; nobody here can do anything about it.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            wrapped = cast(PeftModel, get_peft_model(base, config)).eval()
        model = cast(PreTrainedModel, wrapped.get_base_model())
        trainable = make_trainable({n: p for n, p in model.named_parameters() if p.requires_grad})
        if not trainable:
            raise TrainingError(f"LoRA found no linear layer in the blocks of {folder}")

        @contextlib.contextmanager
        def reference() -> Generator[PreTrainedModel]:
            with wrapped.disable_adapter():
                yield model

        return Trainee(
            model=model,
            trainable=trainable,
            writers=frozenset(),
            origins=lambda: {name: 0.0 for name in trainable if ".lora_B." in name},
            reference=reference,
            tensors=lambda _values: _merged(model),
        )


def nearest_rank(blocks: nn.Module, trainable_parameters: int) -> int:
    """The rank at which adapters on all linear layers have the nearest number of parameters."""
    per_rank = sum(sum(m.weight.shape) for m in blocks.modules() if isinstance(m, nn.Linear | Conv1D))
    return max(1, round(trainable_parameters / per_rank))


def _merged(model: nn.Module) -> dict[str, Tensor]:
    """The weights with the adapters' products added, by the names they have on disk."""
    from peft.tuners.lora.layer import Linear as LoraLinear

    merged = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            (adapter,) = module.active_adapters
            base = cast(nn.Linear, module.base_layer)
            merged[f"{name}.weight"] = base.weight.detach().float() + module.get_delta_weight(adapter).detach().float()
    return merged


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
        layers = blocks_of(model)
        check_blocks(self._blocks, len(layers), folder)
        chosen = {id(p) for index in self._blocks for p in layers[index].parameters()}
        parameters = {name: p for name, p in model.named_parameters() if id(p) in chosen}
        return dataclasses.replace(_trainee(model, parameters, needs_reference), num_shared_blocks=min(self._blocks))


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
        origins=lambda: _as_they_are(base or model, frozenset(trainable)),
        reference=reference,
        tensors=dict,
        others=(base,) if base is not None else (),
    )


def _as_they_are(model: PreTrainedModel, names: frozenset[str]) -> dict[str, Tensor]:
    """The values of some parameters: of a model that trains, which they are looked up in again, copies."""
    parameters = {name: p for name, p in model.named_parameters() if name in names}
    return {name: p.detach().clone() if p.requires_grad else p.detach() for name, p in parameters.items()}


def arm_of(settings: ArmSettings, base_precision: BasePrecision = "same") -> Arm:
    """The arm that the settings describe; only `blocks` can have a quantised base (`TrainSettings` sees to it).

    Raises:
        TrainingError: it is one of the caller's own, and none was given.
    """
    match settings:
        case BlocksArm():
            return Blocks(base_precision)
        case FullArm():
            return Full()
        case LoraArm(rank=rank, trainable_parameters=number):
            return Lora(rank=rank, trainable_parameters=number)
        case OldBlocksArm(blocks=blocks):
            return OldBlocks(blocks)
        case CustomArm(name=name):
            raise TrainingError(
                f"the arm {name!r} is not one of ours; expected the arm itself; call train(settings, arm=...) from "
                "Python, or choose blocks, old-blocks, full or lora"
            )
