"""Gains for packs that stand together: that the descent goes down, and that what is written is what was measured."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockexpand import live
from blockexpand.checkpoint import open_checkpoint
from blockexpand.cli.main import run
from blockexpand.corpus import open_corpus
from blockexpand.errors import BlockexpandError, CorpusError, ExpansionError, PackError, RecordError, StagingError
from blockexpand.evaluation.held_out import document_losses
from blockexpand.expansion import expand, plan
from blockexpand.families import family_for
from blockexpand.live.forward import RowBatch
from blockexpand.packs import calibrating, load_with_packs, read_pack, scale_on_disk
from blockexpand.packs.calibrating import BOUNDS, _descend, _Point, best_of, calibrate, find_gains, losses_of, passes
from blockexpand.packs.calibration import Calibrated, GainSettings
from blockexpand.packs.memory import gains, only, scaled
from blockexpand.records import read_record
from blockexpand.staging import RECORD_NAME
from blockexpand.training.export import export_model
from helpers import load, tree
from lm_helpers import make_corpus, make_lm
from packs_ground import make_pack

SMALL = GainSettings(rows=4, steps=6, test_rows=3)
Ground = dict[str, Path]


def trained_on(base: Path, text: Path) -> None:
    """Let the base learn a text a little: a base that knows nothing has nothing to lose."""
    model: Any = load(base, torch.float32).requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(8):
        for batch in passes(open_corpus(text).rows("train").first(32), "cpu", "text"):
            cross_entropy(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.to(torch.bfloat16).save_pretrained(base)


def cross_entropy(model: Any, batch: RowBatch) -> torch.Tensor:
    logits = model(batch.tokens_BT, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.tokens_BT[:, 1:].flatten())


def step_on(base: Path, text: Path, out: Path, after: tuple[int, ...]) -> Path:
    """The base with new blocks that took one step down the gradient of a text, a long one: the way is right, and less
    would be better.
    """
    expanded = out.with_name(f"{out.name}.expanded")
    expand(base, expanded, plan(base, after=after))
    model: Any = live.load(expanded, dtype=torch.float32)[0]
    held = {name: parameter for name, parameter in live.freeze(model) if name in live.writers(model)}
    (batch,) = passes(open_corpus(text).rows("train").first(4), "cpu", "text")
    cross_entropy(model, batch).backward()
    with torch.no_grad():
        for parameter in held.values():
            parameter.sub_(parameter.grad * (1.0 / parameter.grad.norm()))
    checkpoint = open_checkpoint(expanded)
    family = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors)
    export_model(expanded, out, live.tensors_on_disk(model, family), {"arm": "blocks"})
    return out


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A base, texts, and a pack that went down the domain's gradient and one that went down the general text's."""
    folder = tmp_path_factory.mktemp("calibrating")
    base = make_lm(folder / "base")
    made = {"base": base, "domain": make_corpus(folder / "domain", base, domain=True)}
    made["general"] = make_corpus(folder / "general", base, seed=2)
    trained_on(base, made["general"])
    for name, text, after in (("code", "domain", (1, 3)), ("law", "general", (2,))):
        trained = step_on(base, made[text], folder / f"{name}.run", after)
        made[name] = make_pack(trained, folder / name, name).folder
    return made


def texts_of(ground: Ground, split: str = "validation", rows: int = 4) -> dict[str, list[RowBatch]]:
    return {
        name: passes(open_corpus(ground[name]).rows(split).first(rows), "cpu", name) for name in ("domain", "general")
    }


def both(ground: Ground, dtype: torch.dtype = torch.float32) -> Any:
    return load_with_packs(ground["base"], [ground["code"], ground["law"]], dtype)


def test_the_slope_is_that_of_the_loss(ground: Ground, monkeypatch: pytest.MonkeyPatch):
    """Of each pack at the point where the descent begins, against differences, in double precision."""
    model, texts, weights = both(ground, torch.float64), texts_of(ground), {"domain": 1.0, "general": 0.3}
    slopes: list[float] = []
    slope = calibrating._slope
    monkeypatch.setattr(calibrating, "_slope", lambda writers: slopes.append(slope(writers)) or slopes[-1])
    steps = find_gains(model, texts, weights, 1)
    at = steps[-1].gains

    def loss(by: dict[str, float]) -> float:
        with scaled(model, by):
            return sum(weights[name] * nats for name, nats in losses_of(model, texts).items())

    assert steps[-1].loss == pytest.approx(loss(at), rel=1e-12)
    for name, found in zip(("code", "law"), slopes[-2:], strict=True):
        up, down = (loss(at | {name: at[name] * math.exp(step)}) for step in (0.01, -0.01))
        # Norms compute in float32, so a difference is not to be too small.
        assert found == pytest.approx((up - down) / 0.02, rel=2e-3)
        assert abs(found) > 1e-2


def test_it_goes_down_and_leaves_the_model_as_it_was(ground: Ground):
    model, texts = both(ground), texts_of(ground)
    model.requires_grad_(False)
    next(model.parameters()).requires_grad_(True)
    scaled_before = {"code": 2.0, "law": 1.0}
    with scaled(model, {"code": 2.0}), only(model, "code"):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        steps = find_gains(model, texts, {"domain": 1.0, "general": 1.0}, 12)
        assert gains(model) == scaled_before
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert [parameter.requires_grad for parameter in model.parameters()] == wanted
        assert all(parameter.grad is None for parameter in model.parameters())
    assert [step.gains for step in steps[:2]] == [{"code": 1.0, "law": 1.0}, {"code": 0.5, "law": 0.5}]
    assert len(steps) <= 2 + 12
    chosen, losses = best_of(steps), [step.loss for step in steps]
    assert min(losses) < min(losses[:2]) - 1e-3
    # It ended at the bottom: no neighbour is lower.
    with scaled(model, chosen):
        least = sum(losses_of(model, texts).values())
    assert least == pytest.approx(min(losses), abs=1e-6)
    for name in chosen:
        for factor in (0.8, 1.25):
            if BOUNDS[0] <= chosen[name] * factor <= BOUNDS[1]:
                with scaled(model, chosen | {name: chosen[name] * factor}):
                    assert sum(losses_of(model, texts).values()) > least


COUPLED = np.array([[1.0, 0.6], [0.6, 0.5]])


@pytest.mark.parametrize(
    ("lowest", "found"), [((0.6, 0.8), (0.6, 0.8)), ((3.0, 0.8), (2.0, 1.301)), ((0.01, 0.8), (0.05, 0.1159))]
)
def test_the_descent_finds_the_lowest_point_inside_its_bounds(lowest: tuple[float, ...], found: tuple[float, ...]):
    """A bowl in the logs, askew; where its bottom is outside, the lowest point on the border."""
    points, bottom_P = [], np.log(lowest)

    def tried(logs_P: np.ndarray) -> _Point:
        off_P = logs_P - bottom_P
        points.append(_Point(logs_P=logs_P, loss=float(off_P @ COUPLED @ off_P), slopes_P=2 * COUPLED @ off_P))
        return points[-1]

    _descend(tried(np.zeros(2)), tried, 16)
    assert np.exp(min(points, key=lambda point: point.loss).logs_P) == pytest.approx(found, rel=0.02)
    inside = [np.log(BOUNDS[0]) - 1e-9 <= log <= np.log(BOUNDS[1]) + 1e-9 for point in points for log in point.logs_P]
    assert all(inside)
    assert len(points) <= 17


def test_the_descent_ends_when_there_is_nothing_to_gain():
    points = [_Point(logs_P=np.zeros(2), loss=1.0, slopes_P=np.zeros(2))]
    _descend(points[0], lambda _: points.append(points[0]) or points[0], 16)
    assert len(points) == 1


def test_the_weight_of_general_text_is_what_is_kept(ground: Ground):
    """A pack that went down the domain's gradient alone gets the less, the more general text counts."""
    model = load_with_packs(ground["base"], [ground["code"]])
    texts = texts_of(ground)
    found = [best_of(find_gains(model, texts, {"domain": 1.0, "general": w}, 12))["code"] for w in (0.0, 1.0, 30.0)]
    assert found[0] > found[1] > found[2]


def test_a_pack_that_was_scaled_before_comes_to_the_same_place(ground: Ground, tmp_path: Path):
    twice = scale_on_disk(ground["code"], tmp_path / "twice", 2.0)
    data = {"domain": ground["domain"], "general": ground["general"]}
    how = dataclasses.replace(SMALL, steps=16)
    found = [
        calibrate(ground["base"], [p], data, tmp_path / f"out{n}", how) for n, p in enumerate((ground["code"], twice))
    ]
    one, other = (read_pack(tmp_path / f"out{number}" / "code").record.scaled for number in range(2))
    assert one is not None
    assert other is not None
    assert one.of == other.of == read_pack(ground["code"]).record.fingerprint
    assert other.by == pytest.approx(one.by, rel=0.02)
    assert found[1].gains["code"] == pytest.approx(found[0].gains["code"] / 2, rel=0.02)
    assert [one.rule for one in found[0].measured] == [
        "base", "code alone", "stacked, at half scale", "stacked, calibrated",
    ]  # fmt: skip


def test_what_is_written_is_what_was_measured(ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Each figure of the record is the held-out loss that `eval` would give for those packs."""
    out, data = tmp_path / "out", [f"{name}={ground[name]}" for name in ("domain", "general")]
    words = ["pack", "calibrate", str(ground["base"]), str(ground["law"]), str(ground["code"]), str(out)]
    words += ["--data", data[0], "--data", data[1], "--rows", "4", "--steps", "6", "--test-rows", "3"]
    assert run(words) == 0
    told = capsys.readouterr()
    assert "find gains" in told.err, "a bar"
    record = read_record(Calibrated, out / RECORD_NAME)
    assert record.settings == SMALL
    packs = {name: read_pack(out / name) for name in ("code", "law")}
    for name, pack in packs.items():
        assert pack.record.scaled is not None
        assert (pack.name, pack.record.scaled.by) == (name, record.gains[name])
        assert record.packs[name] == pack.record.scaled.of == read_pack(ground[name]).record.fingerprint
        assert "- **Scaled**" in (out / name / "README.md").read_text()
    halves = [scale_on_disk(ground[name], tmp_path / f"{name}-half", 0.5) for name in packs]
    states = {
        "base": [], "code alone": [ground["code"]], "law alone": [ground["law"]],
        "stacked, as stored": [ground["code"], ground["law"]], "stacked, at half scale": halves,
        "stacked, calibrated": list(packs.values()),
    }  # fmt: skip
    assert [one.rule for one in record.measured] == list(states)
    for one in record.measured:
        model = load_with_packs(ground["base"], states[one.rule])
        for text in ("domain", "general"):
            parts = document_losses(model, open_corpus(ground[text]).rows("test").first(3), 3, text)
            assert one.losses[text] == pytest.approx(float(parts.nats_M.sum() / parts.tokens_M.sum()), abs=2e-6)
    lines = told.out.splitlines()
    assert f"gains: code {record.gains['code']:g}, law {record.gains['law']:g}" in lines[0]
    assert lines[2].split() == ["general", "domain"], "what is to be kept stands first"
    base, last = record.measured[0].losses, record.measured[-1].losses
    assert f"{last['general'] / base['general'] - 1:+.2%}" in lines[-1]
    assert f"gain {base['domain'] - last['domain']:+.4f}, " in lines[-1]
    assert "nobody looked" not in told.out
    # Without general text it says so; with --json it is the record; an older folder is replaced only when asked.
    fewer = [*words[:6], "--data", data[0], "--rows", "4", "--steps", "1", "--test-rows", "3"]
    assert run(fewer) == 2
    assert "already exists" in capsys.readouterr().err
    assert run([*fewer, "--overwrite"]) == 0
    assert "no text called general was given, so nobody looked at what is forgotten" in capsys.readouterr().out
    assert run([*words, "--overwrite", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / RECORD_NAME).read_text())
    assert read_record(Calibrated, out / RECORD_NAME) == record, "the same again"


def test_all_packs_are_written_or_none(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write, written = calibrating.write_scaled, []

    def once(*given: Any) -> Any:
        if written:
            raise PackError("the disk is gone")
        written.append(write(*given))

    monkeypatch.setattr(calibrating, "write_scaled", once)
    data = {"domain": ground["domain"]}
    with pytest.raises(PackError, match="the disk is gone"):
        calibrate(ground["base"], [ground["code"], ground["law"]], data, tmp_path / "out", SMALL)
    assert len(written) == 1
    assert list(tmp_path.iterdir()) == []


def refused(ground: Ground, out: Path, kind: type[BlockexpandError], expected: str, **more: Any) -> None:
    given: dict[str, Any] = {"packs": [ground["code"]], "data": {"domain": ground["domain"]}, "settings": SMALL} | more
    given = {"base": ground["base"], "out": out} | given
    with pytest.raises(kind, match=expected):
        calibrate(**given)


def test_what_is_refused(ground: Ground, tmp_path: Path):
    out = tmp_path / "out"
    only_general = {"general": ground["general"]}
    refused(ground, out, PackError, "the texts are general; expected one or more besides 'general'", data=only_general)
    refused(ground, out, PackError, "nothing to gain on: the texts are none", data={})
    heavy = dataclasses.replace(SMALL, general_weight=2.0)
    refused(ground, out, PackError, "weight of general text is 2, and there is none among domain", settings=heavy)
    other = make_lm(tmp_path / "other", vocabulary=300)
    foreign = {"domain": make_corpus(tmp_path / "foreign", other)}
    refused(ground, out, PackError, "'domain' .*foreign. was prepared with another tokenizer", data=foreign)
    missing = dataclasses.replace(SMALL, test_split="tset")
    refused(ground, out, CorpusError, "has no split 'tset'; it has: train", settings=missing)
    refused(ground, out, CorpusError, "is not a prepared corpus", data={"domain": tmp_path})
    refused(ground, out, PackError, "no pack given", packs=[])
    refused(ground, ground["base"] / "in", ExpansionError, "is inside the base")
    refused(ground, ground["code"], PackError, "the output .*code is the pack", overwrite=True)
    beside = scale_on_disk(ground["code"], tmp_path / "beside" / "code", 1.0)
    refused(ground, tmp_path / "beside", PackError, "contains the pack", packs=[beside], overwrite=True)
    refused(ground, ground["domain"], StagingError, "already exists")
    called = scale_on_disk(ground["code"], tmp_path / "called", 1.0, name=RECORD_NAME)
    refused(ground, out, PackError, "is called 'blockexpand.json', as the record beside it will be", packs=[called])
    assert not out.exists()


def test_text_without_anything_to_predict_is_refused(ground: Ground):
    with pytest.raises(PackError, match="the first 0 rows of the text 'domain' have no token to predict"):
        passes(open_corpus(ground["domain"]).rows("test").first(0), "cpu", "domain")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rows": 0}, "rows: expected 1 or more, got 0"),
        ({"steps": -1}, "steps: expected 1 or more, got -1"),
        ({"test_rows": 0}, "test_rows: expected 1 or more"),
        ({"general_weight": -1.0}, "general_weight: expected 0 to a million, got -1.0"),
        ({"general_weight": math.nan}, "general_weight: expected 0 to a million, got nan"),
        ({"test_split": "validation"}, "test_split: expected another split than 'validation', where gains are found"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], expected: str):
    with pytest.raises(RecordError, match=expected):
        GainSettings(**given)


def test_the_verb_s_own_words(ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = f"domain={ground['domain']}"
    assert run(["pack", "calibrate", str(ground["base"]), str(tmp_path / "out"), "--data", text]) == 2
    assert "expected one or more packs and the folder to write, last" in capsys.readouterr().err
    words = ["pack", "calibrate", str(ground["base"]), str(ground["code"]), str(tmp_path / "out")]
    assert run([*words, "--data", "domain"]) == 2
    assert "--data 'domain' is not name=folder" in capsys.readouterr().err
    assert run(words) == 2
    assert "--data" in capsys.readouterr().err
    assert tree(tmp_path) == {}
