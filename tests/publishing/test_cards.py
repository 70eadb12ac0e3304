"""Model cards: what they say is what the records say, the base's own is never lost, nobody's words are overwritten."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from blockexpand.cli.main import run
from blockexpand.expansion import CARD, CardMark, expand, plan, read_mark, signed
from blockexpand.packs import attach_on_disk, detach_on_disk, extract
from blockexpand.publishing import Records, read_published, write_card
from blockexpand.publishing.figures import base_digest
from helpers import MakeBase, edit_json, tree
from packs_ground import make_pack, make_trained
from publishing_ground import BASE_CARD, Story, done


def metadata(folder: Path) -> dict[str, Any]:
    return ModelCard((folder / CARD).read_text()).data.to_dict()


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_an_expanded_folder_has_its_own_card_and_keeps_the_base_s(story: Story) -> None:
    text = (story.deeper / CARD).read_text()
    assert (story.deeper / "README.base.md").read_text() == BASE_CARD
    assert "nothing yet; the new blocks are as they were inserted" in text
    assert "[README.base.md](README.base.md)" in text
    data = metadata(story.deeper)
    assert (data["license"], data["language"], data["base_model"]) == ("llama2", ["en"], "org/tiny")
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert "base_model_relation" not in data, "untrained blocks are neither a finetune nor an adapter"
    assert "model-index" not in data
    assert "\n## Results\n\nNot measured.\n" in text


def test_the_base_comes_back_byte_for_byte_with_its_card(story: Story, tmp_path: Path) -> None:
    for name, folder in (("a", story.deeper), ("b", story.model)):
        detach_on_disk(folder, tmp_path / name)
        assert tree(tmp_path / name) == tree(story.base)


def test_a_base_that_is_expanded_itself_keeps_its_card(story: Story, tmp_path: Path) -> None:
    expected = tree(story.deeper)
    expected.pop("blockexpand.json")  # a record of an earlier expansion stays behind
    expand(story.deeper, tmp_path / "cardless", plan(story.deeper, 2))
    detach_on_disk(tmp_path / "cardless", tmp_path / "first")
    assert tree(tmp_path / "first") == expected
    done("expand", story.deeper, tmp_path / "twice", "--blocks", 2)
    assert read_mark(tmp_path / "twice" / CARD).base_card == "README.base-2.md"
    assert (tmp_path / "twice" / "README.base.md").read_text() == BASE_CARD
    assert (tmp_path / "twice" / "README.base-2.md").read_text() == (story.deeper / CARD).read_text()
    done("pack", "detach", tmp_path / "twice", tmp_path / "back")
    assert tree(tmp_path / "back") == expected


def test_a_base_without_a_card_gets_none_back(tiny_base: MakeBase, tmp_path: Path) -> None:
    base = tiny_base("llama")
    done("expand", base, tmp_path / "deeper", "--blocks", 2)
    assert read_mark(tmp_path / "deeper" / CARD).base_card == ""
    done("pack", "detach", tmp_path / "deeper", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(base)


def test_packs_that_stay_take_the_base_s_card_along(own_base: MakeBase, tmp_path: Path) -> None:
    base = own_base("llama")
    (base / CARD).write_text(BASE_CARD)
    trained = [make_trained(base, tmp_path / name, seed, after=(seed,)) for seed, name in enumerate(("code", "law"))]
    packs = [make_pack(folder, tmp_path / f"{folder.name}.pack", folder.name).folder for folder in trained]
    done("pack", "attach", base, *packs, tmp_path / "both")
    text = (tmp_path / "both" / CARD).read_text()
    assert "**Packs** whose blocks these are: `code`, `law`" in text
    done("pack", "detach", tmp_path / "both", tmp_path / "one", "--pack", "law")
    attach_on_disk(base, packs[:1], tmp_path / "alone")
    found, expected = tree(tmp_path / "one"), tree(tmp_path / "alone")
    records = [json.loads(files.pop("blockexpand.json")) for files in (found, expected)]
    assert found == expected
    assert records[0]["files_copied"] == records[1]["files_copied"]
    assert (tmp_path / "one" / CARD).read_text() == BASE_CARD


def test_a_run_s_card_says_how_it_was_trained(story: Story) -> None:
    text, data = (story.model / CARD).read_text(), metadata(story.model)
    assert text.startswith("---\n")
    assert "\n# code\n" in text
    assert "Reads code." in text, "what was stated for the folder that the run began with"
    assert "me/untrained" not in text
    assert data["base_model_relation"] == "finetune"
    record = json.loads((story.run / "blockexpand.json").read_text())
    for part in (
        f"| steps | {record['num_steps']} |",
        f"| parameters that trained | {record['num_trainable_parameters']:,} |",
        "| domain data (name of the prepared folder) | domain |",
        "| forgetting budget | 50.00% of the base's general loss |",
        "| retention: share of general rows, weight of KL to the base | 0.25, 2 |",
        f"domain loss {record['base']['domain']:.4f} to {record['best']['domain']:.4f}",
        "which is no test",
        "the new blocks alone; the rest is the base as it was",
        record["settings_digest"],
        f"torch {record['versions']['torch']}",
    ):
        assert part in text
    assert str(story.base.parent) not in text
    assert read_published(story.run).folder == story.model, "a run's folder means its model"


def test_a_run_without_the_verb_ships_the_base_s_card_not_a_card_of_untrained_blocks(
    story: Story, tmp_path: Path
) -> None:
    from blockexpand.training.export import export_model

    export_model(story.deeper, tmp_path / "model", {}, {"arm": "blocks"})
    assert (tmp_path / "model" / CARD).read_text() == BASE_CARD
    assert not (tmp_path / "model" / "README.base.md").exists()


def test_more_than_the_new_blocks_is_said(story: Story, tmp_path: Path) -> None:
    folder = copied(story.model, tmp_path / "m")
    before = json.loads((folder / "blockexpand.json").read_text())["training"]
    edit_json(
        folder / "blockexpand.json",
        lambda record: record.update(training={"arm": "blocks", "before": {"arm": "full", "before": before}}),
    )
    write_card(folder)
    text = (folder / CARD).read_text()
    assert "more than the new blocks (arm full); the base is not inside any more" in text
    assert "pack detach" not in text
    assert "The record of the run is not with these files" in text


def test_a_pack_has_a_card(story: Story, tmp_path: Path) -> None:
    pack = copied(story.pack, tmp_path / "p")
    text, data = (pack / CARD).read_text(), metadata(pack)
    assert (data["license"], data["library_name"]) == ("mit", "blockexpand")
    assert "base_model" not in data, "nobody stated it for the pack"
    done("card", pack, "--base-model", "org/tiny", "--repo", "me/code", "--tag", "python")
    text, data = (pack / CARD).read_text(), metadata(pack)
    assert (data["base_model"], data["base_model_relation"], data["license"]) == ("org/tiny", "adapter", "mit")
    assert data["tags"] == ["block-expansion", "llama-pro", "blockexpand", "python"]
    assert 'load_with_packs(snapshot_download("org/tiny"), [snapshot_download("me/code")])' in text
    assert "blockexpand pack attach org/tiny code OUT" in text
    assert "| steps | " in text
    assert "No licence" not in text


def test_a_rounded_pack_says_so(story: Story, tmp_path: Path) -> None:
    extract(story.model, tmp_path / "pack", encoding="int8")
    write_card(tmp_path / "pack")
    text = (tmp_path / "pack" / CARD).read_text()
    assert "rounded to 8 bits" in text
    assert "No licence was stated" in text


def test_the_base_s_name_on_the_hub_is_known_from_the_cache(tiny_base: MakeBase, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = copied(tiny_base("llama"), tmp_path / "hub" / "models--org--tiny-1" / "snapshots" / commit)
    done("expand", snapshot, tmp_path / "deeper", "--blocks", 2)
    assert metadata(tmp_path / "deeper")["base_model"] == "org/tiny-1"
    assert f"commit `{commit}` of the hub" in (tmp_path / "deeper" / CARD).read_text()
    assert plan(tiny_base("llama"), 2).base.hub is None


# --- the results table --------------------------------------------------------------------------------


def test_results_of_this_model_and_its_base_are_shown(story: Story, tmp_path: Path, said) -> None:
    folder = copied(story.model, tmp_path / "m")
    done("card", folder, "--results", story.records, "--against", story.base_records)
    after, before = (json.loads((f / "blockexpand.json").read_text()) for f in (story.records, story.base_records))
    text = (folder / CARD).read_text()
    for name in ("domain", "general"):
        ours, theirs = (one["held_out"][name]["loss"] for one in (after, before))
        assert f"| {ours:.4f} | {theirs:.4f} | {ours - theirs:+.4f} (" in text
    gain = before["held_out"]["domain"]["loss"] - after["held_out"]["domain"]["loss"]
    rise = after["held_out"]["general"]["loss"] / before["held_out"]["general"]["loss"] - 1
    assert f"**Gain**: {gain:+.4f} nats per token" in text
    assert f"**Forgetting**: {rise:+.2%} of the base's loss" in text
    assert after["model_digest"] in text
    assert "Not measured" not in text
    (index,) = metadata(folder)["model-index"]
    values = {one["dataset"]["type"]: one["metrics"][0]["value"] for one in index["results"]}
    assert values == {name: pytest.approx(after["held_out"][name]["loss"]) for name in ("domain", "general")}
    # They stay when the card is written again, and go when the blocks are others.
    assert said("card", folder, "--tag", "x")["num_figures"] == 2
    edit_json(folder / "blockexpand.json", lambda record: record["training"].update(settings_digest="another"))
    assert said("card", folder)["num_figures"] == 0


def test_suites_are_shown_with_their_versions(story: Story, tmp_path: Path) -> None:
    from blockexpand.records import write_record
    from blockexpand.records.evaluation import PartScore, SuiteResults, TaskScore, read_evaluation

    part = PartScore(value=0.5, num_samples=4, version="3.0", source="/home/me/x", digest="d")
    task: dict[str, Any] = {
        "suite": "code", "suite_version": 2, "side": "domain", "metric": "pass@1", "value": 0.5, "mean": "samples",
        "higher_is_better": True, "standard_error": None, "shots": 3, "num_samples": 4, "num_errors": 0, "num_cut": 0,
        "others": {}, "parts": {"mbpp": part}, "seconds": 1.0,
    }  # fmt: skip
    suites = SuiteResults(
        tasks={"mbpp": TaskScore(**task), "none": TaskScore(**(task | {"value": None}))}, chat=False, batch_size=1,
        limit=4, samples=1, seeds={}, dtype="float32", window_tokens=None, stride_tokens=None,
    )  # fmt: skip
    records = copied(story.records, tmp_path / "records")
    record = dataclasses.replace(read_evaluation(records).record, suites=suites)
    write_record(records / "blockexpand.json", record)
    folder = copied(story.model, tmp_path / "m")
    done("card", folder, "--results", records)
    text = (folder / CARD).read_text()
    assert "| `mbpp` | pass@1 | code v2, task version 3.0, 3-shot, the first 4, 4 samples | 0.5000 |" in text
    assert "`none`" not in text
    assert "/home/me" not in text
    assert "What was kept of the base was not measured" in text


def test_a_pack_s_results_are_those_of_its_folder_or_of_the_base_with_it(story: Story, tmp_path: Path, said) -> None:
    from blockexpand.evaluation.measurement import Candidate

    pack = copied(story.pack, tmp_path / "p")
    both = ("--results", story.records, "--against", story.base_records)
    assert said("card", pack, *both, "--model", story.model)["num_figures"] == 2
    assert "**Gain**" in (pack / CARD).read_text()
    # As `eval BASE --pack PACK` fingerprints what it measured.
    mixed = copied(story.records, tmp_path / "mixed")
    digest = Candidate(model=str(story.base), packs=(str(pack),)).digest()
    edit_json(mixed / "blockexpand.json", lambda record: record.update(model_digest=digest))
    assert said("card", pack, "--results", mixed, "--against", story.base_records)["num_figures"] == 2


def test_the_base_inside_has_the_base_s_fingerprint(story: Story, own_base: MakeBase, tmp_path: Path) -> None:
    from blockexpand.checkpoint import open_checkpoint
    from blockexpand.evaluation.evaluating import model_digest
    from blockexpand.records.expansion import read_expansion

    assert base_digest(open_checkpoint(story.model), read_expansion(story.model)) == model_digest(story.base)
    base = own_base("llama", sharded=True)
    expand(base, tmp_path / "deeper", plan(base, 2))
    record = read_expansion(tmp_path / "deeper")
    assert base_digest(open_checkpoint(tmp_path / "deeper"), record) == model_digest(base)


def test_results_of_others_are_refused(story: Story, tmp_path: Path, refused) -> None:
    folder, pack = copied(story.model, tmp_path / "m"), copied(story.pack, tmp_path / "p")
    text = (folder / CARD).read_text()
    wrong = refused("card", folder, "--results", story.base_records)
    assert f"{story.base_records} is of another model, {story.base}" in wrong
    wrong = refused("card", folder, "--results", story.records, "--against", story.records)
    assert f"{story.records} is of another model" in wrong
    assert "expected results of the base inside" in wrong
    assert f"whether {story.records} is of the pack 'code'" in refused("card", pack, "--results", story.records)
    both = ("--results", story.records, "--against", story.base_records)
    assert "the model of " in refused("card", pack, *both)
    other = make_trained(story.base, tmp_path / "other", 7, blocks=2)
    assert f"{other} is not the pack 'code' on its base" in refused("card", pack, *both, "--model", other)
    assert (folder / CARD).read_text() == text
    for option in ("--against", "--model"):
        line = refused("card", folder, option, "somewhere")
        assert f"{option} somewhere is about results; expected --results RECORDS" in line
    edit_json(folder / "blockexpand.json", lambda record: record.pop("base_files"))
    assert "does not say what its base's files were" in refused("card", folder, *both)
    edit_json(folder / "blockexpand.json", lambda record: record.update(base_files=[
        {"name": "model.safetensors", "text": '{"x": {}}', "padding": 0}
    ]))  # fmt: skip
    assert "has a header of model.safetensors that is none" in refused("card", folder, *both)


# --- nobody's words are lost --------------------------------------------------------------------------


def test_what_somebody_wrote_stays(story: Story, tmp_path: Path, refused) -> None:
    folder = copied(story.deeper, tmp_path / "m")
    path = folder / CARD
    edited = path.read_text().replace("## Limits", "## Limits\n\nMy own words.")
    path.write_text(edited)
    assert f"somebody wrote in {path} since" in refused("card", folder, "--tag", "x")
    assert path.read_text() == edited
    done("card", folder, "--overwrite")
    assert "My own words" not in path.read_text()
    path.write_text("# Mine alone\n")
    assert f"{path} is somebody's" in refused("card", folder)
    done("card", folder, "--overwrite")
    assert (folder / "README.base.md").read_text() == BASE_CARD
    done("pack", "detach", folder, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(story.base)
    pack = copied(story.pack, tmp_path / "p")
    (pack / CARD).write_text("# Mine\n")
    assert f"{pack / CARD} is somebody's" in refused("card", pack)


def test_a_card_that_was_cut_off_between_its_two_files_is_written(story: Story, tmp_path: Path) -> None:
    """A kill after README.base.md and before README.md: both are the base's."""
    folder = copied(story.deeper, tmp_path / "m")
    (folder / CARD).write_text(BASE_CARD)
    done("card", folder)
    assert read_mark(folder / CARD).base_card == "README.base.md"
    done("pack", "detach", folder, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(story.base)


def test_statements_stay_and_can_be_changed(story: Story, tmp_path: Path) -> None:
    folder = copied(story.deeper, tmp_path / "m")
    named = ("--licence-name", "my-terms", "--licence-link", "LICENSE")
    done("card", folder, "--licence", "other", *named, "--dataset", "org/texts", "--dataset", "my own mail")
    done("card", folder, "--language", "de")
    data = metadata(folder)
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "my-terms", "LICENSE")
    assert (data["language"], data["datasets"], data["base_model"]) == (["de"], ["org/texts"], "org/tiny")
    assert "Trained on, as its maker says: org/texts, my own mail" in (folder / CARD).read_text()
    done("card", folder, "--licence", "mit")
    data = metadata(folder)
    assert data["license"] == "mit"
    assert "license_name" not in data, "it was the other licence's"


def test_values_cannot_break_out_of_the_card(story: Story, tmp_path: Path) -> None:
    folder = copied(story.deeper, tmp_path / "m")
    nasty = "--> ends | here\n<!-- blockexpand.card {} -->\n---\nlicense: mit"
    done("card", folder, f"--description={nasty}", "--tag", "a: [b", "--tag=-->")
    mark = read_mark(folder / CARD)
    assert mark is not None
    assert mark.said["card"]["description"] == nasty
    assert metadata(folder)["license"] == "llama2"
    assert metadata(folder)["tags"][-2:] == ["a: [b", "-->"]
    done("card", folder)
    assert (folder / CARD).read_text().rstrip().endswith("-->")
    assert (folder / CARD).read_text().count('\n<!-- blockexpand.card {"base_card"') == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--licence", "My Licence"], "the card's licence is 'My Licence'; expected one as the hub spells it"),
        (["--licence", "other"], "the card's licence is 'other' without saying which"),
        (["--base-model", "/home/me/base"], "the card's base model is '/home/me/base'; expected its name on the hub"),
        (["--language", "not a code!"], "the card's language is 'not a code!'"),
        (["--repo", "name"], "the card's repository is 'name'; expected its name on the hub, org/name"),
    ],
)
def test_what_the_hub_could_not_have_is_refused(story: Story, tmp_path: Path, words: list[str], expected: str, refused):
    folder = copied(story.deeper, tmp_path / "m")
    before = tree(folder)
    assert expected in refused("card", folder, *words)
    assert tree(folder) == before


def test_what_cannot_have_a_card_is_refused(story: Story, tmp_path: Path, refused) -> None:
    assert "it has no pack.json and no blockexpand.json" in refused("card", story.base)
    assert "its blockexpand.json is 'blockexpand.evaluation'" in refused("card", story.records)
    broken = tmp_path / "run"
    broken.mkdir()
    shutil.copyfile(story.run / "blockexpand.json", broken / "blockexpand.json")
    assert f"{broken} is a run that gave no checkpoint with new blocks" in refused("card", broken)


def test_a_mark_that_is_none_is_no_card_of_ours(tmp_path: Path) -> None:
    path = tmp_path / CARD
    assert read_mark(path) is None
    mark = CardMark(blocks="b", state="s", text="", base_card="", said={}, results=None)
    text = signed("text", mark)
    path.write_text(text)
    assert dataclasses.replace(read_mark(path), text="") == mark
    for wrong in (text.replace('"state"', '"stat"'), text.replace("{", "["), text.replace("-->", ""), "\xff"):
        path.write_bytes(wrong.encode("latin-1"))
        assert read_mark(path) is None


def test_a_stranger_s_base_card_is_only_read_for_what_it_may_say(own_base: MakeBase, tmp_path: Path) -> None:
    base = own_base("llama")
    (base / CARD).write_text("---\nlicense: [1, 2]\nlanguage: {a: b}\nlicense_name: 7\n---\n")
    done("expand", base, tmp_path / "a", "--blocks", 2)
    (base / CARD).write_text("---\nlicense: !!python/object/apply:os.system ['true']\n---\n")
    done("expand", base, tmp_path / "b", "--blocks", 2)
    for name in ("a", "b"):
        assert "license" not in metadata(tmp_path / name)
        assert "No licence was stated" in (tmp_path / name / CARD).read_text()


def test_cards_need_no_torch(story: Story, tmp_path: Path) -> None:
    import subprocess
    import sys

    pack = copied(story.pack, tmp_path / "p")
    code = (
        "import sys\nfrom blockexpand.publishing import check_shipment, read_published, write_card\n"
        f"write_card({str(pack)!r})\ncheck_shipment(read_published({str(story.model)!r}))\n"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_is_strict_where_a_stranger_s_pack_is_not(story: Story, tmp_path: Path) -> None:
    pack = copied(story.pack, tmp_path / "p")
    edit_json(pack / "pack.json", lambda record: record["training"].update(run={"num_steps": "many", "base": 3}))
    published = read_published(pack)
    assert published.run is not None
    assert (published.run.steps, published.run.base) == (None, None)
    assert Records(model=pack).base is None
    assert run(["card", str(pack), "--quiet"]) == 0
