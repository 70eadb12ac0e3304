"""The same freezing, bypass and saving inside transformers' Trainer and TRL's SFTTrainer.

In: an expanded model from `blockexpand.load` or `expand_live`, handed to a trainer with this callback. Out: only
its new blocks train; `folder/blocks-<step>/` holds them at every save, `folder/model` the finished checkpoint, in
which every old tensor has the bytes it had. Refused: a model that is not known to be expanded, parameters that
were switched on besides, bf16 parameters without autocast, and sharded trainers, which would save slices.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from blockexpand import live
from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import TrainingError
from blockexpand.families import family_for
from blockexpand.records import write_record
from blockexpand.records.expansion import ExpansionRecord, read_expansion
from blockexpand.staging import RECORD_NAME, staged_folder
from blockexpand.training.arms import make_trainable
from blockexpand.training.checkpoints import save_tensors
from blockexpand.training.export import export_model


class BlockExpansionCallback(TrainerCallback):
    """Trains exactly the new blocks of an expanded model in a trainer that is not ours.

        model, plan = blockexpand.load("models/deeper")
        callback = blockexpand.BlockExpansionCallback("models/deeper", "runs/mine")
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback]).train()

    `blockexpand.bypass(model)` gives the base at any time, for a KL term or a measurement. The trainer's own
    checkpoints hold the whole model; set `save_strategy="no"` to do without them, and `save_every_steps` here.
    """

    def __init__(self, source: str | Path, folder: str | Path, *, save_every_steps: int | None = None) -> None:
        """Nothing is touched until the trainer has been made.

        Args:
            source: The expanded folder that the model was loaded from.
            folder: Where blocks and the finished checkpoint are written.
            save_every_steps: Save the new blocks this often, also when the trainer itself saves nothing.

        Raises:
            PlanError: `source` has no record of an expansion.
        """
        self._source, self._folder, self._every = Path(source), Path(folder), save_every_steps
        self._record: ExpansionRecord = read_expansion(self._source)
        self._trainable: dict[str, nn.Parameter] = {}

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Freeze the old blocks and hold the new ones in float32, before the trainer makes its optimiser."""
        del state, control
        model = cast(nn.Module, kwargs["model"])
        _refuse_sharded(args)
        if live.plan_of(model) != self._record.plan:
            raise TrainingError(
                f"the model was expanded by another plan than {self._source}; expected the model of that folder; load "
                f"it with blockexpand.load({str(self._source)!r})"
            )
        trainable = dict(live.freeze(model))
        dtypes = {parameter.dtype for parameter in model.parameters()}
        if dtypes != {torch.float32} and not args.bf16:
            raise TrainingError(
                f"the model is in {_spell(dtypes)} and the trainer has bf16=False, so new blocks could not be held in "
                "float32, and bf16 weights lose small updates; set bf16=True in the trainer's arguments, or load the "
                "model in float32"
            )
        self._trainable = make_trainable(trainable)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that what trains is what the plan says, and that nothing else has been switched on since."""
        del args, state, control
        model = cast(nn.Module, kwargs["model"])
        switched_on = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        odd = sorted(switched_on ^ set(self._trainable))
        if odd:
            raise TrainingError(
                f"{odd[0]} {'trains' if odd[0] in switched_on else 'does not train'}, against the plan of "
                f"{self._source} ({len(odd)} such parameters); expected exactly the new blocks; leave requires_grad "
                "as it is after the trainer is made"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the new blocks when it is their turn."""
        del control
        if self._every is not None and state.global_step % self._every == 0:
            self._save(args, state, cast(nn.Module, kwargs["model"]))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the new blocks whenever the trainer saves."""
        del control
        self._save(args, state, cast(nn.Module, kwargs["model"]))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the finished checkpoint: the expanded folder with the trained bytes in their places."""
        del control
        if args.process_index == 0:
            training = {"trainer": "transformers", "steps": state.global_step}
            tensors = self._tensors(cast(nn.Module, kwargs["model"]))
            export_model(self._source, self._folder / "model", tensors, training)

    def _tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        checkpoint = open_checkpoint(self._source)
        return live.tensors_on_disk(model, family_for(checkpoint.config, str(self._source), checkpoint.tensors))

    def _save(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        if args.process_index != 0:
            return
        folder = self._folder / f"blocks-{state.global_step:08d}"
        if folder.exists():  # saved at this very step, by the other occasion or before a resumption
            shutil.rmtree(folder)
        with staged_folder(folder) as staged:
            save_tensors(staged / "blocks.safetensors", self._tensors(model))
            write_record(staged / RECORD_NAME, self._record)


def _refuse_sharded(args: TrainingArguments) -> None:
    for name, value in (("fsdp", args.fsdp), ("deepspeed", args.deepspeed)):
        if value:
            raise TrainingError(
                f"the trainer shards the model ({name}={value!r}), so this process would save slices; expected whole "
                "parameters; use `blockexpand train` under torchrun, which shards and saves exactly"
            )


def _spell(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
