"""The config of a deeper stack, checked against what transformers makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from blockexpand.errors import PlanError
from blockexpand.expansion import rewrite
from blockexpand.families import known_families
from helpers import CONFIGS

FULL, SLIDING = "full_attention", "sliding_attention"
WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}


def run(family: str, config: dict[str, Any], sources: list[int]) -> dict[str, Any]:
    """The rewritten config; also checks that `before` is what is in force in the base."""
    base = {"model_type": family, "num_hidden_layers": 4} | config
    result = rewrite(known_families()[family], base, sources)
    assert set(result.before) == set(result.changes)
    in_force = CONFIGS[family](**base).to_dict()
    assert {k: in_force[k] for k in result.before} == result.before
    return result.changes


def kinds(family: str, config: dict[str, Any]) -> list[str]:
    """What transformers reads the config as, block by block."""
    return CONFIGS[family](**config).layer_types


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_without_per_layer_entries_only_the_depth_changes(family: str):
    assert run(family, {}, [0, 1, 1, 2, 3, 3]) == {"num_hidden_layers": 6}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_written_list_takes_each_new_blocks_kind_from_its_donor(family: str):
    changes = run(family, {"layer_types": [FULL, SLIDING, FULL, FULL]}, [0, 1, 1, 2, 3, 3])
    assert changes == {"num_hidden_layers": 6, "layer_types": [FULL, SLIDING, SLIDING, FULL, FULL, FULL]}


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("sources", "threshold"),
    [
        ([0, 1, 1, 2, 3, 3], 3),
        ([0, 0, 1, 2, 3], 3),
        ([0, 1, 2, 3, 2, 3], 2),
        ([0, 1, 2, 2, 3], 2),
    ],
)
def test_a_threshold_is_renumbered_while_it_still_is_one(family: str, sources: list[int], threshold: int):
    changes = run(family, WINDOWS, sources)
    expected = [FULL if source < 2 else SLIDING for source in sources]
    assert changes == {
        "num_hidden_layers": len(sources),
        "layer_types": expected,
        "max_window_layers": threshold,
    }
    # A reader that knows only the threshold comes to the same list.
    derived = {**WINDOWS, **changes, "layer_types": None}
    assert kinds(family, derived) == expected


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_threshold_that_no_longer_is_one_is_left_alone_and_said(family: str):
    base = {"model_type": family, "num_hidden_layers": 4, **WINDOWS}
    result = rewrite(known_families()[family], base, [0, 1, 2, 1, 2, 3])
    assert result.changes == {
        "num_hidden_layers": 6,
        "layer_types": [FULL, FULL, SLIDING, FULL, SLIDING, SLIDING],
    }
    assert result.before == {"num_hidden_layers": 4, "layer_types": [FULL, FULL, SLIDING, SLIDING]}
    assert len(result.notes) == 1
    assert "max_window_layers stays 2" in result.notes[0]
    assert kinds(family, base | result.changes) == result.changes["layer_types"]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    "off", [{"use_sliding_window": False}, {"use_sliding_window": None}, {"sliding_window": None}, {}]
)
def test_a_threshold_that_is_not_in_force_is_left_alone(family: str, off: dict[str, Any]):
    config = {"max_window_layers": 2} if not off else WINDOWS | off
    base = {"model_type": family, "num_hidden_layers": 4} | config
    assert rewrite(known_families()[family], base, [0, 1, 2, 3, 3]).changes == {"num_hidden_layers": 5}


def test_what_a_plan_could_not_say_again_is_refused():
    """Files may hold Infinity (transformers 4 wrote it); a plan is JSON, which does not."""
    config = {"model_type": "llama", "num_hidden_layers": 4, "layer_types": [FULL, FULL, FULL, float("inf")]}
    with pytest.raises(PlanError, match="layer_types holds .*inf.*expected finite numbers"):
        rewrite(known_families()["llama"], config, [0, 1, 1, 2, 3])
