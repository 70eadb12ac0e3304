"""The loop: forward, lean loss, backward, step; measure; keep the budget; save; resume exactly.

In: a trainee, its rows, settings. Out: the steps done, metrics on the way, and the tensors to ship. It
knows no arm and no stage. Nothing below the first trainable parameter is differentiated, because nothing
there requires a gradient and no hook asks for one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from blockexpand.errors import TrainingError
from blockexpand.numerics.forward import check_head, cross_entropies, hidden_states
from blockexpand.numerics.head import head_of
from blockexpand.numerics.isolation import check_isolation
from blockexpand.numerics.loss import Reference, linear_losses
from blockexpand.progress import Bar
from blockexpand.training.arms.trainee import Trainee
from blockexpand.training.checkpoints import (
    Checkpoint,
    Progress,
    load_tensors,
    optimizer_tensors,
    restore_optimizers,
    save_checkpoint,
    save_tensors,
)
from blockexpand.training.data import Pass, RunData
from blockexpand.training.optimizers import build_optimizers, rate_at, set_rate
from blockexpand.training.retention import Measurement, adapted_weight, is_better
from blockexpand.training.settings import TrainSettings
from blockexpand.training.tracker import Tracker

_MOST_SKIPPED = 3
"""Steps in a row whose loss is not finite; more and the run stops."""


@dataclasses.dataclass
class _Sums:
    """Sums over the passes of one step."""

    domain_ce: float = 0.0
    domain_tokens: int = 0
    general_ce: float = 0.0
    general_tokens: int = 0
    kl: float = 0.0

    def means(self) -> dict[str, float | None]:
        general = self.general_tokens
        return {
            "domain_loss": self.domain_ce / max(1, self.domain_tokens),
            "general_loss": self.general_ce / general if general else None,
            "kl": self.kl / general if general else None,
        }


class Loop:
    """One run's state and steps."""

    def __init__(self, settings: TrainSettings, trainee: Trainee, data: RunData, run: Path) -> None:
        """Build the optimisers; nothing moves yet."""
        self.settings, self.trainee, self.data, self.run_folder = settings, trainee, data, run
        self.num_steps = settings.num_steps(data.domain.row_tokens)
        self.optimizers = build_optimizers(trainee.trainable, trainee.writers, settings.optimizer)
        self._names: dict[Tensor, str] = {p: n for n, p in trainee.trainable.items()}
        self._autocast = torch.autocast(data.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up a saved state.

        Raises:
            TrainingError: it is not of this run's parameters.
        """
        if set(checkpoint.trainable) != set(self.trainee.trainable):
            odd = min(set(checkpoint.trainable) ^ set(self.trainee.trainable))
            raise TrainingError(f"the checkpoint and the run do not train the same tensors: {odd} is in one only")
        with torch.no_grad():
            for name, parameter in self.trainee.trainable.items():
                parameter.copy_(checkpoint.trainable[name])
        restore_optimizers(self.optimizers, self._names, checkpoint.optimizer)

    def run(self, progress: Progress, tracker: Tracker, bar: Bar, stopping: list[int]) -> Progress:
        """Do the steps from `progress.step` on; a signal number in `stopping` ends it at a step's border."""
        with self._autocast:
            check_isolation(self.trainee.model)
            check_head(self.trainee.model, self.data.passes(0)[0].batch)
        if progress.step == 0:
            progress = self._measured(progress, tracker)
        for step in range(progress.step, self.num_steps):
            progress = self._stepped(step, progress, tracker, bar)
            last = progress.step == self.num_steps
            if self.data.validation and (last or progress.step % self.settings.measure_every_steps == 0):
                progress = self._measured(progress, tracker)
            if last or stopping or progress.step % self.settings.checkpoint_every_steps == 0:
                self._save(progress)
            if stopping:
                break
        return progress

    def shipped(self) -> dict[str, Tensor]:
        """The tensors of the best checkpoint inside the budget, or of the last step without one."""
        best = self.run_folder / "best.safetensors"
        if best.exists():
            with torch.no_grad():
                for name, tensor in load_tensors(best).items():
                    self.trainee.trainable[name].copy_(tensor)
        return self.trainee.tensors()

    def _save(self, progress: Progress) -> None:
        optimizer = optimizer_tensors(self.optimizers, self._names)
        save_checkpoint(self.run_folder, progress, self.trainee.trainable, optimizer, self.settings.keep_checkpoints)

    # --- one step ------------------------------------------------------------------------------------

    def _stepped(self, step: int, progress: Progress, tracker: Tracker, bar: Bar) -> Progress:
        start = time.monotonic()
        passes = self.data.passes(step)
        set_rate(self.optimizers, rate_at(step, self.num_steps, self.settings.schedule))
        sums = _Sums()
        total = sum(int(p.batch.trained_BT.sum()) for p in passes)
        for one in passes:
            self._backward(one, total, progress.general_weight, sums)
        norm = torch.nn.utils.clip_grad_norm_(self.trainee.trainable.values(), self.settings.optimizer.clip_norm).item()
        finite = math.isfinite(norm) and math.isfinite(sums.domain_ce)
        if finite:
            for optimizer in self.optimizers:
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        num_skipped = 0 if finite else progress.num_skipped + 1
        if num_skipped >= _MOST_SKIPPED:
            raise TrainingError(
                f"the loss was not finite in {num_skipped} steps in a row, up to step {step + 1}; expected a finite "
                f"one; lower optimizer.lr ({self.settings.optimizer.lr}) and start again, or resume from the last "
                f"checkpoint in {self.run_folder}"
            )
        seconds = time.monotonic() - start
        means = sums.means()
        rate = self.optimizers[0].param_groups[0]["lr"]
        tracker.write(
            step + 1,
            "train",
            {**means, "lr": rate, "gradient_norm": norm if math.isfinite(norm) else None, "seconds": seconds},
        )
        rows = sum(p.batch.tokens_BT.numel() for p in passes)
        bar.advance(rows, f"loss {means['domain_loss']:.3f}{self._note(progress)}")
        return dataclasses.replace(
            progress,
            step=step + 1,
            num_skipped=num_skipped,
            train_seconds=progress.train_seconds + seconds,
        )

    def _note(self, progress: Progress) -> str:
        best = progress.best
        if best is None:
            return ""
        rise = f", general {100 * best.rise:+.1f} %" if best.rise is not None else ""
        return f"  best held-out {best.domain:.3f}{rise}"

    def _backward(self, one: Pass, total: int, general_weight: float, sums: _Sums) -> None:
        """Add one pass's gradients; `total` is the number of trained tokens of the whole step."""
        batch, model, retention = one.batch, self.trainee.model, self.settings.retention
        with self._autocast:
            hidden_BTD = hidden_states(model, batch)
        is_domain_BT = torch.zeros_like(batch.trained_BT)
        is_domain_BT[: one.num_domain_rows] = True
        predicted_BT = batch.predicted_BT()
        targets_R, is_domain_R = batch.targets_R(), is_domain_BT[predicted_BT]
        share = torch.where(is_domain_R, 1.0, general_weight * retention.ce_weight)
        reference = None
        if retention.kl_weight > 0 and one.num_domain_rows < len(batch.tokens_BT):
            reference = self._reference(one, predicted_BT, is_domain_R, general_weight / total)
        loss, ce_R, kl_R = linear_losses(hidden_BTD[predicted_BT], head_of(model), targets_R, share / total, reference)
        loss.backward()
        sums.domain_ce += ce_R[is_domain_R].sum().item()
        sums.domain_tokens += int(is_domain_R.sum())
        sums.general_ce += ce_R[~is_domain_R].sum().item()
        sums.general_tokens += int((~is_domain_R).sum())
        sums.kl += kl_R[~is_domain_R].sum().item()

    def _reference(self, one: Pass, predicted_BT: Tensor, is_domain_R: Tensor, weight: float) -> Reference:
        """The base's hidden states on the general rows; zeros, with weight zero, on the domain's."""
        general = dataclasses.replace(
            one.batch, **{name: value[one.num_domain_rows :] for name, value in vars(one.batch).items()}
        )
        with torch.no_grad(), self._autocast, self.trainee.reference() as base:
            hidden = hidden_states(base, general)[predicted_BT[one.num_domain_rows :]]
            head = head_of(base)
        whole = hidden.new_zeros(len(is_domain_R), hidden.shape[-1])
        whole[~is_domain_R] = hidden
        kl_weight = torch.where(is_domain_R, 0.0, weight * self.settings.retention.kl_weight)
        return Reference(hidden_RD=whole, head=head, weight_R=kl_weight)

    # --- measuring -----------------------------------------------------------------------------------

    def _measured(self, progress: Progress, tracker: Tracker) -> Progress:
        """Measure held-out loss, adapt the general rows' weight, remember the best checkpoint."""
        if not self.data.validation:
            return progress
        budget = self.settings.retention.forgetting_budget
        losses = {name: self._held_out(name) for name in self.data.validation}
        general = losses.get("general")
        base = progress.base_general if progress.base_general is not None else general
        rise = general / base - 1 if general is not None and base else None
        new = Measurement(step=progress.step, domain=losses["domain"], general=general, rise=rise)
        weight = progress.general_weight
        if budget is not None and rise is not None and progress.step > 0:
            weight = adapted_weight(weight, rise, budget)
        better = is_better(new, progress.best, budget)
        if better and budget is not None:
            best = self.run_folder / "best.safetensors"
            save_tensors(best.with_suffix(".partial"), self.trainee.trainable)
            best.with_suffix(".partial").replace(best)
        figures = {"domain": new.domain, "general": general, "rise": rise, "general_weight": weight}
        tracker.write(progress.step, "measure", figures)
        return dataclasses.replace(
            progress,
            base_general=base,
            general_weight=weight,
            best=new if better else progress.best,
        )

    def _held_out(self, name: str) -> float:
        total, count = 0.0, 0
        with self._autocast:
            for batch in self.data.validation_batches(name):
                losses_R = cross_entropies(self.trainee.model, batch)
                total, count = total + losses_R.double().sum().item(), count + len(losses_R)
        return total / max(1, count)
