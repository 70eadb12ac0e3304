"""The one choice of device and precision, and what is said when memory is short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blockexpand import live
from blockexpand.errors import DeviceError
from blockexpand.expansion import expand, plan
from blockexpand.live.device import (
    choose_device,
    computes_in_bfloat16,
    dtype_named,
    free_bytes,
    memory_told,
    own_dtype,
    total_bytes,
    training_dtype,
)
from helpers import edit_config, make_base

CPU = torch.device("cpu")
ABSENT = next(kind for kind in ("cuda", "xpu") if not torch.get_device_module(kind).is_available())


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == CPU
    for asked in (ABSENT, "tpu", "cpu:x"):
        with pytest.raises(DeviceError, match=asked):
            choose_device(asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_checkpoint_is_loaded_in_its_own_type_as_transformers_does(tmp_path: Path, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    base = make_base(tmp_path / "base", dtype=dtype)
    expand(base, tmp_path / "deeper", plan(base, 2))
    for folder in (base, tmp_path / "deeper"):
        assert own_dtype(folder) == AutoModelForCausalLM.from_pretrained(folder).dtype == dtype
    assert {p.dtype for p in live.load(tmp_path / "deeper")[0].parameters()} == {dtype}
    assert {p.dtype for p in live.load(tmp_path / "deeper", device="meta")[0].parameters()} == {dtype}
    edit_config(base, dtype=None)
    assert own_dtype(base) == dtype
    short = torch.bfloat16 if computes_in_bfloat16(CPU) else torch.float32
    assert training_dtype("auto", base, CPU) == (torch.float32 if dtype == torch.float32 else short)
    assert training_dtype("float32", base, CPU) == torch.float32
    assert dtype_named("auto") is None
    assert json.loads((base / "config.json").read_text())["dtype"] is None


def test_a_lack_of_memory_is_said_in_one_line_with_what_to_do() -> None:
    assert 0 < free_bytes(CPU) <= total_bytes(CPU)
    with pytest.raises(DeviceError, match="fewer rows"), memory_told("a pass", CPU, "take fewer rows"):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="shape"), memory_told("a pass", CPU, "take fewer rows"):
        torch.zeros(3) + torch.zeros(4).reshape(2, 3)
