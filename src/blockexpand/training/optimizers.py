"""Which parameters an optimiser moves, how fast, and how the rate changes over a run."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from blockexpand.errors import TrainingError, nearest
from blockexpand.live.device import computes_in_bfloat16
from blockexpand.records.run import OptimizerSettings, ScheduleSettings


def build_optimizers(
    trainable: Mapping[str, nn.Parameter], writers: frozenset[str], settings: OptimizerSettings
) -> list[torch.optim.Optimizer]:
    """The optimisers of a run: AdamW alone, or Muon on the blocks' matrices beside it.

    Weight decay falls on the blocks' matrices only. A norm's gain would decay towards a block that writes
    nothing; embeddings and heads are tables, of which decay would wipe out the rows that are seldom seen.
    Tables also stay with AdamW, as Muon's authors have it.

    Raises:
        TrainingError: a pattern of `lr_scales` names nothing that trains.
    """
    scales = _scales(trainable, writers, settings)
    for_muon = {n for n, p in trainable.items() if settings.name == "muon" and _is_block_matrix(n, p)}
    optimizers: list[torch.optim.Optimizer] = []
    adamw = _groups({n: p for n, p in trainable.items() if n not in for_muon}, scales, settings)
    if adamw:
        optimizers.append(torch.optim.AdamW(adamw, lr=settings.lr, betas=settings.betas, eps=settings.eps))
    muon = _groups({n: p for n, p in trainable.items() if n in for_muon}, scales, settings)
    if muon:
        optimizers.append(Muon(muon, lr=settings.lr))
    covered = sum(len(group["params"]) for o in optimizers for group in o.param_groups)
    assert covered == len(trainable), f"{covered} of {len(trainable)} parameters have an optimiser"
    return optimizers


_MOMENTUM = 0.95
_NUM_ITERATIONS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
"""Of Newton and Schulz's iteration, as Muon's author tuned it: singular values end between 0.7 and 1.2."""
_RMS_OF_ADAMW = 0.2


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov's momentum and updates of AdamW's size (Liu et al. 2025, 2502.16982).

    The steps of `torch.optim.Muon`, which always multiplies in bfloat16: a processor without such products took 260 of
    a step's 330 seconds for it (SmolLM2-135M, six new blocks, AVX2; docs/log.md). This one takes float32 there.
    """

    def __init__(self, params: Iterable[dict], lr: float) -> None:
        """Take groups of matrices, each with its `weight_decay`."""
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # ty: ignore[incompatible-method-override]
        """Move every matrix that has a gradient."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                momentum = state["momentum_buffer"].lerp_(gradient, 1 - _MOMENTUM)
                update = orthogonalized(gradient.lerp(momentum, _MOMENTUM))
                size = _RMS_OF_ADAMW * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * size)


def orthogonalized(matrix_MN: Tensor) -> Tensor:
    """The matrix with all its singular values near 1, [M, N] -> [M, N], by products alone."""
    dtype = torch.bfloat16 if computes_in_bfloat16(matrix_MN.device) else torch.float32
    flat = matrix_MN.shape[0] <= matrix_MN.shape[1]
    flat_MN = (matrix_MN if flat else matrix_MN.T).to(dtype)
    flat_MN = flat_MN / flat_MN.norm().clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        gram_MM = flat_MN @ flat_MN.T
        gram_MM = torch.addmm(gram_MM, gram_MM, gram_MM, beta=b, alpha=c)
        flat_MN = torch.addmm(flat_MN, gram_MM, flat_MN, beta=a)
    return flat_MN if flat else flat_MN.T


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name


def _scales(names: Iterable[str], writers: frozenset[str], settings: OptimizerSettings) -> dict[str, float]:
    """Each parameter's learning rate over that of all else."""
    scales = {name: settings.writer_lr_scale if name in writers else 1.0 for name in names}
    for pattern, scale in (settings.lr_scales or {}).items():
        named = [name for name in scales if fnmatch.fnmatchcase(name, pattern)]
        if not named:
            raise TrainingError(
                f"optimizer.lr_scales: {pattern!r} names nothing that trains; expected a pattern of names like "
                f"{min(scales)!r}; {nearest(pattern.lstrip('*'), scales)}"
            )
        for name in named:
            scales[name] *= scale
    return scales


def _groups(
    parameters: Mapping[str, nn.Parameter], scales: Mapping[str, float], settings: OptimizerSettings
) -> list[dict]:
    """Parameter groups, one for each pair of decay and rate that occurs."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = settings.weight_decay if _is_block_matrix(name, parameter) else 0.0
        groups.setdefault((decay, scales[name]), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "lr": settings.lr * scale, "peak_lr": settings.lr * scale}
        for (decay, scale), params in groups.items()
    ]


def rate_at(step: int, num_steps: int, schedule: ScheduleSettings) -> float:
    """The learning rate of step `step` (from 0) as a share of the peak."""
    warmup_steps = math.ceil(schedule.warmup * num_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule.kind == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    falling = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    return schedule.final + (1 - schedule.final) * falling


def set_rate(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Set every group's learning rate to its share of the group's peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
