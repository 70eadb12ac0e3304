"""What a block writes is in proportion to each of its writers: why a pack can be scaled by them (docs/packs.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, Case, rows, write

from blockexpand.expansion import plan
from blockexpand.families import known_families
from blockexpand.families.modules import load_model
from blockexpand.live import expand_live
from blockexpand.live.state import expanded

ON_DISK_ONLY = ("llama4",)
"""Not built in memory (test_zoo.py); its text stack is llama4_text's."""
TOKENS = torch.tensor([[5, 17, 3, 60, 41, 8, 22, 90, 11, 2, 33]])


def writers_of(model: nn.Module) -> list[tuple[nn.Module, dict[str, tuple[nn.Parameter, float]]]]:
    """Each new block with its writers by name, and what makes each of them silent."""
    known = expanded(model)
    found = []
    for block in known.plan.new_blocks:
        module = known.new[block.id]
        parameters = dict(module.named_parameters())
        silent = {
            known.family.block.name_in_memory(tensor.tail): -1.0 if tensor.starts == "minus-one" else 0.0
            for tensor in known.plan.tensors_of(block.donor)
            if tensor.starts in ("zero", "minus-one")
        }
        found.append((module, {name: (parameters[name], value) for name, value in silent.items()}))
    return found


@pytest.mark.parametrize("row", rows(ZOO))
@torch.no_grad()
def test_each_writer_alone_writes_in_proportion(row: Case, tmp_path: Path):
    """No way to the residual stream has two writers in a row (alone, one would write nothing), and none is read twice.

    With all writers but one silent a block adds a constant plus that writer's product: half of it, half as much.
    """
    if row.family in ON_DISK_ONLY:
        pytest.skip("not built in memory")
    base = write(row, tmp_path / "base", torch.float32)
    model = load_model(base, dtype=torch.float32, loader=known_families()[row.family].loader)
    model.requires_grad_(False)
    expand_live(model, plan(base, **row.request))
    for module, writers in writers_of(model):
        calls: list[Any] = []
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs, calls=calls: calls.append((args, kwargs)), with_kwargs=True
        )
        model(TOKENS, use_cache=False)
        handle.remove()
        args, kwargs = calls[0]
        given = args[0] if args else kwargs["hidden_states"]

        def written(
            module: nn.Module = module, args: Any = args, kwargs: Any = kwargs, given: Tensor = given
        ) -> Tensor:
            output = module(*args, **kwargs)
            return (output[0] if isinstance(output, tuple) else output) - given

        assert not written().any(), "silent to begin with"
        for name, (parameter, silent) in writers.items():
            torch.manual_seed(0)
            gain = torch.randn_like(parameter)
            sizes = []
            for by in (1.0, 0.5, 2.0):
                parameter.copy_(gain * by + silent)
                sizes.append(written())
            parameter.fill_(silent)
            whole, half, double = sizes
            assert whole.any(), f"{name} alone writes nothing"
            torch.testing.assert_close(
                half, whole * 0.5, rtol=0, atol=2e-6 * float(whole.abs().max() + given.abs().max())
            )
            torch.testing.assert_close(
                double, whole * 2.0, rtol=0, atol=2e-6 * float(whole.abs().max() + given.abs().max())
            )
