"""The stages of a whole story, with their times: the one record that this room defines.

In: what ran, how long it took, where. Out: `stages.json`. Refused: negative times, no stage at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from blockexpand.records import check, read_record, write_record

STAGES_NAME = "stages.json"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage."""

    name: str
    seconds: float
    """Wall time."""
    note: str = ""
    """What it made, in a few words."""

    def __post_init__(self) -> None:
        check(self.seconds >= 0, "seconds", self.seconds, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Stages:
    """A story from its beginning to its end; saved as `stages.json`."""

    FORMAT: ClassVar[str] = "blockexpand.stages"
    FORMAT_VERSION: ClassVar[int] = 1

    title: str = ""
    """The page's title; empty for one made of the base's name."""
    date: str = ""
    """When it ran, as people write it, e.g. 2026-11-24."""
    machine: str = ""
    """Processor, cores, memory, accelerator."""
    versions: dict[str, str]
    """Of what did the work, e.g. {"blockexpand": .., "torch": ..}."""
    stages: tuple[Stage, ...]
    """In the order they ran."""

    def __post_init__(self) -> None:
        check(len(self.stages) > 0, "stages", list(self.stages), "at least one stage")

    @property
    def total_seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def save(self, folder: Path | str) -> Path:
        """Write it into `folder` and return the file's path."""
        path = Path(folder) / STAGES_NAME
        write_record(path, self)
        return path


def read_stages(folder: Path | str) -> Stages:
    """The stages that `save` wrote into a folder."""
    return read_record(Stages, Path(folder) / STAGES_NAME)
