"""What is to be published, read from its records: a pack, or a checkpoint with new blocks.

In: the folder of a pack, of a run, or one that `expand`, `train` or `pack attach` wrote. Out: a frozen `Published`.
Refused: any other folder. No tensor is read, and neither torch nor transformers is imported.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from blockexpand.checkpoint import locate_model
from blockexpand.digests import digest_json
from blockexpand.errors import PublishError
from blockexpand.expansion import identity_of
from blockexpand.packs import Card, Pack, read_pack
from blockexpand.records import read_json
from blockexpand.records.expansion import ExpansionRecord, read_expansion
from blockexpand.records.plan import Plan
from blockexpand.staging import PACK_NAME, RECORD_NAME

Kind = Literal["pack", "checkpoint"]
T = TypeVar("T", str, int, float)

_RUN, _EXPANSION = "blockexpand.run", ExpansionRecord.FORMAT


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Held-out losses of a run's model or of its base, on the sample that the run steered by."""

    domain: float
    """Nats per token."""
    general: float | None
    """Nats per token; None where no general text was measured."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of the run that trained the blocks; None where its record does not say."""

    steps: int | None
    tokens: int | None
    """Positions trained on, domain and general, padding included."""
    trainable: int | None
    """Parameters that trained."""
    lr: float | None
    optimizer: str | None
    precision: str | None
    seed: int | None
    domain: str | None
    """The name of the prepared folder of domain text."""
    general: str | None
    """The same of general text."""
    replay: float | None
    kl_weight: float | None
    budget: float | None
    """The forgetting that was allowed."""
    base: Measured | None
    best: Measured | None
    digest: str | None
    """Of its settings."""
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is to be published."""

    kind: Kind
    folder: Path
    """The folder that goes."""
    name: str
    """What it is called."""
    plan: Plan
    """Where the new blocks are, and in which base."""
    version: str
    """The blockexpand that wrote it."""
    training: dict[str, Any] | None
    """What its record says of training; None: the blocks are as they were inserted."""
    run: Run | None
    card: Card
    """What its record has for the card."""
    pack: Pack | None = None
    record: ExpansionRecord | None = None
    """Of a checkpoint."""

    @property
    def blocks(self) -> str:
        """The digest of which blocks they are."""
        return self.pack.record.fingerprint if self.pack else identity_of(self.plan)

    @property
    def state(self) -> str:
        """The digest of how they were trained."""
        return digest_json([self.training, [pack.fingerprint for pack in self.record.packs] if self.record else []])

    @property
    def other_arms(self) -> tuple[str, ...]:
        """The arms of its runs that trained more than the new blocks; then the base is not inside any more."""
        found, training = [], self.training
        while isinstance(training, dict):
            found.append(training.get("arm", "blocks"))
            training = training.get("before")
        return tuple(str(arm) for arm in reversed(found) if arm != "blocks")


def read_published(folder: str | Path) -> Published:
    """What is in a folder.

    Raises:
        PublishError: nothing that can be published.
        PackError, RecordError: its record is broken.
    """
    path = Path(folder)
    if (path / PACK_NAME).is_file():
        return _of_pack(read_pack(path))
    found = _format(path)
    if found is None:
        path = locate_model(folder)
        found = _format(path)
    if found == _RUN:
        if not (path / "model" / RECORD_NAME).is_file():
            raise PublishError(
                f"{folder} is a run that gave no checkpoint with new blocks; expected one whose model/ has "
                f"{RECORD_NAME}; publish a run of the arm blocks, on a folder that expand wrote"
            )
        return _of_checkpoint(path / "model", path)
    if found == _EXPANSION:
        above = path.absolute().parent
        return _of_checkpoint(path, above if path.name == "model" and _format(above) == _RUN else None)
    what = f"its {RECORD_NAME} is {found!r}" if found else f"it has no {PACK_NAME} and no {RECORD_NAME}"
    raise PublishError(
        f"{folder} cannot be published: {what}; expected a pack, a finished run, or a folder that expand, train or "
        "pack attach wrote; check the path"
    )


def _format(folder: Path) -> str | None:
    path = folder / RECORD_NAME
    data = read_json(path) if path.is_file() else None
    return str(data.get("format")) if isinstance(data, dict) else None


def _of_pack(pack: Pack) -> Published:
    record = pack.record
    data = (record.training or {}).get("run")
    run = read_run(data) if isinstance(data, dict) else None
    if run is not None and record.scaled is not None:
        run = dataclasses.replace(run, best=None)  # measured of the blocks before they were scaled
    return Published(
        kind="pack",
        folder=pack.folder,
        name=record.name,
        plan=record.plan,
        version=record.blockexpand_version,
        training=record.training,
        run=run,
        card=record.card,
        pack=pack,
    )


def _of_checkpoint(folder: Path, run_folder: Path | None) -> Published:
    record = read_expansion(folder)
    run = None
    if run_folder is not None:
        data = read_json(run_folder / RECORD_NAME)
        same = data.get("settings_digest") == (record.training or {}).get("settings_digest")
        run = read_run(data) if same else None
    return Published(
        kind="checkpoint",
        folder=folder,
        name=(run_folder or folder).absolute().name,
        plan=record.plan,
        version=record.blockexpand_version,
        training=record.training,
        run=run,
        card=Card(),
        record=record,
    )


def read_run(data: dict[str, Any]) -> Run:
    """A run's record, which may come with a stranger's pack: what has another type than it should is left out."""
    versions = data.get("versions")
    domain, general = (_at(data, f"settings.data.{name}", str) for name in ("domain", "general"))
    return Run(
        steps=_at(data, "num_steps", int),
        tokens=_at(data, "num_tokens", int),
        trainable=_at(data, "num_trainable_parameters", int),
        lr=_at(data, "settings.optimizer.lr", float),
        optimizer=_at(data, "settings.optimizer.name", str),
        precision=_at(data, "settings.precision", str),
        seed=_at(data, "settings.seed", int),
        domain=Path(domain).name if domain else None,
        general=Path(general).name if general else None,
        replay=_at(data, "settings.retention.replay", float),
        kl_weight=_at(data, "settings.retention.kl_weight", float),
        budget=_at(data, "settings.retention.forgetting_budget", float),
        base=_measured(data.get("base")),
        best=_measured(data.get("best")),
        digest=_at(data, "settings_digest", str),
        versions={str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
    )


def _measured(data: Any) -> Measured | None:
    domain = _at(data, "domain", float) if isinstance(data, dict) else None
    return None if domain is None else Measured(domain=domain, general=_at(data, "general", float))


def _at(data: Any, path: str, kind: type[T]) -> T | None:
    for key in path.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return kind(data)
    return data if isinstance(data, kind) and not isinstance(data, bool) else None


def hub_base(published: Published) -> tuple[str | None, str | None]:
    """The base's name on the hub and its commit, where the plan was made from there."""
    name, _, commit = (published.plan.base.hub or "").partition("@")
    return name or None, commit or None
