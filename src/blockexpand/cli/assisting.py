"""The verbs for whoever begins: doctor, init."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show
from blockexpand.errors import UsageError
from blockexpand.units import format_bytes

if TYPE_CHECKING:
    from blockexpand.assistance import Diagnosis


def doctor(*, common: Shared = DEFAULTS) -> int:
    """Say what this machine can do, what is missing, and the line that installs it."""
    from blockexpand.assistance import diagnose
    from blockexpand.demonstration.paths import BASE

    found = diagnose(BASE)
    show(common, found, _told(found))
    return DONE


def _told(found: Diagnosis) -> str:
    lines = [
        f"blockexpand {found.blockexpand_version}, Python {found.python}, torch {found.torch}, "
        f"transformers {found.transformers}",
        f"{found.system}: {found.num_cores} cores, {format_bytes(found.memory_bytes)} of memory "
        f"({format_bytes(found.available_bytes)} free), {format_bytes(found.disk_free_bytes)} of disk free here",
    ]
    lines += [f"  device    {device.name}, {format_bytes(device.memory_bytes)}" for device in found.devices]
    if not found.devices:
        lines.append("  device    none that torch sees; everything runs on the CPU")
    sandbox = found.sandbox.removeprefix("sandbox: ") if found.sandbox else found.sandbox_problem or "none"
    lines.append(f"  sandbox   {sandbox.replace(chr(10), chr(10) + ' ' * 10)}")
    lines.append(f"  compiler  {found.compiler or 'none: compile_blocks needs one; install g++ (apt install g++)'}")
    lines += ["", "Optional libraries:"]
    for library in found.libraries:
        state = library.version or f"missing: {library.install}"
        lines.append(f"  {library.name:<13} {library.what_for:<44} {state}")
    where = "the largest device" if found.devices else "memory"
    lines += [
        "",
        f"Largest model that fits in {where}, with a new block for every four (computed, a quarter left free):",
    ]
    for fit in found.fits:
        size = fit.largest or "none"
        lines.append(f"  {fit.mode:<40} {size:<5} {format_bytes(fit.needed_bytes)}")
    if found.tiny_base is not None:
        told = "A tiny base ships with blockexpand; after this line the docs' BASE is $BASE in your shell:"
        lines += ["", told, f"BASE={shlex.quote(found.tiny_base)}"]
    return "\n".join(lines)


_QUESTIONS = {
    "model": "Folder of the expanded checkpoint",
    "data": "Prepared folder to learn from",
    "general": "Prepared folder of general text, or self",
    "tokens": "Tokens to train on",
    "budget": "Forgetting allowed, e.g. 0.01",
    "machine": "Machine: cpu, gpu-24gb or gpu-80gb",
}
"""What `init` asks where a flag does not say."""


@Parameter(name="*", negative="")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What is known already, and not asked."""

    model: str | None = None
    """The folder of the expanded checkpoint."""
    data: str | None = None
    """The folder that prepare wrote: domain text, or chats."""
    general: str | None = None
    """A prepared folder of general text; self: the base writes some."""
    tokens: int | None = None
    """How many domain tokens to train on."""
    budget: float | None = None
    """How much the general loss may rise, as a share."""
    machine: Literal["cpu", "gpu-24gb", "gpu-80gb"] | None = None
    """What it is to run on."""


NONE = Answers()


def init(
    recipe: Path = Path("recipe.yaml"),
    /,
    *,
    kind: Literal["train", "sft"] = "train",
    answers: Annotated[Answers, Parameter(name="*")] = NONE,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """Write a first recipe, with comments, after a few questions.

    Parameters
    ----------
    recipe
        The YAML file to write.
    kind
        What it is for: post-pretraining new blocks, or instruction tuning.
    overwrite
        Replace the file.
    """
    from blockexpand.assistance import Draft, draft_recipe

    path = draft_recipe(Draft(kind=kind, **_answered(vars(answers), Draft, kind)), recipe, overwrite)
    show(common, {"recipe": str(path)}, f"{path}\nnext: blockexpand {kind} {path} --dry-run")
    return DONE


def _answered(given: dict[str, Any], draft: Any, kind: str) -> dict[str, Any]:
    """The flags, and answers to what they leave open; without a terminal the defaults."""
    defaults = {name: field.default for name, field in draft.__dataclass_fields__.items()}
    skipped = {"general", "budget"} if kind == "sft" else set()
    values = {name: value for name, value in given.items() if value is not None}
    missing = [name for name in ("model", "data") if name not in values]
    if not sys.stdin.isatty():
        if missing:
            flags = " and ".join(f"--{name}" for name in missing)
            raise UsageError(f"{flags} missing, and there is no terminal to ask on; expected both; give {flags}")
        return values
    for name, question in _QUESTIONS.items():
        if name in values or name in skipped:
            continue
        default = "" if name in missing else f" [{defaults[name]}]"
        said = input(f"{question}{default}: ").strip()
        if said or name in missing:
            values[name] = _number(name, said)
    return values


def _number(name: str, said: str) -> Any:
    kinds = {"tokens": int, "budget": float}
    if name not in kinds:
        return said
    try:
        return kinds[name](said.replace("_", "").replace(",", ""))
    except ValueError:
        raise UsageError(
            f"{name} {said!r} is not a number; expected e.g. {'100000000' if name == 'tokens' else '0.01'}"
        ) from None
