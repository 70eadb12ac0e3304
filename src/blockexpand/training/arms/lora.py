"""The arm `lora`: low-rank adapters on every linear layer of the blocks, through peft."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.training.arms.trainee import Trainee, load_model, make_trainable, refuse_many


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
        layers = base.get_decoder().layers
        linears = {name.rsplit(".", 1)[-1] for name, m in layers.named_modules() if isinstance(m, nn.Linear)}
        rank = self._rank or nearest_rank(layers, cast(int, self._trainable_parameters))
        # alpha = 2 r: the common choice; the learning rate is swept, which makes its value immaterial.
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(linears), task_type="CAUSAL_LM")
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
            reference=reference,
            tensors=lambda _values: _merged(model),
        )


def nearest_rank(layers: nn.Module, trainable_parameters: int) -> int:
    """The rank at which adapters on all linear layers have the nearest number of parameters."""
    per_rank = sum(m.in_features + m.out_features for m in layers.modules() if isinstance(m, nn.Linear))
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
