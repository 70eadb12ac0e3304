"""The plans kept here, and the command that makes them again: `python tests/golden/plans/plan_requests.py`.

Make them again only for a change that is meant to move them, from a clean tree, and say why in the commit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from blockexpand.expansion import plan  # noqa: E402
from blockexpand.records.plan import Plan  # noqa: E402
from helpers import KNOWN_SHAPES, shape_only  # noqa: E402

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2-7b-llama-pro": ("llama2-7b", {"blocks": 8}),
    "tinyllama-uneven-pairs": ("tinyllama-1.1b", {"blocks": 6, "per_group": 2}),
    "mistral-7b-prefix": ("mistral-7b-v0.1", {"blocks": 4, "placement": "prefix"}),
    "qwen2.5-0.5b-explicit": ("qwen2.5-0.5b", {"after": [-1, 11, 23, 23]}),
    "qwen3-8b-uneven": ("qwen3-8b", {"blocks": 5}),
    "qwen3-8b-suffix": ("qwen3-8b", {"blocks": 2, "placement": "suffix"}),
}


def make(name: str) -> Plan:
    """The plan of this name, made now."""
    shape, request = REQUESTS[name]
    return plan(shape_only(shape, KNOWN_SHAPES[shape]), **request)


if __name__ == "__main__":
    for golden in REQUESTS:
        make(golden).save(HERE / f"{golden}.json")
