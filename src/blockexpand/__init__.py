"""blockexpand: teach a language model a domain without losing the rest.

Every name below is a function or value of one room, imported when it is first used, so that
`import blockexpand` costs nothing. Rooms are nouns (`blockexpand.expansion`), functions are verbs
(`blockexpand.plan`), so that neither ever shadows the other.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from blockexpand.comparison import compare
    from blockexpand.corpus import prepare
    from blockexpand.errors import BlockexpandError
    from blockexpand.evaluation.measurement import evaluate
    from blockexpand.expansion import expand, plan, verify
    from blockexpand.learn import learn
    from blockexpand.live import adopt, bypass, detach, expand_live, freeze, load, new_blocks
    from blockexpand.packs import attach as attach_packs
    from blockexpand.packs import detach as detach_packs
    from blockexpand.packs import extract as extract_pack
    from blockexpand.packs import load_with_packs, read_pack
    from blockexpand.publishing import push
    from blockexpand.records.plan import Plan, read_plan
    from blockexpand.reporting import report
    from blockexpand.training import BlockExpansionCallback, train

# The same list as above, for use: name -> room, or room:name where it has another name there (`detach` is also one of
# `live`). A test holds the two together.
_ROOMS = {
    "BlockExpansionCallback": "training",
    "BlockexpandError": "errors",
    "Plan": "records.plan",
    "adopt": "live",
    "attach_packs": "packs:attach",
    "bypass": "live",
    "compare": "comparison",
    "detach": "live",
    "detach_packs": "packs:detach",
    "evaluate": "evaluation.measurement",
    "expand": "expansion",
    "expand_live": "live",
    "extract_pack": "packs:extract",
    "freeze": "live",
    "learn": "learn",
    "load": "live",
    "load_with_packs": "packs",
    "new_blocks": "live",
    "plan": "expansion",
    "prepare": "corpus",
    "push": "publishing",
    "read_pack": "packs",
    "read_plan": "records.plan",
    "report": "reporting",
    "train": "training",
    "verify": "expansion",
}

__all__ = [
    # the whole job
    "learn",
    # grow
    "plan",
    "read_plan",
    "Plan",
    "expand",
    "verify",
    # a model in memory
    "expand_live",
    "load",
    "adopt",
    "bypass",
    "detach",
    "freeze",
    "new_blocks",
    # learn
    "prepare",
    "train",
    "BlockExpansionCallback",
    # ship
    "extract_pack",
    "read_pack",
    "attach_packs",
    "detach_packs",
    "load_with_packs",
    "push",
    # measure and tell
    "evaluate",
    "compare",
    "report",
    "BlockexpandError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'blockexpand' has no attribute {name!r}")
    from importlib import import_module

    room, _, inside = _ROOMS[name].partition(":")
    return vars(import_module(f"blockexpand.{room}"))[inside or name]


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """This package, in which a function stands before the file that has its name."""

    def __setattr__(self, name: str, value: Any) -> None:
        # What imports `blockexpand.learn`, the file, leaves the file under that name: the function is meant.
        if isinstance(value, ModuleType) and _ROOMS.get(name) == name:
            value = vars(value).get(name, value)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
