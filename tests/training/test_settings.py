"""Settings: strict, bounded, and what follows from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockexpand.errors import RecordError
from blockexpand.records.run import BlocksArm, FullArm, LoraArm, OldBlocksArm, RetentionSettings, load_settings

RECIPE = """
model: m
out: o
arm: {kind: lora, rank: 8}
data: {domain: d, general: g}
domain_tokens: 1000
optimizer: {lr: 1e-3}
retention: {replay: 0.5, forgetting_budget: 0.01}
rows_per_step: 8
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_is_read_and_settings_replace_it(recipe: Path) -> None:
    settings = load_settings(recipe, ["optimizer.lr=5e-4", "seed=3"])
    assert settings.arm == LoraArm(kind="lora", rank=8)
    assert (settings.optimizer.lr, settings.seed) == (5e-4, 3)
    assert (settings.num_general_rows, settings.num_domain_rows) == (4, 4)
    assert settings.num_steps(32) == 8  # 4 rows of 32 tokens a step, 1000 domain tokens


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("{kind: blocks}", BlocksArm()),
        ("{kind: full}", FullArm(kind="full")),
        ("{kind: old-blocks, blocks: [1, 3]}", OldBlocksArm(kind="old-blocks", blocks=(1, 3))),
    ],
)
def test_arms_are_told_apart_by_their_kind(recipe: Path, text: str, arm: object) -> None:
    recipe.write_text(RECIPE.replace("{kind: lora, rank: 8}", text))
    assert load_settings(recipe).arm == arm


def test_a_recipe_may_leave_arm_and_retention_out(recipe: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("arm: {kind: lora, rank: 8}\n", "").replace("model: m", f"model: {tmp_path}")
    recipe.write_text(text.replace("retention: {replay: 0.5, forgetting_budget: 0.01}", ""))
    settings = load_settings(recipe)
    assert settings.arm == FullArm(kind="full")
    assert settings.retention == RetentionSettings()
    assert settings.num_general_rows == 2
    (tmp_path / "blockexpand.json").write_text("{}")
    assert load_settings(recipe).arm == BlocksArm()
    assert load_settings(recipe, ["retention=none"]).num_general_rows == 0
    assert load_settings(recipe, ["retention.replay=0.01"]).num_general_rows == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["optimiser.lr=1"], "unknown key 'optimiser'; did you mean 'optimizer'?"),
        (["optimizer.lr=fast"], "optimizer.lr: expected a number, got 'fast'"),
        (["optimizer.lr=0"], "optimizer.lr: expected more than 0, got 0.0"),
        (["optimizer.name=adam"], "optimizer.name: expected one of 'adamw', 'muon', got 'adam'"),
        (["domain_tokens=0"], "domain_tokens: expected more than 0, got 0"),
        (["seed=-1"], "seed: expected 0 or more, got -1"),
        (["retention.replay=1"], "retention.replay: expected a share in [0, 1), got 1.0"),
        (["retention.replay=0.99"], "rows_per_step: expected more than the 8 general rows"),
        (["rows_per_step=1"], "rows_per_step: expected more than the 1 general rows"),
        (["retention.forgetting_budget=0"], "forgetting_budget: expected more than 0, e.g. 0.01"),
        (["retention.kl_weight=0"], "expected 0 when ce_weight and kl_weight are both 0, got 0.5"),
        (["data.validation_rows=0"], "data.validation_rows: expected more than 0, to hold a forgetting_budget"),
        (["schedule.warmup=1"], "schedule.warmup: expected a share in [0, 1), got 1.0"),
        (["arm.rank=null"], "arm.rank: expected either rank or trainable_parameters, and not both, got None"),
        (["arm.rank=0"], "arm.rank: expected more than 0, got 0"),
        (
            ["arm.kind=lore"],
            "'blocks', 'old-blocks', 'full', 'lora', 'custom', got 'lore'",
        ),
        (["measure_every_steps=0"], "measure_every_steps: expected more than 0, got 0"),
    ],
)
def test_what_cannot_be_is_refused(recipe: Path, settings: list[str], words: str) -> None:
    with pytest.raises(RecordError) as caught:
        load_settings(recipe, settings)
    assert words in str(caught.value)


def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("- a\n")
    with pytest.raises(RecordError, match="holds list; expected a mapping of settings"):
        load_settings(tmp_path / "r.yaml")
