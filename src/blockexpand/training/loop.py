"""The loop: forward, lean loss, backward, step; measure; keep the budget; save; resume exactly.

In: a trainee, its rows, settings. Out: the steps done, metrics on the way, and the tensors to ship. It
knows no arm and no stage. Nothing below the first trainable parameter is differentiated, because nothing
there requires a gradient and no hook asks for one.

Of several processes each does its rows of every step. What a step is divided by is counted over all of
them, and what is decided (a step skipped, an end, the best checkpoint) is decided from sums over all, so
all decide alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import signal
import time
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand.errors import TrainingError
from blockexpand.live.device import own_dtype, training_dtype
from blockexpand.live.forward import RowBatch, check_head, check_isolation, hidden_states, isolates
from blockexpand.live.loss import Reference, linear_losses
from blockexpand.live.parts import blocks_of, head_of
from blockexpand.live.prefix import Prefix, shares_prefix
from blockexpand.progress import Bar, bar
from blockexpand.records.budget import BudgetStatement
from blockexpand.records.run import LoraArm, Measurement, TrainSettings
from blockexpand.training.arms import Trainee
from blockexpand.training.budget import DocumentSums, Measured, find_scale, rise_of, scale_inside, state
from blockexpand.training.checkpoints import (
    OPTIMIZER,
    TRAINABLE,
    Progress,
    SavedTensors,
    Saver,
    best_folder,
    best_job,
    checkpoint_job,
    last_good_checkpoint,
    optimizer_tensors,
    read_progress,
    restore_optimizers,
    restore_trainable,
)
from blockexpand.training.data import OWN, Pass, RunData
from blockexpand.training.document_losses import AtBase, DocumentLosses
from blockexpand.training.metrics import Tracker
from blockexpand.training.optimizers import build_optimizers, rate_at, set_rate
from blockexpand.training.preview import keeps_gradients
from blockexpand.training.processes import Root, gathered, sync_gradients, whole
from blockexpand.training.retention import adapted_weight, budget_used, is_better, put_scale, tightened_weight

_FAR_OUTSIDE = 1e9
"""What a general loss that is no number uses of the budget: records hold numbers."""
_LIKELY_LOOKS = 3
"""Scales that are measured before one is chosen."""
_MOST_SKIPPED = 3
"""Steps in a row whose loss is not finite; more and the run stops."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sums:
    """Sums over the passes of one step, over all processes."""

    domain_ce: float
    domain_places: int
    general_ce: float
    kl: float
    general_places: int
    num_positions: int
    """Positions of all rows, padding included."""

    def means(self) -> dict[str, float | None]:
        general = self.general_places
        return {
            "domain_loss": self.domain_ce / max(1, self.domain_places),
            "general_loss": self.general_ce / general if general else None,
            "kl": self.kl / general if general else None,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shipped:
    """What a run ships, and what is known of it."""

    tensors: dict[str, Tensor]
    """By the names of the checkpoint on disk, in the first process."""
    kept: BudgetStatement | None
    """What is promised of its general loss; None without a budget."""
    best: Measurement | None
    """What it gives on the steering rows."""


class Loop:
    """One run's state and steps."""

    def __init__(
        self, settings: TrainSettings, trainee: Trainee, data: RunData, run: Path, root: nn.Module | None = None
    ) -> None:
        """Build the optimisers; nothing moves yet.

        `root` holds the models where they are sharded: all passes go through it.
        """
        self.settings, self.trainee, self.data, self.run_folder = settings, trainee, data, run
        self.world, self._root, self._saver = data.world, root or Root(), Saver(data.world)
        self.num_steps = settings.num_steps(data.domain.row_tokens)
        self.optimizers = build_optimizers(trainee.trainable, trainee.writers, settings.optimizer)
        self._saved_step = 0
        budget, more = settings.retention.forgetting_budget, settings.retention.budgets
        self._budgets = {} if budget is None else {kind: more.get(kind, budget) for kind in data.calibration}
        self._origins = {} if budget is None else trainee.origins()
        self._at_base: dict[str, AtBase] = {}
        self._keeps_gradients = keeps_gradients(sum(p.numel() for p in trainee.trainable.values()), self.world)
        self._names: dict[Tensor, str] = {p: n for n, p in trainee.trainable.items()}
        self._prefix = Prefix(blocks_of(trainee.model)[: trainee.num_shared_blocks])
        self._shares_prefix = False
        # The rows of the next step are made while this one runs.
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._next: tuple[int, Future[list[Pass]]] | None = None
        dtype = training_dtype(settings.precision, Path(settings.model), self.world.device)
        self._autocast = torch.autocast(self.world.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
        self._losses_of = DocumentLosses(
            model=trainee.model,
            root=self._root,
            world=self.world,
            rows_per_pass=settings.rows_per_pass,
            autocast=self._autocast,
            own=OWN & data.calibration.keys(),
        )

    def restore(self, checkpoint: Path) -> Progress:
        """Take up a saved state, and say where it stands.

        Raises:
            TrainingError: it is not of this run's parameters, or damaged.
        """
        trainable, optimizer = (SavedTensors(checkpoint / name) for name in (TRAINABLE, OPTIMIZER))
        restore_trainable(self.trainee.trainable, trainable)
        restore_optimizers(self.optimizers, self._names, optimizer)
        progress = read_progress(checkpoint)
        self._saved_step = progress.step
        return progress

    def run(self, progress: Progress, tracker: Tracker, bar: Bar, stopping: list[int]) -> Progress:
        """Do the steps from `progress.step` on; a signal number in `stopping`, in any process, ends it soon.

        What is saved then is the state at the border of a step: of the step under way if it is in its last
        pass, otherwise of the one before.
        """
        self._root(self._check_model)
        if self._losses_of.own:
            with self._base_on_model() as base:
                self._at_base = self._losses_of.of_base(self.data.validation, base)
        if progress.step == 0:
            progress = self._measured(progress, tracker)
        for step in range(progress.step, self.num_steps):
            done = self._stepped(step, progress, tracker, (bar, stopping))
            progress = done or progress
            stops = done is None or self._stops(stopping)
            last = progress.step == self.num_steps
            if done and self.data.validation and (last or progress.step % self.settings.measure_every_steps == 0):
                progress = self._measured(progress, tracker)
            due = progress.step % self.settings.checkpoint_every_steps == 0 and not progress.num_skipped
            if last or stops or due:
                self._save(progress)
            self._saver.check()
            if stops:
                break
        self._saver.finish()
        self.world.wait()
        return progress

    def close(self) -> None:
        """Wait for what is being written, and let the threads end."""
        self._ahead.shutdown(cancel_futures=True)
        self._saver.close()

    def shipped(self, progress: Progress) -> Shipped:
        """What a run ships.

        Without a budget they are those of the last step. With one, of the best checkpoint inside it (of the last step
        where none was), with what it learnt scaled so that the bound of the rise is inside, too. The tensors are in the
        first process; every process must call it.

        Raises:
            TrainingError: the best checkpoint's weights are missing or damaged.
        """
        if self.settings.retention.forgetting_budget is None or progress.best is None:
            kept, best = None, progress.best
        else:
            kept, best = self._kept(progress, progress.best)
        values = gathered(self.trainee.trainable, self.world)
        return Shipped(tensors=self.trainee.tensors(values) if self.world.leads else {}, kept=kept, best=best)

    def _kept(self, progress: Progress, best: Measurement) -> tuple[BudgetStatement, Measurement]:
        """Put as much of what was learnt on the model as the budget allows; what that promises, and what it gives."""
        data, trainable, origins, budgets = self.data, self.trainee.trainable, self._origins, self._budgets
        saved = SavedTensors(best_folder(self.run_folder, best.step) / TRAINABLE)
        if not origins:
            restore_trainable(trainable, saved)
            with self.trainee.reference() as model:
                at_base = self._losses_of.of_base(data.calibration, model)
                base = self._losses_of.of(data.calibration, model, known=at_base)
            now = {kind: one.losses_N for kind, one in self._losses_of.of(data.calibration, at_base=at_base).items()}
            return state(base, now, budgets), best
        # Nothing gained on the steering rows: the last step's weights.
        never_better = best.step == 0
        if not never_better:
            restore_trainable(trainable, saved)
        learnt = {name: parameter.detach().clone() for name, parameter in trainable.items()}
        # Adapters are stored as what they add to the base's weights, not as themselves.
        stored = None if isinstance(self.settings.arm, LoraArm) else own_dtype(Path(self.settings.model))

        def measure(scale: float) -> Measured:
            put_scale(trainable, learnt, origins, scale, stored)
            live.advance(0, total=base_rows + max(_LIKELY_LOOKS, next(number)) * rows_of_look)
            texts = {"domain": data.validation["domain"], **data.calibration}
            sums = self._losses_of.of(texts, at_base=at_base, shown=live)
            domain_loss = sums.pop("domain").mean
            return Measured(texts={kind: one.losses_N for kind, one in sums.items()}, domain_loss=domain_loss)

        def put_base() -> None:
            if never_better:  # what trained since may be no number, which times 0 is none either
                restore_trainable(trainable, saved)
            else:
                put_scale(trainable, learnt, origins, 0.0, stored)

        put_base()
        assert progress.last is not None, "a budget without a measurement"
        # None of the documents that test the scales is in a steering row.
        aim = scale_inside((progress.last if never_better else best).budget_used or 0.0)
        number = itertools.count(1)
        base_rows = sum(len(held.chosen_K) for held in data.calibration.values())
        rows_of_look = base_rows + len(data.validation["domain"].chosen_K)
        with bar("testing the budget", base_rows + _LIKELY_LOOKS * rows_of_look, "rows") as live:
            at_base = self._losses_of.of_base(data.calibration, shown=live)
            base = self._losses_of.of(data.calibration, known=at_base, shown=live)
            found = find_scale(base, budgets, measure, aim=aim)
        if found.scale:
            put_scale(trainable, learnt, origins, found.scale, stored)
        else:
            put_base()
        if found.scale == 1 and not never_better:
            return found, best
        assert progress.base_general is not None, "a budget without general text"
        step = 0 if not found.scale else progress.step if never_better else best.step
        sums = self._losses_of.of(data.validation, at_base=self._at_base)
        return found, self._measurement(step, sums, progress.base_general)

    def _stops(self, stopping: list[int]) -> bool:
        """Whether a signal came to any process; the list holds it afterwards, the demand to save and end first.

        Only the sums decide: a signal that comes while they are taken is this process's alone, until the next ones.
        """
        ends, interrupts = self.world.total([float(signal.SIGTERM in stopping), float(signal.SIGINT in stopping)])
        if ends or interrupts:
            stopping[:] = [signal.SIGTERM if ends else signal.SIGINT]
        return bool(ends or interrupts)

    def _save(self, progress: Progress) -> None:
        """Write a checkpoint, unless this step has one: then the run began there, or a signal came just after."""
        if progress.step in (0, self._saved_step):
            return
        self._saved_step = progress.step
        tensors = (self.trainee.trainable, optimizer_tensors(self.optimizers, self._names))
        self._saver.start(
            checkpoint_job(self.run_folder, progress, tensors, self.settings.keep_checkpoints, self.world.leads)
        )

    def _check_model(self) -> None:
        batch = self.data.passes(0)[0].batch
        with self._autocast:
            check_isolation(self.trainee.model)
            check_head(self.trainee.model, batch)
            for other in self.trainee.others:
                isolates(other)  # found out now, not in the middle of a step
            if self._asks_base and self.world.size == 1 and isolates(self.trainee.model):
                self._shares_prefix = shares_prefix(
                    self._prefix, lambda: hidden_states(self.trainee.model, batch), lambda: self._as_base(batch)
                )

    @property
    def _asks_base(self) -> bool:
        return self.settings.retention.needs_reference

    def _as_base(self, batch: RowBatch) -> Tensor:
        with self.trainee.reference() as base:
            return hidden_states(base, batch)

    # --- one step ------------------------------------------------------------------------------------

    def _stepped(self, step: int, progress: Progress, tracker: Tracker, ends: tuple[Bar, list[int]]) -> Progress | None:
        """Do one step; None when a signal came before its last pass, and nothing has changed.

        The host waits for the device once: for the losses and the gradient's norm, on which it depends whether the
        step is taken.
        """
        bar, stopping = ends
        start, start_cpu = time.monotonic(), time.process_time()
        passes = self._passes(step)
        # So that whatever draws in a step draws the same after a resume; nothing of ours does.
        torch.manual_seed(int(np.random.SeedSequence([self.settings.seed, step, self.world.rank]).generate_state(1)[0]))
        set_rate(self.optimizers, rate_at(step, self.num_steps, self.settings.schedule))
        counted = [sum(one.batch.counts_B) for one in passes]
        domain_places = sum(one.num_domain_places for one in passes)
        positions = sum(one.batch.tokens_BT.numel() for one in passes)
        total, domain_places, positions = (
            int(number) for number in self.world.total([float(sum(counted)), float(domain_places), float(positions)])
        )
        total = max(1, total)  # rows of which nothing counts: of long questions whose answers were cut off
        on_device = []
        for number, one in enumerate(passes):
            if number and self._stops(stopping):
                self._forget_gradients()
                return None
            sync_gradients(self._root, number == len(passes) - 1 or not self._keeps_gradients)
            on_device.append(self._backward(one, total, progress.general_weight))
        norm = whole(nn.utils.clip_grad_norm_(self.trainee.trainable.values(), self.settings.optimizer.clip_norm))
        figures = torch.cat([torch.stack(on_device).flatten(), norm.reshape(1).float()]).cpu().tolist()  # the one wait
        norm = figures.pop()
        domain_ce, general_ce, kl = self.world.total([math.fsum(figures[kind::3]) for kind in range(3)])
        sums = _Sums(
            domain_ce=domain_ce,
            domain_places=domain_places,
            general_ce=general_ce,
            kl=kl,
            general_places=total - domain_places,
            num_positions=positions,
        )
        finite = math.isfinite(norm) and math.isfinite(sums.domain_ce)
        if finite:
            for optimizer in self.optimizers:
                optimizer.step()
        self._forget_gradients()
        num_skipped = 0 if finite else progress.num_skipped + 1
        if num_skipped >= _MOST_SKIPPED:
            self._give_up(step, num_skipped)
        seconds = time.monotonic() - start
        means = sums.means()
        rate = self.optimizers[0].param_groups[0]["lr"]
        tracker.write(
            step + 1,
            "train",
            {**means, "lr": rate, "gradient_norm": norm if math.isfinite(norm) else None, "seconds": seconds},
        )
        bar.advance(sums.num_positions, f"loss {means['domain_loss']:.3f}{self._note(progress)}")
        return dataclasses.replace(
            progress,
            step=step + 1,
            general_weight=self._tightened(progress, means["kl"]),
            num_skipped=num_skipped,
            num_skipped_in_all=progress.num_skipped_in_all + (not finite),
            train_seconds=progress.train_seconds + seconds,
            cpu_seconds=progress.cpu_seconds + time.process_time() - start_cpu,
            load_seconds=progress.load_seconds + seconds * os.getloadavg()[0],
        )

    def _passes(self, step: int) -> list[Pass]:
        """The rows of this step, made ahead as a rule; those of the next one are begun."""
        step_made, made = self._next or (-1, None)
        passes = made.result() if made is not None and step_made == step else self.data.passes(step)
        following = step + 1
        if following < self.num_steps:
            self._next = following, self._ahead.submit(self.data.passes, following)
        return passes

    def _forget_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _give_up(self, step: int, num_skipped: int) -> NoReturn:
        self._saver.finish()
        newest = last_good_checkpoint(self.run_folder)
        good = (
            f"resume from the last good checkpoint, {newest}"
            if newest
            else "there is no good checkpoint to resume from"
        )
        raise TrainingError(
            f"the loss was not finite in {num_skipped} steps in a row, up to step {step + 1}; expected a finite one; "
            f"lower optimizer.lr ({self.settings.optimizer.lr}) and start again, or look at the data of these steps; "
            f"{good}"
        )

    def _note(self, progress: Progress) -> str:
        last = progress.last
        if last is None:
            return ""
        rise = f", general {100 * last.rise:+.2f} %" if last.rise is not None else ""
        return f"  held-out {last.domain:.3f}{rise} (step {last.step})"

    def _backward(self, one: Pass, total: int, general_weight: float) -> Tensor:
        """Add one pass's gradients; `total` is the number of trained tokens of the whole step.

        Gives the sums of domain cross-entropies, general cross-entropies and KLs, float32 [3], on the device.
        """
        loss, ce_R, kl_R = self._root(self._losses, one, total, general_weight)
        loss.backward()
        places = one.num_domain_places
        return torch.stack([ce_R[:places].sum(), ce_R[places:].sum(), kl_R[places:].sum()]).float()

    def _losses(self, one: Pass, total: int, general_weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """The pass's share of the step's loss, and each place's cross-entropy and KL; the domain's come first."""
        batch, model, retention = one.batch, self.trainee.model, self.settings.retention
        asks = self._asks_base and one.has_general
        with self._autocast, self._prefix.kept() if asks and self._shares_prefix else contextlib.nullcontext():
            hidden_RD = batch.predicting(hidden_states(model, batch))
        share_R = torch.full((len(hidden_RD),), 1.0 / total, device=hidden_RD.device)
        share_R[one.num_domain_places :] *= general_weight * retention.ce_weight
        reference = self._reference(one, general_weight / total) if asks else None
        return linear_losses(hidden_RD, head_of(model), batch.targets_R, share_R, reference)

    def _reference(self, one: Pass, weight: float) -> Reference:
        """The base's hidden states on the general rows, which are the last.

        What the blocks below the first new one give there is what they gave in the pass before, where this holds.
        """
        # A process whose general rows are all in other passes takes part with a row of its own, and drops the answer.
        num_rows = len(one.batch.tokens_BT)
        first = min(one.num_domain_rows, num_rows - 1)
        given = self._prefix.given(first, num_rows) if self._shares_prefix else contextlib.nullcontext()
        rows = one.batch.rows(first)
        with torch.no_grad(), self._autocast, self.trainee.reference() as base, given:
            hidden_GD = rows.predicting(hidden_states(base, rows))
            head = head_of(base)
        if first < one.num_domain_rows:
            hidden_GD = hidden_GD[:0]
        weight_G = hidden_GD.new_full(
            (len(hidden_GD),), weight * self.settings.retention.kl_weight, dtype=torch.float32
        )
        return Reference(hidden_GD=hidden_GD, head=head, weight_G=weight_G)

    # --- measuring -----------------------------------------------------------------------------------

    def _measured(self, progress: Progress, tracker: Tracker) -> Progress:
        """Measure held-out loss, adapt the general rows' weight, remember the best checkpoint."""
        if not self.data.validation:
            return progress
        budget = self.settings.retention.forgetting_budget
        # At step 0 the model is the base, as a rule: what is known of it is not measured again.
        known = self._at_base if progress.step == 0 and self.trainee.starts_as_base else {}
        sums = self._losses_of.of(self.data.validation, at_base=self._at_base, known=known)
        base = progress.base_general if progress.base_general is not None else self._base_general(sums)
        base_domain = sums["domain"].mean if progress.step == 0 else progress.base_domain
        new = self._measurement(progress.step, sums, base)
        used = new.budget_used
        weight = progress.general_weight
        if used is not None and progress.step > 0:
            weight = adapted_weight(weight, used)
        better = is_better(new, progress.best, budget, base_domain if self._origins else None)
        if better and budget is not None:
            self._saver.start(best_job(self.run_folder, new.step, self.trainee.trainable, self.world.leads))
        figures = {name: value for name, value in vars(new).items() if name != "step"}
        tracker.write(progress.step, "measure", figures | {"general_weight": weight})
        return dataclasses.replace(
            progress,
            base_general=base,
            base_domain=base_domain,
            general_weight=weight,
            best=new if better else progress.best,
            last=new,
        )

    def _tightened(self, progress: Progress, kl: float | None) -> float:
        """The general rows' weight after a step."""
        weight, budget = progress.general_weight, self.settings.retention.forgetting_budget
        if budget is None or kl is None or progress.base_general is None or not self._asks_base:
            return weight
        held = [one for kind, one in self.data.validation.items() if kind != "domain"]
        base = sum(progress.base_general) / max(1, sum(int(one.tokens_N.sum()) for one in held))
        return tightened_weight(weight, kl, budget * base)

    def _measurement(self, step: int, sums: Mapping[str, DocumentSums], base: tuple[float, ...]) -> Measurement:
        """What the losses of the steering rows say."""
        general, rise, used = self._risen({kind: one for kind, one in sums.items() if kind != "domain"}, base)
        return Measurement(step=step, domain=sums["domain"].mean, general=general, rise=rise, budget_used=used)

    def _risen(
        self, sums: Mapping[str, DocumentSums], base: tuple[float, ...]
    ) -> tuple[float | None, float | None, float | None]:
        """The general loss over all kinds of text, how much it rose, and the most that a kind uses of its budget."""
        if not sums:
            return None, None, None
        total = sum(float(one.losses_N.sum()) for one in sums.values())
        count = sum(int(one.tokens_N.sum()) for one in sums.values())
        used, at = [], 0
        for kind, one in sums.items():
            base_N, at = np.array(base[at : at + len(one.losses_N)]), at + len(one.losses_N)
            if kind in self._budgets and len(base_N) > 1:
                rise = rise_of(base_N, one.losses_N)
                used.append(budget_used(rise, self._budgets[kind], self.data.calibration[kind].num_documents))
        most = (max(used) if all(map(math.isfinite, used)) else _FAR_OUTSIDE) if used else None
        return total / count, total / sum(base) - 1, most

    def _base_general(self, sums: Mapping[str, DocumentSums]) -> tuple[float, ...]:
        """The base's loss of each steering document; at step 0 that is the model's, where it starts as the base."""
        if not self.trainee.starts_as_base:
            held = {kind: one for kind, one in self.data.validation.items() if kind != "domain"}
            with self.trainee.reference() as base:
                sums = self._losses_of.of(held, base, known=self._at_base)
        return tuple(float(loss) for kind, one in sums.items() if kind != "domain" for loss in one.losses_N)

    @contextlib.contextmanager
    def _base_on_model(self) -> Generator[PreTrainedModel]:
        """The base, for what is done inside: what was learnt is taken off the model, and put on again."""
        if not self._origins:
            with self.trainee.reference() as base:
                yield base
            return
        trainable = self.trainee.trainable
        learnt = {name: parameter.detach().clone() for name, parameter in trainable.items()}
        put_scale(trainable, learnt, self._origins, 0.0)
        yield self.trainee.model
        put_scale(trainable, learnt, self._origins, 1.0)
