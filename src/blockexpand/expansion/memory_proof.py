"""The parts of the proof that need the models in memory (torch, transformers).

In: the base and the expanded checkpoint, and the plan. Out: checks with figures. One model is held at a time, or
left on the disk when there is not enough memory; then logits are compared, and no step is taken. No remote
code is run and nothing is fetched.

Shapes: B = 1 sequence, T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from blockexpand.checkpoint import Checkpoint
from blockexpand.errors import ExpansionError
from blockexpand.expansion.deeper_config import base_entries
from blockexpand.families import Family, family_for
from blockexpand.families.modules import (
    config_entries,
    greedy,
    load_model,
    load_offloaded,
    parameters_of,
    put_stack,
    set_config,
    stack_of,
)
from blockexpand.records.expansion import Check
from blockexpand.records.plan import Plan
from blockexpand.units import FLOATS, torch_dtype

SEED = 20240104
"""Any fixed number gives the same sequences everywhere; this one is the day the paper appeared."""
SEQUENCE_TOKENS = (5, 16, 40)
"""Lengths of the sequences compared; tests' sliding windows are shorter than the longest."""
CACHED_TOKENS = 8
"""How many of a sequence's last tokens go through the cache one by one."""
PROMPT_TOKENS = 5
"""How many of each sequence's last tokens its continuation begins with."""
GENERATED_TOKENS = 24
STEP_LEARNING_RATE = 1e-5
"""A small step of post-pretraining (the paper trains at 2e-4); see docs/proof.md for the drift it makes."""
MAX_DRIFT_NATS = 1e-2
"""The most that one such step may move the model. Measured: docs/proof.md."""
_CACHE = next(f.name for f in fields(CausalLMOutputWithPast) if f.name in ("cache", "past_key_values"))
"""What this version of transformers calls the KV cache, in a model's arguments and in its output."""
NO_STEP = "gradients and the first step's drift: the models stayed on the disk, for want of memory"
"""What such a proof says that it does not."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How a model answers to fixed sequences."""

    logits_BTV: tuple[Tensor, ...]
    """Without a cache, one for each sequence."""
    cached_BTV: tuple[Tensor, ...]
    """Through the KV cache: those of each greedily continued token, [B, V], and of a short and a long sequence."""
    generated_BT: tuple[Tensor, ...]
    """Greedy continuations."""


def measure(
    base: Checkpoint, out: Checkpoint, plan: Plan, *, trained: bool, device: str, memory: int | None = None
) -> tuple[list[Check], tuple[str, ...]]:
    """Compare the models, then (for untrained blocks) take one step and look at gradients and drift.

    Out: the checks, and what was left out.

    With `memory`, the bytes that a model may take, models that are larger stay on the disk, and then no step is taken.

    Raises:
        ExpansionError: transformers cannot run a model, or the memory is too little even so.
    """
    family = family_for(base.config, base.source, base.tensors)
    checks: list[Check] = []
    offloaded = memory is not None and memory < whole_bytes(out, plan)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory())) if offloaded else None
        for name in dtypes_of(plan):
            dtype = torch_dtype(name)
            with _told(base):
                expected = answers(_load(base, family, dtype, device, scratch))
            with _told(out):
                model = _load(out, family, dtype, device, scratch)
                if trained:
                    _bypass_for_good(model, family, plan)
                found = answers(model)
            checks += compare(expected, found, name, bypassed=trained)
            with _told(out):
                if name == "F32" and not trained and not offloaded:
                    checks += _step(model, family, plan, expected.logits_BTV)
            del model
    return checks, (NO_STEP,) if offloaded and not trained else ()


def _load(
    checkpoint: Checkpoint, family: Family, dtype: torch.dtype, device: str, scratch: Path | None
) -> PreTrainedModel:
    if scratch is None:
        model = load_model(checkpoint.folder, dtype=dtype, device=device, loader=family.loader)
    else:
        inside = Path(tempfile.mkdtemp(dir=scratch))
        model = load_offloaded(checkpoint.folder, family, dtype=dtype, device=device, scratch=inside)
    return cast(PreTrainedModel, model)


@contextlib.contextmanager
def _told(checkpoint: Checkpoint) -> Generator[None]:
    """What a model's own code raises, and a lack of memory, each as what it is.

    Raises:
        ExpansionError: transformers could not run the model, or the memory was too little.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, KeyError, IndexError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
            raise ExpansionError(
                f"the proof of {checkpoint.source} needs more memory than there is ({error!s:.120}); expected room for "
                "the deeper model in float32; give --memory-gb with what is free, and the models stay on the disk"
            ) from error
        raise ExpansionError(
            f"the proof could not run the model of {checkpoint.source}: {type(error).__name__}: {error!s:.300}; "
            "expected one that this version of transformers runs in its files' precision, with a cache and without; "
            "try it with transformers alone"
        ) from error


def whole_bytes(out: Checkpoint, plan: Plan) -> int:
    """What the proof takes at its peak when whole models are loaded.

    That is the deeper model in float32, with gradients and AdamW's two moments for the new blocks.
    """
    held = sum(entry.num_elements for entry in out.tensors.values())
    return 4 * (held + 3 * plan.cost.parameters_new)


def dtypes_of(plan: Plan) -> tuple[str, ...]:
    """The dtype the checkpoint is stored in (bfloat16 for FP8), and float32, last because the step is taken in it."""
    tensors = plan.tensors_of(plan.new_blocks[0].donor)
    stored = next(t.dtype for t in tensors if t.parameter and len(t.shape) > 1)
    return tuple(dict.fromkeys((stored if stored in FLOATS else "BF16", "F32")))


def _bypass_for_good(model: nn.Module, family: Family, plan: Plan) -> None:
    stack = stack_of(model, family)
    put_stack(model, family, [stack[i] for i in plan.old_to_new])
    set_config(model, family, base_entries(family, plan, config_entries(model)))


def sequences(model: PreTrainedModel) -> tuple[Tensor, ...]:
    """The token sequences every proof uses, drawn with a fixed seed on the CPU."""
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    generator = torch.Generator().manual_seed(SEED)
    size = embedding.weight.shape[0]
    drawn = [torch.randint(size, (1, length), generator=generator) for length in SEQUENCE_TOKENS]
    return tuple(tokens_BT.to(embedding.weight.device) for tokens_BT in drawn)


@torch.no_grad()
def answers(model: PreTrainedModel) -> Answers:
    """Run the model on the sequences, three ways.

    One token at a time costs as much as a whole sequence, so continuations are made in one batch, and their logits are
    kept: they are what the cache gives at each length from the prompts' on.
    """
    tokens = sequences(model)
    # Generation last: some models (Qwen2.5-VL) keep what they generated by, for a batch of that size.
    one_by_one = [_through_the_cache(model, tokens_BT) for tokens_BT in (tokens[0], tokens[-1])]
    plain = tuple(model(tokens_BT, use_cache=False).logits for tokens_BT in tokens)
    prompts_BT = torch.cat([tokens_BT[:, -PROMPT_TOKENS:] for tokens_BT in tokens])
    generated_BT, steps = greedy(model, prompts_BT, GENERATED_TOKENS)
    return Answers(
        logits_BTV=plain,
        cached_BTV=(*steps, *one_by_one),
        generated_BT=tuple(generated_BT.split(1)),
    )


def _through_the_cache(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """The logits with a sequence's last tokens given one by one: a short one from its first on, a long one's last."""
    first = max(1, tokens_BT.shape[1] - CACHED_TOKENS)
    output = model(tokens_BT[:, :first], use_cache=True)
    if _CACHE not in output:
        raise ExpansionError(
            f"a {type(model).__name__} gives no {_CACHE!r}; expected one that this version of transformers runs with a "
            "KV cache; choose another base"
        )
    pieces = [output.logits]
    for i in range(first, tokens_BT.shape[1]):
        output = model(tokens_BT[:, i : i + 1], **{_CACHE: output[_CACHE]}, use_cache=True)
        pieces.append(output.logits)
    return torch.cat(pieces, dim=1)


def compare(expected: Answers, found: Answers, dtype: str, *, bypassed: bool = False) -> list[Check]:
    """The checks that two sets of answers are the same to the bit."""
    what = "with the new blocks bypassed, " if bypassed else ""
    generated = [torch.equal(a, b) for a, b in zip(expected.generated_BT, found.generated_BT, strict=True)]
    num_tokens = sum(tokens_BT.shape[1] for tokens_BT in found.generated_BT)
    return [
        _compare_logits(f"{what}logits are the base's in {dtype}", expected.logits_BTV, found.logits_BTV),
        _compare_logits(
            f"{what}logits through the KV cache are the base's in {dtype}",
            expected.cached_BTV,
            found.cached_BTV,
        ),
        Check(
            name=f"{what}greedy generation is the base's in {dtype}",
            passed=all(generated),
            figure=f"{sum(generated)} of {len(generated)} continuations equal, {num_tokens} tokens",
        ),
    ]


def _compare_logits(name: str, expected: Sequence[Tensor], found: Sequence[Tensor]) -> Check:
    pairs = list(zip(expected, found, strict=True))
    same = all(torch.equal(_bits(a), _bits(b)) for a, b in pairs)
    finite = all(bool(torch.isfinite(b).all()) for _, b in pairs)
    if same and finite:
        count = sum(b.numel() for _, b in pairs)
        return Check(name=name, passed=True, figure=f"{count:,} logits bit-identical")
    if not finite:
        return Check(name=name, passed=False, figure="the logits are not finite, so nothing is proved")
    largest = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    return Check(name=name, passed=False, figure=f"they differ by up to {largest:.3g}")


def _bits(values: Tensor) -> Tensor:
    """The bit patterns: to `torch.equal`, 0.0 and -0.0 are the same, and NaN is not itself."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.contiguous().view(kinds[values.element_size()])


def _step(model: PreTrainedModel, family: Family, plan: Plan, base_logits_BTV: Sequence[Tensor]) -> list[Check]:
    """Gradient at step 0, one optimiser step, drift, gradient at step 1."""
    model.requires_grad_(False)
    stack = stack_of(model, family)
    new: dict[str, dict[str, nn.Parameter]] = {}
    writers: dict[str, set[str]] = {}
    for block in plan.new_blocks:
        tensors, name = plan.tensors_of(block.donor), family.block.name_in_memory
        found = parameters_of(stack[block.position], family, tensors)
        new[block.id] = dict(sorted(found.items()))
        writers[block.id] = {name(t.tail) for t in tensors if t.starts != "donor"}
        for parameter in new[block.id].values():
            parameter.requires_grad_(True)
    silent = {block: {n: p for n, p in parameters.items() if n in writers[block]} for block, parameters in new.items()}
    tokens = sequences(model)
    _backward(model, tokens)
    checks = [
        _check_gradient("at step 0 every residual writer gets gradient", silent),
        _frozen(model, new),
    ]
    trained = [parameter for parameters in new.values() for parameter in parameters.values()]
    optimizer = torch.optim.AdamW(trained, lr=STEP_LEARNING_RATE, weight_decay=0.0)
    optimizer.step()
    optimizer.zero_grad()
    checks.append(_check_drift(model, tokens, base_logits_BTV))
    _backward(model, tokens)
    return [*checks, _check_gradient("at step 1 every tensor of every new block gets gradient", new)]


def _backward(model: PreTrainedModel, tokens: Sequence[Tensor]) -> None:
    for tokens_BT in tokens:
        logits_BTV = model(tokens_BT, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits_BTV[0, :-1].float(), tokens_BT[0, 1:])
        loss.backward()


def _check_gradient(name: str, new: dict[str, dict[str, nn.Parameter]]) -> Check:
    norms = {
        f"{block} {tail}": 0.0 if (g := parameter.grad) is None else float(g.norm())
        for block, parameters in new.items()
        for tail, parameter in parameters.items()
    }
    dead = [key for key, norm in norms.items() if not 0 < norm < float("inf")]
    figure = f"{len(norms)} tensors, the smallest norm {min(norms.values()):.2g}"
    if dead:
        figure = f"{len(dead)} of {len(norms)} get none, e.g. {dead[0]}"
    return Check(name=name, passed=not dead, figure=figure)


def _frozen(model: nn.Module, new: dict[str, dict[str, nn.Parameter]]) -> Check:
    trained = {id(parameter) for parameters in new.values() for parameter in parameters.values()}
    old = {name: p for name, p in model.named_parameters() if id(p) not in trained}
    touched = [name for name, parameter in old.items() if parameter.grad is not None]
    figure = f"{len(touched)} get some, e.g. {touched[0]}" if touched else f"{len(old)} tensors"
    return Check(name="no old tensor gets gradient", passed=not touched, figure=figure)


@torch.no_grad()
def _check_drift(model: PreTrainedModel, tokens: Sequence[Tensor], base_logits_BTV: Sequence[Tensor]) -> Check:
    total, count = 0.0, 0
    for tokens_BT, expected_BTV in zip(tokens, base_logits_BTV, strict=True):
        moved_BTV = model(tokens_BT, use_cache=False).logits
        total += kl_nats(expected_BTV, moved_BTV)
        count += tokens_BT.numel()
    drift = total / count
    passed = 0 <= drift <= MAX_DRIFT_NATS
    advice = "" if passed else "; place the new blocks elsewhere, or train them with a far smaller learning rate"
    return Check(
        name=f"one AdamW step at lr {STEP_LEARNING_RATE:g} moves the model little",
        passed=passed,
        figure=f"KL {drift:.2g} nats a token, at most {MAX_DRIFT_NATS:g}{advice}",
    )


def kl_nats(base_BTV: Tensor, moved_BTV: Tensor) -> float:
    """KL(base || moved), summed over tokens, in float64: the figure lies far below float32's rounding."""
    base_log_BTV = base_BTV.double().log_softmax(-1)
    moved_log_BTV = moved_BTV.double().log_softmax(-1)
    return max(0.0, float((base_log_BTV.exp() * (base_log_BTV - moved_log_BTV)).sum()))
