"""Records of every kind made in code, in folders as their rooms leave them: nothing is trained here.

`make_story` makes a whole demo's worth of folders, with figures that look like a real one's. What a test is about
it states itself, through `comparison_of`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blockexpand.comparison.summary import pareto
from blockexpand.records import write_record
from blockexpand.records.comparison import (
    ArmRecipe,
    ArmResult,
    CompareRecipe,
    Comparison,
    Contrast,
    PlanRecipe,
    Summary,
    Trial,
)
from blockexpand.records.corpus import CorpusRecord, SplitCounts
from blockexpand.records.evaluation import EvaluationRecord, HeldOut
from blockexpand.records.expansion import Check, ExpansionRecord, Proof
from blockexpand.records.intervals import Interval
from blockexpand.records.plan import BaseFacts, BlockKind, BlockTensor, Cost, Insertion, Placement, Plan, number
from blockexpand.records.run import (
    NO_RETENTION,
    BlocksArm,
    DataSettings,
    FullArm,
    LoraArm,
    Measurement,
    OldBlocksArm,
    OptimizerSettings,
    RetentionSettings,
    RunContents,
    RunRecord,
    TrainSettings,
)

DIGEST = "sha256:" + "0123456789abcdef" * 4
BASE = Measurement(step=0, domain=3.412, general=3.105, rise=0.0)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What a test says of one arm; all else follows."""

    name: str
    gain: float
    forgetting: float
    difference: float = 0.0
    """The first arm's gain less this one's, in nats per token."""
    half: float = 0.01
    """Half the width of its intervals, in nats per token."""
    unrestricted: bool = False
    parameters: int = 1_770_000


ARMS = (
    Arm(name="blocks", gain=0.612, forgetting=0.0062, half=0.014),
    Arm(name="full", gain=0.694, forgetting=0.0081, difference=-0.082, parameters=9_800_000),
    Arm(name="lora", gain=0.471, forgetting=0.0088, difference=0.141, parameters=1_765_000),
    Arm(name="old-blocks", gain=0.607, forgetting=0.0127, difference=0.005),
    Arm(name="full alone", gain=0.742, forgetting=0.386, difference=-0.13, unrestricted=True, parameters=9_800_000),
)
_KINDS = {
    "blocks": BlocksArm(),
    "full": FullArm(kind="full"),
    "lora": LoraArm(kind="lora", trainable_parameters=1_770_000),
    "old-blocks": OldBlocksArm(kind="old-blocks", blocks=(2, 5, 8)),
}


def held_out(loss: float, num_documents: int = 212) -> HeldOut:
    """A model's figures on one split."""
    return HeldOut(
        loss=loss,
        perplexity=math.exp(loss),
        bits_per_byte=loss / math.log(2) / 3.6,
        num_documents=num_documents,
        num_tokens=181_204,
    )


def _curve(arm: Arm, lr: float, seed: int) -> tuple[Measurement, ...]:
    """A run that learns quickly, forgets at first and is pulled back, a little different for every seed."""
    random = np.random.default_rng([seed, round(lr * 1e6), len(arm.name)])
    points = [BASE]
    for step in range(25, 401, 25):
        at = step / 400
        learnt = arm.gain * (1 - math.exp(-4 * at)) / (1 - math.exp(-4)) * (0.8 + 40 * lr)
        rise = (
            arm.forgetting * (0.4 + 1.5 * math.sin(2.4 * at) * math.sqrt(40 * lr)) + 0.0008 * random.standard_normal()
        )
        domain = 3.412 - learnt + 0.006 * random.standard_normal()
        points.append(Measurement(step=step, domain=domain, general=3.105 * (1 + rise), rise=rise))
    return tuple(points)


def _trials(arm: Arm, recipe: ArmRecipe, seeds: tuple[int, ...], budget: float | None) -> tuple[Trial, ...]:
    trials = []
    for lr in recipe.lrs:
        for seed in seeds:
            curve = _curve(arm, lr, seed)
            inside = [m for m in curve if arm.unrestricted or budget is None or (m.rise or 0) <= budget]
            best = min(inside, key=lambda m: m.domain)
            slug = "".join(c if c.isalnum() else "-" for c in arm.name)
            trials.append(
                Trial(
                    arm=arm.name,
                    lr=lr,
                    seed=seed,
                    run=f"runs/{slug}-lr{lr:g}-seed{seed}",
                    steering=best,
                    curve=curve,
                    held_out={
                        "general": held_out(3.098 * (1 + arm.forgetting)),
                        "domain": held_out(3.397 - arm.gain, 168),
                    },
                    num_trainable_parameters=arm.parameters,
                    tokens_per_second=14_250.0 if arm.parameters < 5e6 else 9_120.0,
                    peak_memory_bytes=1_180_000_000 + 24 * arm.parameters,
                    train_seconds=61.3 if arm.parameters < 5e6 else 95.8,
                    cpu_seconds=118.2 if arm.parameters < 5e6 else 190.4,
                    load=0.5,
                    kept_nothing=False,
                    training_loss=3.4 - arm.gain,
                )
            )
    return tuple(trials)


def recipe_of(arms: tuple[Arm, ...], seeds: tuple[int, ...], budget: float | None) -> CompareRecipe:
    """The recipe that could have led to these arms; a name's first known part says its method."""
    recipes = []
    for arm in arms:
        kind = next((k for k in ("old-blocks", "blocks", "lora") if arm.name.startswith(k)), "full")
        plan = PlanRecipe(blocks=3) if kind == "blocks" else None
        recipes.append(
            ArmRecipe(name=arm.name, arm=_KINDS[kind], lrs=(1e-3, 3e-3), plan=plan, unrestricted=arm.unrestricted)
        )
    return CompareRecipe(
        base="models/tiny-base",
        out="out/compare",
        data=DataSettings(domain="texts/python", general="texts/prose"),
        domain_tokens=1_500_000,
        arms=tuple(recipes),
        seeds=seeds,
        retention=RetentionSettings(replay=0.25, kl_weight=0.5, forgetting_budget=budget),
    )


def _around(middle: float, half: float) -> Interval:
    return Interval(difference=middle, low=middle - half, high=middle + half)


def comparison_of(
    arms: tuple[Arm, ...] = ARMS, seeds: tuple[int, ...] = (0,), budget: float | None = 0.01
) -> Comparison:
    """A finished comparison whose arms have these figures."""
    recipe = recipe_of(arms, seeds, budget)
    trials = {a.name: _trials(a, r, seeds, budget) for a, r in zip(arms, recipe.arms, strict=True)}
    reference = next((arm for arm in arms if arm.unrestricted), None)
    results = tuple(
        ArmResult(
            name=arm.name,
            unrestricted=arm.unrestricted,
            lr=3e-3,
            trials=tuple(t for t in trials[arm.name] if t.lr == 3e-3),
            general_loss=3.098 * (1 + arm.forgetting),
            domain_loss=3.397 - arm.gain,
            forgetting=Summary(
                mean=arm.forgetting, low=arm.forgetting - 0.3 * arm.half, high=arm.forgetting + 0.3 * arm.half
            ),
            gain=Summary(mean=arm.gain, low=arm.gain - arm.half, high=arm.gain + arm.half),
            gain_over_reference=arm.gain / reference.gain if reference else None,
            frontier=pareto(m for t in trials[arm.name] for m in t.curve),
        )
        for arm in arms
    )
    contrasts = tuple(
        Contrast(
            ours=arms[0].name,
            theirs=arm.name,
            # Losses, ours less theirs: below zero where the first arm learnt more.
            domain=_around(-arm.difference, arm.half),
            general=_around(3.098 * (arms[0].forgetting - arm.forgetting), arm.half),
        )
        for arm in arms[1:]
    )
    return Comparison(
        recipe=recipe,
        base={"general": held_out(3.098), "domain": held_out(3.397, 168)},
        arms=results,
        contrasts=contrasts,
        trials=tuple(t for ones in trials.values() for t in ones),
    )


def plan_of(old: int = 10, groups: int = 3) -> Plan:
    """A plan of interleaved blocks over `old` old ones."""
    after = [round((g + 1) * old / groups) - 1 for g in range(groups)]
    tails = {"self_attn.q_proj.weight": "donor", "self_attn.o_proj.weight": "zero", "mlp.down_proj.weight": "zero"}
    cost = {f.name: 1_000_000 for f in dataclasses.fields(Cost)}
    tensors = tuple(BlockTensor(tail=t, dtype="BF16", shape=(8, 8), starts=s, parameter=True) for t, s in tails.items())
    return Plan(
        base=BaseFacts(
            source="models/tiny-base",
            family="llama",
            model_type="llama",
            num_blocks=old,
            config_digest=DIGEST,
            layout_digest=DIGEST,
        ),
        placement=Placement(kind="interleaved", per_group=1, group_sizes=(old // groups,) * groups),
        new_blocks=number(Insertion(after=a, donor=a) for a in after),
        kinds=(BlockKind(blocks=tuple(range(old)), tensors=tensors),),
        config_changes={"num_hidden_layers": old + groups},
        config_before={"num_hidden_layers": old},
        notes=(),
        cost=Cost(**cost),
    )


def expansion_of(plan: Plan | None = None, failing: str = "") -> ExpansionRecord:
    """An expanded folder's record, with a proof in which the check named `failing` does not hold."""
    plan = plan or plan_of()
    checks = {
        "old tensors have the base's bytes": "93 tensors, 19,660,800 bytes, SHA-256",
        "the new blocks' residual writers are zero": "6 residual writers",
        "logits equal the base's, without cache": "float32: largest difference 0 over 2,048 positions",
        "logits equal the base's, with cache": "bfloat16: largest difference 0 over 2,048 positions",
        "greedy generation is the base's": "4 prompts, 64 tokens each",
        "gradient reaches every new block": "27 of 27 tensors once the writers have moved",
        "one small step moves the model little": "KL 1.1e-07 nats, bound 1e-3",
    }
    proof = Proof(
        plan_digest=DIGEST,
        trained=False,
        dtypes=("bfloat16", "float32"),
        device="cpu",
        checks=tuple(Check(name=n, passed=n != failing, figure=f) for n, f in checks.items()),
    )
    return ExpansionRecord(
        blockexpand_version="0.1.0", plan=plan, base_digests=None, files_copied=(), files_left_out=(), proof=proof
    )


def write_evaluation(folder: Path, loss: float = 3.1) -> Path:
    """A folder as `evaluate` leaves it."""
    folder.mkdir(parents=True)
    record = EvaluationRecord(
        blockexpand_version="0.1.0",
        model=f"models/{folder.name}",
        model_digest=DIGEST,
        held_out={"general": held_out(loss)},
        corpora={"general": DIGEST},
        versions={"torch": "2.13.0"},
        dtype="float32",
    )
    write_record(folder / "blockexpand.json", record)
    nats = loss * np.ones(12) + 0.01 * np.random.default_rng(int(1000 * loss)).standard_normal(12)
    np.savez(folder / "losses-general.npz", nats=nats, tokens=np.ones(12, dtype=np.int64))
    return folder


def write_run(folder: Path, arm: str = "full", speed: float = 30.0, budget: float | None = None) -> Path:
    """A folder as `train` leaves it, but for the model; with a budget, the general rows' weight goes 1, 2, 4, 2."""
    folder.mkdir(parents=True)
    record = RunRecord(
        blockexpand_version="0.1.0",
        settings=TrainSettings(
            model="models/tiny-base",
            out=str(folder),
            arm=_KINDS[arm],
            data=DataSettings(domain="texts/chats", general="texts/english"),
            domain_tokens=100_000,
            retention=RetentionSettings(replay=0.25, forgetting_budget=budget) if budget else NO_RETENTION,
            optimizer=OptimizerSettings(lr=3e-4),
        ),
        contents=RunContents(model=DIGEST, domain=DIGEST, general={"general": DIGEST}),
        settings_digest=DIGEST,
        nothing_inside_budget=False,
        cpu_seconds=61.0,
        load=0.5,
        num_trained_tensors=27,
        num_unchanged_tensors=93,
        num_steps=120,
        num_tokens=491_520,
        num_trainable_parameters=1_770_000,
        num_parameters=11_600_000,
        best=dataclasses.replace(BASE, step=120, domain=1.204),
        base=BASE,
        train_seconds=38.4,
        tokens_per_second=12_800.0,
        peak_memory_bytes=1_222_000_000,
        machine="x86_64, 2 threads",
        versions={"torch": "2.13.0", "transformers": "5.17.0"},
    )
    write_record(folder / "blockexpand.json", record)
    random = np.random.default_rng(0)
    lines = [
        {"step": s, "kind": "train", "domain_loss": 1.2 + 2.2 * math.exp(-s / speed) + 0.1 * random.standard_normal()}
        for s in range(1, 121)
    ]
    if budget:
        course = ((0, 0.0, 1.0), (40, 2 * budget, 2.0), (80, 1.5 * budget, 4.0), (120, 0.4 * budget, 2.0))
        lines += [
            {
                "step": s,
                "kind": "measure",
                "domain": 3.0 - s / 100,
                "general": 3.1 * (1 + r),
                "rise": r,
                "general_weight": w,
            }
            for s, r, w in course
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def corpus_of() -> CorpusRecord:
    """A prepared folder's record."""
    counts = SplitCounts(
        num_rows=1200,
        num_documents=168,
        num_tokens=151_204,
        num_trained_tokens=150_000,
        num_bytes=612_000,
        largest_token=4095,
        fill=0.991,
        digest=DIGEST,
    )
    return CorpusRecord(
        row_tokens=256,
        tokenizer_digest=DIGEST,
        vocabulary_size=4096,
        recipe_digest=DIGEST,
        conversations=False,
        sources=(),
        splits={"train": counts, "test": counts},
    )


def make_story(root: Path, comparison: Comparison | None = None) -> list[Path]:
    """The folders of a whole story below `root`, in the order in which a report takes them."""
    comparison = comparison or comparison_of()
    compare = write_comparison(root / "compare", comparison)
    for place, arm in enumerate(comparison.arms):
        kind = "blocks" if arm.name == "blocks" else "full"
        budget = comparison.recipe.retention.forgetting_budget
        write_run(compare / arm.trials[0].run, kind, 30.0 + 12 * place, budget)
    for name, record in (("expanded", expansion_of()), ("python", corpus_of())):
        (root / name).mkdir()
        write_record(root / name / "blockexpand.json", record)
    before = write_evaluation(root / "before")
    after = write_evaluation(root / "after", loss=3.12)
    return [compare, root / "expanded", before, after, write_run(root / "instruct"), root / "python"]


def write_comparison(folder: Path, comparison: Comparison) -> Path:
    """A comparison's folder without its runs."""
    folder.mkdir(parents=True)
    write_record(folder / "comparison.json", comparison)
    return folder
