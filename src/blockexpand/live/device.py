"""Where a model runs, in what type of numbers, and how much memory there is: chosen and asked in this one place.

In: what was asked for ("auto", or a name of torch's). Out: the device, by `torch.accelerator` (CUDA, ROCm, XPU and MPS
alike), the CPU where there is none. Refused: a device that is not there. A lack of memory is said in our words.
"""

from __future__ import annotations

import contextlib
import platform
import resource
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import psutil
import torch

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import DeviceError

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
"""What the command line takes; auto is the checkpoint's own type."""
Precision = Literal["float32", "bfloat16"]
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""What a container may use (cgroup v2, Linux's admin guide)."""


def choose_device(asked: str = "auto", local_rank: int = 0) -> torch.device:
    """The device to run on: the accelerator that torch finds, otherwise the CPU; or the one asked for.

    Args:
        asked: "auto", "cpu", or an accelerator's name, with or without a number: "cuda", "cuda:1", "xpu", "mps".
        local_rank: With "auto", or a name without a number, which of several accelerators of this machine.

    Raises:
        DeviceError: it is no device, or is not there.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if asked == "auto":
        return torch.device("cpu") if found is None else _numbered(found.type, local_rank)
    there = ["cpu"] + ([] if found is None else [found.type])
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise DeviceError(f"{asked!r} is no device; expected auto, {', '.join(there)}; leave out --device") from None
    if device.type not in there:
        raise DeviceError(
            f"there is no {device.type!r} device that torch can use here; expected one of auto, {', '.join(there)}; "
            f"leave out --device, or install a torch built for it (this one is {torch.__version__})"
        )
    if device.type == "cpu":
        return torch.device("cpu")
    if device.index is not None and device.index >= torch.accelerator.device_count():
        raise DeviceError(
            f"there is no device {asked!r}; expected a number below {torch.accelerator.device_count()}; leave out "
            "the number"
        )
    return device if device.index is not None else _numbered(device.type, local_rank)


def _numbered(kind: str, local_rank: int) -> torch.device:
    return torch.device(kind, local_rank % max(1, torch.accelerator.device_count()))


def dtype_named(name: Dtype) -> torch.dtype | None:
    """The type of that name; None, the checkpoint's own, for "auto"."""
    return None if name == "auto" else {str(d)[6:]: d for d in (torch.float32, torch.float16, torch.bfloat16)}[name]


def own_dtype(folder: Path) -> torch.dtype:
    """The type that transformers gives a checkpoint's weights when none is asked for (`dtype="auto"`).

    It is what config.json states; where it states none, that of the first floating-point tensor in the files
    (transformers 5.24, modeling_utils.py). What FP8 weights stand for is bfloat16.

    Raises:
        CheckpointError: it is no checkpoint.
    """
    checkpoint = open_checkpoint(folder)
    text = checkpoint.config.get("text_config", {})
    for entries in (checkpoint.config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            stated = vars(torch).get(str(entries.get(key)).removeprefix("torch."))
            if isinstance(stated, torch.dtype) and stated.is_floating_point and stated.itemsize > 1:
                return stated
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return next((names[t.dtype] for t in checkpoint.tensors.values() if t.dtype in names), torch.bfloat16)


def training_dtype(precision: Literal["auto"] | Precision, folder: Path, device: torch.device) -> torch.dtype:
    """The type of a run's arithmetic and frozen weights: bfloat16 where the checkpoint is of 16 bits or fewer.

    float16 has too small a range for gradients that are not scaled, so it trains in bfloat16, too; a device that
    does not compute in bfloat16 trains in float32: CUDA before Ampere emulates it, and a processor for which oneDNN
    has no such products takes 4 to 34 times as long as in float32 (AVX2 alone, measured 2026-12-01, docs/log.md).
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    wide = own_dtype(folder).itemsize > 2
    return torch.float32 if wide or not computes_in_bfloat16(device) else torch.bfloat16


def inference_dtype(asked: Dtype, folder: Path, device: torch.device) -> torch.dtype:
    """The type that a model is measured and drawn from in: the checkpoint's own, or the one asked for.

    A checkpoint of bfloat16 runs in float32, which holds the same weights, where products of bfloat16 are slow.
    """
    if (named := dtype_named(asked)) is not None:
        return named
    own = own_dtype(folder)
    return torch.float32 if own is torch.bfloat16 and not computes_in_bfloat16(device) else own


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are at least as fast as those of float32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def describe_device(device: torch.device) -> str:
    """The machine in a few words, for records: processor, threads, and the accelerator's name."""
    told = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if device.type == "cpu":
        return told
    return f"{told}, {torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type}"


def total_bytes(device: torch.device) -> int:
    """The memory of the device; of the CPU, what this process may use of the machine's."""
    if device.type in ("cuda", "xpu"):
        return torch.accelerator.get_memory_info(device)[1]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    whole = psutil.virtual_memory().total
    return whole if limit == "max" else min(whole, int(limit))


def free_bytes(device: torch.device) -> int:
    """What is left of it now."""
    if device.type in ("cuda", "xpu"):
        return torch.accelerator.get_memory_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return min(psutil.virtual_memory().available, total_bytes(device))


def peak_bytes(device: torch.device) -> int:
    """The most that was allocated on the device so far; of the CPU, the largest resident size of this process."""
    if device.type in ("cuda", "xpu"):
        return torch.accelerator.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def memory_told(doing: str, device: torch.device, advice: str) -> Generator[None]:
    """Inside, a lack of memory becomes one line: what was being done, on what, what is free, and what to do.

    Raises:
        DeviceError: memory was not enough.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        raise DeviceError(
            f"{doing} needs more memory than {device.type} has: {free_bytes(device) / 1e9:,.1f} GB of "
            f"{total_bytes(device) / 1e9:,.1f} GB are free; {advice}"
        ) from error


def _is_lack_of_memory(error: BaseException) -> bool:
    """torch's CPU allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
