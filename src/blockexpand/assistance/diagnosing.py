"""What this machine can do: cores, memory, devices, sandbox, optional libraries, and which sizes of model fit.

In: nothing but the machine. Out: a frozen `Diagnosis`, with the line that installs each missing thing. Which sizes
fit is computed from weights and optimiser state, with a part of the memory kept for activations; nothing is tried.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import ClassVar

from blockexpand import __version__
from blockexpand.assistance.sizes import SIZES, Size, state_bytes
from blockexpand.errors import SandboxError
from blockexpand.records import WRITTEN_WHEN_SET

_KEPT_FOR_ACTIVATIONS = 0.25
"""Share of a device's memory that the table of sizes leaves free."""

_LIBRARIES = (
    # package, what for, the line that installs it
    ("datasets", "sources of kind huggingface in `prepare`", "pip install 'blockexpand[datasets]'"),
    ("lm_eval", "the suites of `eval`", "pip install 'blockexpand[evaluation]'"),
    ("starlette", "`chat --web`", "pip install 'blockexpand[chat]'"),
    ("bitsandbytes", "base_precision int8 and nf4", "pip install 'blockexpand[quantised]'"),
    ("trl", "new blocks inside TRL's trainers", "pip install trl"),
    ("trackio", "track: [trackio]", "pip install trackio"),
    ("wandb", "track: [wandb]", "pip install wandb"),
    ("flash-attn", "attention: flash, on CUDA", "pip install flash-attn --no-build-isolation"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """An accelerator that torch sees."""

    name: str
    memory_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Library:
    """An optional library."""

    name: str
    what_for: str
    version: str | None
    """None where it is missing."""
    install: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """The largest model of the table that a way of working has room for."""

    mode: str
    largest: str | None
    """None where not even the smallest fits."""
    needed_bytes: int
    """By that model; by the smallest where none fits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a machine can do."""

    FORMAT: ClassVar[str] = "blockexpand.diagnosis"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    python: str
    torch: str
    transformers: str
    system: str
    num_cores: int
    memory_bytes: int
    available_bytes: int
    disk_free_bytes: int
    """Where it was called."""
    devices: tuple[Device, ...]
    sandbox: str | None
    """What isolates model-written code here; None where nothing does."""
    sandbox_problem: str | None
    compiler: str | None
    """Of C++, for compile_blocks."""
    libraries: tuple[Library, ...]
    fits: tuple[Fit, ...]
    """On the largest device, or in memory where there is none."""
    tiny_base: str | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """The folder of a base to try things on, where one is at hand."""


def diagnose(tiny_base: Path | None = None) -> Diagnosis:
    """Look at this machine; takes as long as importing torch does. `tiny_base` is told as it is."""
    import psutil
    import torch

    devices = tuple(
        Device(name=torch.cuda.get_device_name(n), memory_bytes=torch.cuda.get_device_properties(n).total_memory)
        for n in range(torch.cuda.device_count())
    )
    memory = psutil.virtual_memory()
    sandbox, problem = _sandbox()
    return Diagnosis(
        blockexpand_version=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=importlib.metadata.version("transformers"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        num_cores=os.cpu_count() or 1,
        memory_bytes=memory.total,
        available_bytes=memory.available,
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        devices=devices,
        sandbox=sandbox,
        sandbox_problem=problem,
        compiler=shutil.which("g++") or shutil.which("clang++"),
        libraries=tuple(_library(*row) for row in _LIBRARIES),
        fits=fits_in(max((device.memory_bytes for device in devices), default=memory.total)),
        tiny_base=str(tiny_base) if tiny_base is not None else None,
    )


def _sandbox() -> tuple[str | None, str | None]:
    from blockexpand.sandbox import describe

    try:
        return describe(), None
    except SandboxError as error:
        return None, str(error)


def _library(name: str, what_for: str, install: str) -> Library:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    return Library(name=name, what_for=what_for, version=version, install=install)


MODES: dict[str, tuple[float, str]] = {
    "run it, bf16": (2.0, "nothing"),
    "post-pretrain new blocks, base in bf16": (2.0, "new"),
    "post-pretrain new blocks, base in int8": (1.0, "new"),
    "post-pretrain new blocks, base in nf4": (0.5625, "new"),
    "tune every parameter (sft)": (2.0, "all"),
}
"""Ways of working: bytes of each number of the old blocks' matrices, and what has fp32 masters, gradients, moments."""


def fits_in(memory_bytes: int) -> tuple[Fit, ...]:
    """For each way of working, the largest size that leaves a quarter of this memory free."""
    room = (1 - _KEPT_FOR_ACTIVATIONS) * memory_bytes

    def fit(mode: str) -> Fit:
        needs = {size.name: state_bytes(size, *MODES[mode]) for size in SIZES}
        fitting = [name for name, needed in needs.items() if needed <= room]
        smallest: Size = SIZES[0]
        return Fit(
            mode=mode,
            largest=fitting[-1] if fitting else None,
            needed_bytes=needs[fitting[-1] if fitting else smallest.name],
        )

    return tuple(fit(mode) for mode in MODES)
