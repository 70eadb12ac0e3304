"""The verb doctor: what this machine can do, what is missing, and the line that installs it.

In: nothing but the machine. Out: a frozen `Diagnosis`. Torch is asked in a process of its own, so that a torch that
cannot be imported is a finding and not the end.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from blockexpand import __version__
from blockexpand.cli.output import DEFAULTS, DONE, Shared, show
from blockexpand.errors import SandboxError
from blockexpand.records import WRITTEN_WHEN_SET
from blockexpand.units import format_bytes

_LIBRARIES = (
    # package, what for, the line that installs it
    ("datasets", "sources of kind huggingface in `prepare`", "pip install 'blockexpand[datasets]'"),
    ("lm_eval", "the suites of `eval`", "pip install 'blockexpand[evaluation]'"),
    ("starlette", "`serve`", "pip install 'blockexpand[chat]'"),
    ("bitsandbytes", "base_precision int8 and nf4", "pip install 'blockexpand[quantised]'"),
    ("trl", "new blocks inside TRL's trainers", "pip install trl"),
    ("trackio", "track: [trackio]", "pip install trackio"),
    ("wandb", "track: [wandb]", "pip install wandb"),
    ("flash-attn", "attention: flash, on CUDA", "pip install flash-attn --no-build-isolation"),
)

_ASK_TORCH = """
import json, torch
found = []
if torch.accelerator.is_available():
    module = torch.get_device_module(torch.accelerator.current_accelerator())
    for n in range(torch.accelerator.device_count()):
        try:
            found.append((module.get_device_name(n), *module.mem_get_info(n)[::-1]))
        except (AttributeError, NotImplementedError):
            found.append((f"{torch.accelerator.current_accelerator()}:{n}", None, None))
print(json.dumps(found))
"""
_SECONDS_FOR_TORCH = 120.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A device that torch sees."""

    name: str
    memory_bytes: int | None
    """None where the device does not say."""
    free_bytes: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Library:
    """An optional library."""

    name: str
    what_for: str
    version: str | None
    """None where it is missing."""
    install: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a machine can do."""

    FORMAT: ClassVar[str] = "blockexpand.diagnosis"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    python: str
    torch: str | None
    transformers: str | None
    system: str
    num_cores: int
    memory_bytes: int
    available_bytes: int
    disk_free_bytes: int
    """Where it was called."""
    devices: tuple[Accelerator, ...]
    device_problem: str | None = dataclasses.field(metadata=WRITTEN_WHEN_SET)
    """Why torch could not be asked."""
    sandbox: str | None
    """What isolates model-written code here; None where nothing does."""
    sandbox_problem: str | None
    compiler: str | None
    """Of C++, for compile_blocks."""
    libraries: tuple[Library, ...]
    tiny_base: str
    """The folder of the base that ships with blockexpand, to try things on."""
    tiny_base_training_bytes: int
    """What training two new blocks in it takes beside the activations, as `plan` counts it."""


def doctor(*, common: Shared = DEFAULTS) -> int:
    """Say what this machine can do, what is missing, and the line that installs it."""
    found = diagnose()
    show(common, found, describe_diagnosis(found))
    return DONE


def diagnose() -> Diagnosis:
    """Look at this machine; takes as long as importing torch in another process does."""
    import psutil

    from blockexpand.data import TINY_BASE
    from blockexpand.expansion import plan

    memory = psutil.virtual_memory()
    devices, device_problem = _devices()
    sandbox, sandbox_problem = _sandbox()
    return Diagnosis(
        blockexpand_version=__version__,
        python=platform.python_version(),
        torch=_version("torch"),
        transformers=_version("transformers"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        num_cores=os.cpu_count() or 1,
        memory_bytes=memory.total,
        available_bytes=memory.available,
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        devices=devices,
        device_problem=device_problem,
        sandbox=sandbox,
        sandbox_problem=sandbox_problem,
        compiler=shutil.which("g++") or shutil.which("clang++"),
        libraries=tuple(
            Library(name=name, what_for=what_for, version=_version(name), install=install)
            for name, what_for, install in _LIBRARIES
        ),
        tiny_base=str(TINY_BASE),
        tiny_base_training_bytes=plan(TINY_BASE, 2).cost.training_memory_bytes,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[tuple[Accelerator, ...], str | None]:
    """What torch sees, or why it cannot be asked."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_SECONDS_FOR_TORCH
        )
    except subprocess.TimeoutExpired:
        return (), f"torch said nothing for {_SECONDS_FOR_TORCH:.0f} s"
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        return (), f"torch cannot be asked: {last[0]}"
    rows = json.loads(done.stdout.strip().splitlines()[-1])
    return tuple(Accelerator(name=name, memory_bytes=total, free_bytes=free) for name, total, free in rows), None


def _sandbox() -> tuple[str | None, str | None]:
    from blockexpand import sandbox

    try:
        return sandbox.describe(), None
    except SandboxError as error:
        return None, str(error)


def describe_diagnosis(found: Diagnosis) -> str:
    """The diagnosis in lines."""
    lines = [
        f"blockexpand {found.blockexpand_version}, Python {found.python}, torch {found.torch or 'missing'}, "
        f"transformers {found.transformers or 'missing'}",
        f"{found.system}: {found.num_cores} cores, {_bytes(found.memory_bytes)} of memory "
        f"({_bytes(found.available_bytes)} free), {_bytes(found.disk_free_bytes)} of disk free here",
    ]
    lines += [
        f"  device    {one.name}, {_bytes(one.memory_bytes)} ({_bytes(one.free_bytes)} free)" for one in found.devices
    ]
    if not found.devices:
        lines.append(f"  device    {found.device_problem or 'none that torch sees; everything runs on the CPU'}")
    sandbox = found.sandbox.removeprefix("sandbox: ") if found.sandbox else found.sandbox_problem or "none"
    lines.append(f"  sandbox   {sandbox.replace(chr(10), chr(10) + ' ' * 10)}")
    lines.append(f"  compiler  {found.compiler or 'none: compile_blocks needs one; install g++ (apt install g++)'}")
    lines += ["", "Optional libraries:"]
    lines += [
        f"  {one.name:<13} {one.what_for:<44} {one.version or f'missing: {one.install}'}" for one in found.libraries
    ]
    lines += [
        "",
        f"Training two new blocks in the tiny base takes {_bytes(found.tiny_base_training_bytes)} and the activations; "
        "what a model of yours",
        "takes: `blockexpand plan MODEL --blocks N`, `train RECIPE --dry-run`.",
        "Words are completed after `blockexpand --install-completion` (bash, zsh, fish).",
        "A tiny base ships with blockexpand; after this line the docs' BASE is $BASE in your shell:",
        f"BASE={shlex.quote(found.tiny_base)}",
    ]
    return "\n".join(lines)


def _bytes(number: int | None) -> str:
    return "unknown" if number is None else format_bytes(number)
