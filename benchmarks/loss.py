"""What does the chunked linear cross-entropy cost, in time, memory and exactness?

Compared, forward and backward to the hidden states, the head frozen as it is while new blocks train:

- chunked: `blockexpand.live.loss.linear_losses`, which training uses;
- full logits: `cross_entropy((hidden @ head.T).float(), targets)`, what transformers' models compute;
- torch linear_cross_entropy: `torch.nn.functional.linear_cross_entropy` as it comes, and with its chunking options;
  both only where torch has them (2.13).

Measured for fp32 and bf16: seconds a call (all four in one process, alternated, two calls of warming up); growth of
the process's peak memory over what was resident before the call (one process for each); the relative error of the
loss, and of the gradient in the 2-norm, against the same numbers in fp64. 2048 tokens, hidden 512, vocabulary 32000.

    .venv/bin/python benchmarks/loss.py [--rounds 9] [--tokens 2048] [--hidden 512] [--vocabulary 32000] [--json]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from measuring import (
    Row,
    Spread,
    alternate,
    machine,
    parser_of,
    peak_bytes,
    ratios,
    resident_bytes,
    run_task,
    serve_or,
    show,
)

if TYPE_CHECKING:
    from torch import Tensor

# R = positions, C = positions of one chunk, D = hidden size, V = vocabulary.

Loss = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]

_CHUNKED, _FULL = "chunked", "full logits"
_NUM_WARM_UP = 2
_REFERENCE_CHUNK = 256
"""Positions of one chunk of the fp64 reference; [256, 32000] fp64 is 66 MB."""


def _losses() -> dict[str, Loss]:
    """The rivals by name; the first is ours."""
    import torch
    from torch.nn import functional

    from blockexpand.live.loss import linear_losses
    from blockexpand.live.parts import Head

    def chunked(hidden_RD: Tensor, head_VD: Tensor, targets_R: Tensor) -> Tensor:
        weight_R = torch.full((len(targets_R),), 1.0 / len(targets_R))
        return linear_losses(hidden_RD, Head(weight_VD=head_VD), targets_R, weight_R)[0]

    def full(hidden_RD: Tensor, head_VD: Tensor, targets_R: Tensor) -> Tensor:
        return functional.cross_entropy((hidden_RD @ head_VD.T).float(), targets_R)

    losses: dict[str, Loss] = {_CHUNKED: chunked, _FULL: full}
    torchs: Any = vars(functional).get("linear_cross_entropy")
    options: Any = vars(torch.nn).get("LinearCrossEntropyOptions")
    if torchs is not None:
        losses["torch linear_cross_entropy"] = torchs
    if torchs is not None and options is not None:
        losses["torch linear_cross_entropy, chunking"] = partial(torchs, options=options())
    return losses


def _inputs(sizes: dict[str, int], dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states as a last norm leaves them, a head as models are initialised, targets."""
    import torch

    torch.manual_seed(0)
    hidden_RD = torch.randn(sizes["tokens"], sizes["hidden"]).to(vars(torch)[dtype])
    head_VD = (0.02 * torch.randn(sizes["vocabulary"], sizes["hidden"])).to(vars(torch)[dtype])
    return hidden_RD.requires_grad_(), head_VD, torch.randint(sizes["vocabulary"], (sizes["tokens"],))


def _called(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[float, Tensor]:
    """One call, forward and backward: the loss and the gradient of the hidden states."""
    value = loss(*inputs)
    value.backward()
    gradient_RD = inputs[0].grad
    assert gradient_RD is not None, "the loss has no gradient"
    inputs[0].grad = None
    return value.item(), gradient_RD


def _reference(inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[float, Tensor]:
    """The same from the same numbers in fp64."""
    import torch
    from torch.nn import functional

    hidden_RD, head_VD, targets_R = inputs[0].detach().double(), inputs[1].double(), inputs[2]
    total, gradients = 0.0, []
    for start in range(0, len(hidden_RD), _REFERENCE_CHUNK):
        chunk = slice(start, start + _REFERENCE_CHUNK)
        hidden_CD = hidden_RD[chunk].requires_grad_()
        loss = functional.cross_entropy(hidden_CD @ head_VD.T, targets_R[chunk], reduction="sum") / len(hidden_RD)
        gradients += torch.autograd.grad(loss, hidden_CD)
        total += loss.item()
    return total, torch.cat(gradients)


# --- tasks ------------------------------------------------------------------------------------------------


def _timed(sizes: dict[str, int], dtype: str, num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each call of each rival."""
    inputs = _inputs(sizes, dtype)

    def seconds(loss: Loss) -> float:
        start = time.perf_counter()
        _called(loss, inputs)
        return time.perf_counter() - start

    runs = {name: partial(seconds, loss) for name, loss in _losses().items()}
    return alternate(runs, num_rounds, _NUM_WARM_UP)


def _growth(sizes: dict[str, int], dtype: str, name: str) -> int:
    """By how many bytes one call lifts the peak over what was resident before it."""
    loss = _losses()[name]
    # A small call first: libraries are loaded and threads started outside the measurement.
    _called(loss, _inputs({"tokens": 64, "hidden": 64, "vocabulary": 64}, dtype))
    inputs = _inputs(sizes, dtype)
    before = resident_bytes()
    _called(loss, inputs)
    return peak_bytes() - before


def _errors(sizes: dict[str, int], dtype: str) -> dict[str, tuple[float, float]]:
    """Relative errors of loss and gradient against fp64."""
    inputs = _inputs(sizes, dtype)
    exact, exact_RD = _reference(inputs)
    errors = {}
    for name, loss in _losses().items():
        value, gradient_RD = _called(loss, inputs)
        of_gradient = (gradient_RD.double() - exact_RD).norm() / exact_RD.norm()
        errors[name] = (abs(value / exact - 1), of_gradient.item())
    return errors


# --- the table --------------------------------------------------------------------------------------------


def _rows(arguments: argparse.Namespace, dtype: str) -> list[Row]:
    sizes = {key: vars(arguments)[key] for key in ("tokens", "hidden", "vocabulary")}
    common = {"sizes": sizes, "dtype": dtype}
    seconds = run_task(__file__, "timed", **common, num_rounds=arguments.rounds)
    errors = run_task(__file__, "errors", **common)
    growth = {name: run_task(__file__, "growth", **common, name=name) for name in seconds}
    return [
        {
            "loss": name,
            "numbers": dtype,
            "seconds": Spread.of(found),
            "times full logits": ratios(found, seconds[_FULL]),
            "growth MB": growth[name] / 1e6,
            "error of loss": errors[name][0],
            "error of gradient": errors[name][1],
        }
        for name, found in seconds.items()
    ]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32000)
    arguments = parser.parse_args()
    facts = machine()
    rows = [row for dtype in ("float32", "bfloat16") for row in _rows(arguments, dtype)]
    sizes = f"{arguments.tokens} tokens, hidden {arguments.hidden}, vocabulary {arguments.vocabulary}"
    show(f"loss, {sizes}, {arguments.rounds} rounds", facts, rows, arguments.json)


if __name__ == "__main__":
    serve_or(main, {"timed": _timed, "growth": _growth, "errors": _errors})
