"""Packs chosen for each episode by its task: who answers, what is written down, going on, replaying, the verb."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from blockexpand.agents import Cast, LoadedSpeaker, load_speaker, replay, run_agent
from blockexpand.cli.main import run
from blockexpand.digests import digest_file
from blockexpand.errors import AgentError, Interrupted, PackError
from blockexpand.evaluation.endpoint import Message
from blockexpand.evaluation.routes import Router
from blockexpand.packs import attach
from blockexpand.packs.in_memory import enabled, only
from blockexpand.packs.route import Names, Rule, name_of, route
from blockexpand.records.agents import AgentSettings, Opposite, Task, read_agent
from blockexpand.sandbox import describe
from helpers import edit_config
from lm_helpers import make_lm, sentences
from packs_ground import make_pack, make_trained
from players import PlainTools, Scripted

walls = pytest.mark.skipif(describe().startswith("sandbox: none"), reason=describe())
RULE = Rule(evidence=0.0)
"""What these models say is noise, so that little evidence has to decide."""
SETTINGS = AgentSettings(speaker=Opposite(model="m"), budgets=(1, 3), max_tokens=8)
TASKS = [
    Task(set=("even", "odd")[n % 2], id=str(n), prompt=text[:60], scoring="text", reference="42")
    for n, text in enumerate(sentences(6, 3))
]


@dataclasses.dataclass(frozen=True)
class Ground:
    base: Path
    packs: tuple[Path, Path]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("routed")
    base = edit_config(make_lm(folder / "base"), max_position_embeddings=4096)
    packs = [
        make_pack(make_trained(base, folder / name, seed, by=0.3, after=(1,)), folder / f"{name}.pack", name).folder
        for seed, name in enumerate("ab")
    ]
    return Ground(base, (packs[0], packs[1]))


@pytest.fixture(scope="module")
def loaded(ground: Ground) -> LoadedSpeaker:
    return load_speaker(ground.base, ground.packs)


@pytest.fixture
def router(loaded: LoadedSpeaker) -> Router:
    return Router(loaded.model, loaded.tokenizer, RULE)


def expected(router: Router, task: Task) -> Names:
    """The library's own choice by the task's text."""
    tokens = router._tokenizer(task.prompt, add_special_tokens=False)["input_ids"]
    return route(router.model, tokens, RULE).names


def task_of(messages: Sequence[Message]) -> Task:
    return next(task for task in TASKS if messages[0]["content"].endswith(task.prompt))


class Watching(Scripted):
    """Runs code that prints a lure in each turn, and notes which packs were on for whom."""

    def __init__(self, model: Any, lure: str) -> None:
        super().__init__(lambda said: f"<execute>print({lure!r})  # of {task_of(said).id}</execute>")
        self.model, self.on = model, list[tuple[Names, tuple[str, ...]]]()

    def ask(self, requests: Sequence[Any]) -> Any:
        self.on.append((enabled(self.model), tuple(task_of(one.messages).id for one in requests)))
        return super().ask(requests)


def play(router: Router | None, speaker: Any, folder: Path, resume: bool = False, at_once: int = 12) -> Any:
    cast = Cast(speaker=speaker, tools=PlainTools(), at_once=at_once, router=router)
    settings = SETTINGS if isinstance(speaker, Watching) else dataclasses.replace(SETTINGS, budgets=(1,), max_tokens=4)
    return run_agent(cast, TASKS, settings, folder, resume)


def lure_of(router: Router) -> str:
    """What a program may print so that, were it scored, other packs would answer some task."""
    for text in sentences(40, 8):
        if any(router.of_text(f"{task.prompt}\n{text}") != expected(router, task) for task in TASKS):
            return text
    raise AssertionError("nothing printed would change a choice: the test could not fail")


def test_each_episode_has_the_packs_that_its_task_asks_for(router: Router, tmp_path: Path) -> None:
    """In every turn the same, whatever was printed; those of the same packs are asked together."""
    speaker = Watching(router.model, lure_of(router))
    play(router, speaker, tmp_path / "run")
    by_id = {task.id: expected(router, task) for task in TASKS}
    assert len(set(by_id.values())) > 1, "different tasks, different packs"
    for on, ids in speaker.on:
        assert {by_id[one] for one in ids} == {on}
    kinds = len(set(by_id.values()))
    assert len(speaker.on) == 3 * kinds, "a call for each choice in each of three turns"
    assert enabled(router.model) == ("a", "b"), "the switches stay"
    episodes = read_agent(tmp_path / "run").episodes
    assert len(episodes) == 12
    assert {one.budget: len(one.turns) for one in episodes} == {1: 1, 3: 3}
    for one in episodes:
        assert one.route == name_of(by_id[one.id])
        assert all(turn.acted_on.endswith(f"  # of {one.id}") for turn in one.turns), "each its own answer"


def test_the_words_are_those_of_the_chosen_packs(loaded: LoadedSpeaker, router: Router, tmp_path: Path) -> None:
    """Against runs with the packs switched by hand, one episode at a time so that no padding decides."""
    play(router, loaded, tmp_path / "routed", at_once=1)
    routed = read_agent(tmp_path / "routed").episodes
    alone = {}
    for names in {expected(router, task) for task in TASKS}:
        with only(loaded.model, *names):
            play(None, loaded, tmp_path / name_of(names), at_once=1)
        alone[name_of(names)] = read_agent(tmp_path / name_of(names)).episodes
    for number, one in enumerate(routed):
        same = alone[str(one.route)][number]
        assert [turn.output for turn in one.turns] == [turn.output for turn in same.turns]
        assert same.route is None
    texts = [[turn.output for one in episodes for turn in one.turns] for episodes in alone.values()]
    assert texts[0] != texts[1], "other packs say other things"


def test_the_record_has_the_rule_and_the_counts(router: Router, tmp_path: Path) -> None:
    record = play(router, Watching(router.model, "x"), tmp_path / "run")
    assert record.settings.rule == RULE
    assert record.routes.candidates == ("base", "a", "b")
    assert record.routes.passes == router.record().passes
    assert set(record.routes.chosen) == {"even", "odd"}
    for name, counts in record.routes.chosen.items():
        mine = [name_of(expected(router, task)) for task in TASKS if task.set == name]
        assert counts == {packs: 2 * mine.count(packs) for packs in sorted(set(mine))}, "both budgets"
    assert read_agent(tmp_path / "run").record == record


def test_a_run_without_a_router_writes_nothing_of_it(loaded: LoadedSpeaker, tmp_path: Path) -> None:
    """So that runs of before are read, compared and gone on with as they were."""
    record = play(None, Watching(loaded.model, "x"), tmp_path / "run")
    assert (record.routes, record.settings.rule) == (None, None)
    assert "rule" not in json.loads((tmp_path / "run" / "settings.json").read_text())
    assert "routes" not in json.loads((tmp_path / "run" / "blockexpand.json").read_text())
    assert "route" not in json.loads((tmp_path / "run" / "episodes.jsonl").read_text().splitlines()[0])
    assert replay(tmp_path / "run", PlainTools()).differences == ()


def test_going_on_with_another_route_is_refused(router: Router, tmp_path: Path) -> None:
    model = router.model
    play(None, Watching(model, "x"), tmp_path / "always")
    with pytest.raises(AgentError, match=r"begun with other settings: rule None, now Rule\(prompt_tokens=128"):
        play(router, Watching(model, "x"), tmp_path / "always", resume=True)
    play(router, Watching(model, "x"), tmp_path / "auto")
    with pytest.raises(AgentError, match=r"begun with other settings: rule Rule\(.*\), now None"):
        play(None, Watching(model, "x"), tmp_path / "auto", resume=True)
    stricter = Router(model, router._tokenizer, Rule(evidence=1.0))
    with pytest.raises(AgentError, match=r"evidence=0.0.*now Rule\(.*evidence=1.0"):
        play(stricter, Watching(model, "x"), tmp_path / "auto", resume=True)


def test_a_stopped_run_goes_on_with_the_same_packs(router: Router, tmp_path: Path) -> None:
    play(router, Watching(router.model, "x"), tmp_path / "whole", at_once=2)
    stopped = Watching(router.model, "x")
    ask = stopped.ask

    def until(requests: Any) -> Any:
        if len(stopped.on) == 5:
            raise KeyboardInterrupt
        return ask(requests)

    stopped.ask = until  # ty: ignore[invalid-assignment]
    with pytest.raises(Interrupted):
        play(router, stopped, tmp_path / "run", at_once=2)
    assert enabled(router.model) == ("a", "b"), "the switches stay"
    assert 0 < len((tmp_path / "run" / "episodes.jsonl").read_text().splitlines()) < 12
    again = Router(router.model, router._tokenizer, RULE)
    play(again, Watching(router.model, "x"), tmp_path / "run", resume=True, at_once=2)
    routes = [[(e.id, e.budget, e.route) for e in read_agent(tmp_path / n).episodes] for n in ("whole", "run")]
    assert routes[0] == routes[1]
    records = [read_agent(tmp_path / n).record.routes for n in ("whole", "run")]
    assert records[0] == records[1]


def test_a_replay_counts_the_packs_again(router: Router, tmp_path: Path) -> None:
    play(router, Watching(router.model, "x"), tmp_path / "run")
    assert replay(tmp_path / "run", PlainTools()).differences == ()
    path = tmp_path / "run" / "episodes.jsonl"
    first = f'"route": "{read_agent(tmp_path / "run").episodes[0].route}"'
    path.write_text(path.read_text().replace(first, '"route": "c"', 1))
    differences = replay(tmp_path / "run", PlainTools()).differences
    assert differences == ("the packs that episodes were given differ from those counted in the record",)


def test_an_attached_folder_is_switched_like_a_base_with_packs(ground: Ground, router: Router, tmp_path: Path) -> None:
    attach(ground.base, list(ground.packs), tmp_path / "attached")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ground.base / file, tmp_path / "attached" / file)
    speaker = load_speaker(tmp_path / "attached", switched=True)
    attached = Router(speaker.model, speaker.tokenizer, RULE)
    assert [attached.of_text(t.prompt) for t in TASKS] == [router.of_text(t.prompt) for t in TASKS]
    with pytest.raises(PackError, match="no packs to choose among"):
        bare = load_speaker(tmp_path / "attached")
        Router(bare.model, bare.tokenizer, RULE)


@walls
def test_the_verb_routes(ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = tmp_path / "gsm8k.jsonl"
    rows = [{"id": task.id, "prompt": task.prompt, "reference": "42"} for task in TASKS]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    packs = [word for pack in ground.packs for word in ("--pack", str(pack))]
    common = ["--tasks", str(tasks), "--turns", "1", "--max-tokens", "4", "--out", str(tmp_path / "run")]
    routed = ["agent", str(ground.base), *packs, *common, "--route", "auto"]
    assert run(routed) == 0
    shown = capsys.readouterr().out
    record = read_agent(tmp_path / "run").record
    assert record.settings.rule == Rule(), "the measured rule"
    digests = {str(pack): digest_file(pack / "pack.json") for pack in ground.packs}
    assert record.settings.speaker.packs == digests
    assert record.routes is not None
    assert f"packs chosen by the task, at {record.routes.passes:.2f} passes of the base's blocks" in shown
    (counts,) = record.routes.chosen.values()
    assert f"gsm8k         {', '.join(f'{name} {count}' for name, count in counts.items())} episodes" in shown
    assert run(["agent", "--replay", str(tmp_path / "run")]) == 0
    assert run([*routed[:-2], "--resume"]) == 2
    assert "begun with other settings: rule Rule(" in capsys.readouterr().err
    assert run([*routed, "--resume"]) == 0
    attach(ground.base, list(ground.packs), tmp_path / "attached")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ground.base / file, tmp_path / "attached" / file)
    again = ["agent", str(tmp_path / "attached"), *common[:-1], str(tmp_path / "again"), "--route", "auto"]
    assert run(again) == 0
    assert read_agent(tmp_path / "again").record.routes == record.routes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--route", "auto"], "base has no packs to choose among; expected a folder that `pack attach` wrote"),
        (["--route", "on"], '"on"'),
        (
            ["--route", "auto", "--endpoint", "http://localhost:1"],
            "--route auto needs the model itself, and http://localhost:1 is an address; expected a folder",
        ),
    ],
)
def test_what_cannot_be_routed(
    ground: Ground, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["agent", str(ground.base), *words, "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()
