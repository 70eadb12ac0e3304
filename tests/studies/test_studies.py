"""Studies: the recipes, generated tasks, and one small study of each kind, run whole."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from studies.recipe import BaseRecipe, known_studies, load_study
from studies.sequence import backward_transfer, overall, with_own_packs
from studies.study import study
from studies.tasks import TASKS, make_task
from studies.token_shift import token_shift

from blockexpand.errors import RecordError, UsageError
from blockexpand.records import from_plain
from blockexpand.records.comparison import CompareRecipe, read_comparison
from blockexpand.training import load_model
from comparison_ground import Place
from lm_helpers import make_lm
from studies import bases, sequence

ROOT = Path(__file__).parents[2]
STUDIES = {"depth", "frontier", "init", "perplexity", "placement", "scale", "sequence", "shift", "strategies"}


def test_studies_use_public_names_only() -> None:
    """A name of `blockexpand`, of a room's own list, or of a record."""
    private = []
    for path in sorted((ROOT / "studies").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("blockexpand"):
                continue
            parts = (node.module or "").split(".")
            allowed = getattr(importlib.import_module(node.module), "__all__", None)
            deep = len(parts) > 2 and parts[1] != "records"
            names = [alias.name for alias in node.names if allowed is not None and alias.name not in allowed]
            if deep or names:
                private.append(f"{path.relative_to(ROOT)}: {node.module} {names}")
    assert private == []


def test_the_recipes_can_be_read_and_overridden() -> None:
    assert set(known_studies()) >= STUDIES
    for name in STUDIES:
        recipe = load_study(name)[1]
        if recipe.compare:
            plain = {**recipe.compare, "base": "b", "out": "o", "data": {"domain": "d", "general": "g"}}
            assert len(from_plain(CompareRecipe, plain, name).arms) > 1
    _, recipe = load_study("depth", ["compare.seeds=[3, 4]", "texts.test_tokens=99"])
    assert (recipe.compare["seeds"], recipe.texts.test_tokens) == ([3, 4], 99)
    with pytest.raises(UsageError, match="depht"):
        load_study("depht")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("compare: {}", r"\[\]"),
        ("compare: {out: x, runs: y}", r"\['out', 'runs'\]"),
        ("compare: {a: 1}\nbases: [{name: x, hidden_size: 6, num_heads: 2, new_blocks: 1}]", "6"),
        ("compare: {a: 1}\nbases: [{name: x, new_blocks: 0}]", "0"),
    ],
)
def test_studies_that_make_no_sense_are_refused(tmp_path: Path, text: str, value: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"title: t\nquestion: q\npaper: p\n{text}\n")
    with pytest.raises(RecordError, match=f"got {value}"):
        load_study(path)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_tasks_are_made_here_and_hold_questions_out(name: str) -> None:
    train, test = make_task(name, 200, 40)
    assert (len(train), len(test)) == (200, 40)
    assert not {one.prompt for one in train} & {one.prompt for one in test}
    assert make_task(name, 200, 40) == (train, test)
    assert make_task(name, 200, 40, seed=1)[0] != train
    for one in train:
        if name == "sums":
            assert int(one.answer) == sum(map(int, one.prompt.removesuffix(" =").split(" + ")))
        if name == "stories":
            assert int(one.answer) == sum(int(word) for word in one.prompt.split() if word.isdigit())


def test_op_and_bwt_are_traces() -> None:
    matrix_TT = np.array([[0.9, 0.1, 0.0], [0.5, 0.8, 0.2], [0.3, 0.6, 0.7]])
    assert overall(matrix_TT) == pytest.approx((0.3 + 0.6 + 0.7) / 3)
    assert backward_transfer(matrix_TT) == pytest.approx(((0.3 - 0.9) + (0.6 - 0.8) + 0.0) / 3)
    own_TTQ = with_own_packs(np.arange(8.0).reshape(2, 2, 2), np.array([[-1.0, -2.0], [-3.0, -4.0]]))
    assert own_TTQ.tolist() == [[[0, 1], [-3, -4]], [[0, 1], [6, 7]]]
    assert backward_transfer(own_TTQ.mean(axis=2)) == 0.0


@pytest.mark.slow
def test_tasks_in_a_row(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke test: a study from its recipe to its tables, twice, the second time without training."""
    monkeypatch.setattr(sequence, "ROW_TOKENS", 64)
    recipe = tmp_path / "row.yaml"
    recipe.write_text(
        f"""
title: A row
question: What is left?
paper: nothing
base: {place.base}
texts: {{domain: {place.domain}, general: {place.general}}}
sequence:
  tasks: [sums, code]
  num_train: 24
  num_test: 6
  tokens_per_task: 128
  rows_per_step: 2
  retention: {{replay: 0.0}}
  methods:
    - {{name: packs, arm: {{kind: blocks}}, blocks: 1, per_task: true, lr: 1e-2}}
    - {{name: full, arm: {{kind: full}}, lr: 1e-3}}
"""
    )
    text = study(recipe, tmp_path / "all")
    assert "| R of full | sums | code |" in text
    record = tmp_path / "all" / "row" / "runs" / "full-seed0" / "2-code" / "blockexpand.json"
    before = record.stat().st_mtime_ns
    assert study(recipe, tmp_path / "all") == text
    assert record.stat().st_mtime_ns == before


COMPARE = """
title: Sizes
question: Does it grow?
paper: nothing
texts: {{domain: {domain}, general: {general}, validation_rows: 2}}
bases:
  - {{name: four, folder: {base}, new_blocks: 2}}
  - {{name: two, folder: {other}, new_blocks: 1}}
shift: {{num_prompts: 4, prompt_tokens: 8, new_tokens: 4}}
compare:
  domain_tokens: 128
  rows_per_step: 2
  retention: {{replay: 0.5}}
  arms:
    - {{name: new, arm: {{kind: blocks}}, plan: {{blocks: 9}}, lrs: [1e-2]}}
    - {{name: LoRA, arm: {{kind: lora, trainable_parameters: 1}}, lrs: [1e-3]}}
"""


@pytest.mark.slow
def test_a_study_of_scale_compares_each_base_with_blocks_of_its_own(place: Place, tmp_path: Path) -> None:
    other = make_lm(tmp_path / "other", blocks=2)
    recipe = tmp_path / "sizes.yaml"
    recipe.write_text(COMPARE.format(domain=place.domain, general=place.general, base=place.base, other=other))
    text = study(recipe, tmp_path / "all")
    assert "| four |" in text
    assert "| two |" in text
    sizes = {
        name: [t.num_trainable_parameters for t in read_comparison(tmp_path / "all" / "sizes" / name).trials]
        for name in ("four", "two")
    }
    assert sizes["four"][0] == 2 * sizes["two"][0]
    assert sizes["four"][1] == pytest.approx(sizes["four"][0], rel=0.1)
    assert (tmp_path / "all" / "sizes" / "four-report" / "index.html").is_file()
    one = tmp_path / "one.yaml"
    plain = COMPARE.format(domain=place.domain, general=place.general, base=place.base, other=other)
    at = plain.index("bases:"), plain.index("shift:")
    one.write_text(f"base: {place.base}\n" + plain[: at[0]] + plain[at[1] :].replace("blocks: 9", "blocks: 1"))
    text = study(one, tmp_path / "all")
    assert "| new against | gain, difference |" in text
    assert "| new | general |" in text


@pytest.mark.slow
def test_a_base_is_made_with_the_tiny_bases_tokenizer(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig

    import blockexpand
    from blockexpand.data import TINY_BASE

    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "the house stood by the river number {n}"}}\n' for n in range(200)))
    recipe = {"sources": [{"path": str(text)}], "row_tokens": 64, "splits": {"train": {"share": 1.0}}}
    blockexpand.prepare(from_plain(blockexpand.corpus.PrepareRecipe, recipe, "t"), TINY_BASE, tmp_path / "text")
    monkeypatch.setattr(bases, "_text", lambda _tokens, _root: tmp_path / "text")
    wish = BaseRecipe(name="mini", hidden_size=16, num_blocks=2, num_heads=2, tokens=1024, new_blocks=1)
    made = bases.make_base(wish, tmp_path)
    assert (made / "tokenizer.json").read_bytes() == (TINY_BASE / "tokenizer.json").read_bytes()
    config = AutoConfig.from_pretrained(made)
    assert (made.name, config.hidden_size, config.num_hidden_layers) == ("mini", 16, 2)
    assert bases.make_base(wish, tmp_path) == made


def test_the_base_ranks_its_own_words_first(place: Place) -> None:
    base = load_model(place.base, torch.float32)
    prompts = torch.arange(3, 19).reshape(4, 4)
    with torch.no_grad():
        own = torch.cat([prompts, base(prompts).logits[:, -1:].argmax(-1)], 1)
        order = base(prompts).logits[:, -1].argsort(-1, descending=True)
    assert token_shift(base, own, 4, eos=1).rank_1.difference == 1.0
    mixed = torch.cat([prompts, torch.stack([order[0, 0], order[1, 1], order[2, 2], order[3, 3]])[:, None]], 1)
    shift = token_shift(base, mixed, 4, eos=1)
    assert (shift.rank_1.difference, shift.rank_2_3, shift.beyond) == pytest.approx((0.25, 0.5, 0.25))
    ended = torch.cat([own, torch.full((4, 3), 1)], 1)
    assert token_shift(base, ended, 4, eos=1).num_tokens == 8 - int((own[:, -1] == 1).sum())


def test_more_questions_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match="5000"):
        make_task("sums", 5000, 5)
