"""Routing on the tiny base: forgetting and gain when each document's packs are chosen by its own beginning.

    .venv/bin/python benchmarks/packs.py train
    .venv/bin/python benchmarks/routing.py

Documents of general text, Python and C++ headers, mixed. The first P tokens of each piece (at most 256 tokens of a
document, what stands in one row) are the prompt; what is measured is the rest of it, where at least 16 tokens are left.
The gain is that of the text's own pack, always on, over the same tokens. The packs were trained without any retention
(`code-free`, `cpp-free`), so always on they forget freely.

The rule is chosen on validation. What is reported is the part of the test splits that no earlier run of this benchmark
had seen: the splits are prepared larger than the demo's, and pieces of the demo's are left out.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blockexpand.corpus import Source, open_corpus, prepare
from blockexpand.corpus.rows import TokenRows, batches
from blockexpand.data import TINY_BASE as BASE
from blockexpand.live.forward import RowBatch
from blockexpand.packs import load_with_packs
from blockexpand.packs.route import candidates_of, choose, cost_of, losses_by_set, route
from blockexpand.records.pack import Names, Rule, name_of
from blockexpand.staging import RECORD_NAME
from texts import english_text, python_text

WORK = Path("runs/packs")
"""Of benchmarks/packs.py."""
TEXTS = ("general", "code", "cpp")
OWN: dict[str, Names] = {"code": ("code-free",), "cpp": ("cpp-free",)}
PROMPTS = (8, 16, 32, 64, 96, 128)
EVIDENCE = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
MARGINS = (0.0, 0.02, 0.05, 0.1, 0.2)
LEAST_AFTER = 16
"""Tokens that a piece must have after the prompt to be measured."""
WIDE_TOKENS = 72_000
"""Of the larger splits, at most."""
MOST_ROWS = {"validation": 200, "test": 230}
"""Of each text, so that a run takes minutes."""

Piece = tuple[str, np.ndarray, dict[Names, np.ndarray]]
"""Its text's name, the positions of its tokens but the first, and their losses under each set of packs."""
Margin = Callable[[int], float]
"""Nats a token by which packs have to beat the base, where so many tokens are scored."""


def wide_texts() -> None:
    """The demo's texts and the headers with larger validation and test splits, unless they are there."""
    headers = Source(kind="code", path=str(Path(torch.__file__).parent / "include"), endings=(".h",))
    cpp = dataclasses.replace(python_text(), sources=(headers,))
    for name, recipe in {"code": python_text(), "cpp": cpp, "general": english_text()}.items():
        splits = {
            split: dataclasses.replace(one, max_tokens=WIDE_TOKENS) if split in MOST_ROWS else one
            for split, one in recipe.splits.items()
        }
        if not (WORK / "wide" / name / RECORD_NAME).is_file():
            prepare(dataclasses.replace(recipe, splits=splits), BASE, WORK / "wide" / name)


def segments(rows: TokenRows, chosen: np.ndarray) -> Iterator[tuple[int, int, int, bytes]]:
    """Each piece of some rows: its row's number among them, where it begins and ends, its tokens as a key."""
    tokens_NT = rows.tokens_NT(chosen)
    for number, lengths in enumerate(rows.lengths(chosen)):
        start = 0
        for length in lengths:
            yield number, start, start + length, tokens_NT[number, start : start + length].tobytes()
            start += length


def seen_before() -> set[bytes]:
    """The pieces of the demo's test splits, on which earlier rules were reported."""
    found = set()
    for text in TEXTS:
        rows = open_corpus(WORK / "text" / text).rows("test")
        found |= {key for *_, key in segments(rows, np.arange(rows.num_rows))}
    return found


def pieces(model: Any, texts: str, split: str, sets: Sequence[Names], seen: set[bytes]) -> list[Piece]:
    """The pieces of a split but those seen before, with their losses under each set of packs.

    `texts` is the folder: the demo's (`text`) or the larger (`wide`).
    """
    found: list[Piece] = []
    for text in TEXTS:
        rows = open_corpus(WORK / texts / text).rows(split)
        some = np.arange(min(rows.num_rows, MOST_ROWS[split]))
        new = np.array([n for n in some if any(key not in seen for *_, key in segments(rows, np.array([n])))])
        for part in batches(len(new), 8):
            chosen = new[part]
            trained_NT, positions_NT = rows.trained_NT(chosen), rows.positions_NT(chosen)
            batch = RowBatch.of(rows.tokens_NT(chosen), positions_NT, trained_NT, torch.device("cpu"))
            losses_NT = {}
            for names, losses in losses_by_set(model, batch, sets).items():
                losses_NT[names] = np.full(trained_NT.shape, np.nan, np.float32)
                losses_NT[names][:, 1:][trained_NT[:, 1:]] = losses.numpy()
            for number, start, end, key in segments(rows, chosen):
                if key not in seen and end - start > 1:
                    by_set = {names: value[number, start + 1 : end] for names, value in losses_NT.items()}
                    found.append((text, np.arange(1, end - start), by_set))
    return found


def measured(found: Sequence[Piece], sets: Sequence[Names], prompt: int, margin: Margin) -> dict[str, Any]:
    """Sums of the loss after the prompt by text: of each set always on, routed, and best; and what was chosen."""
    sums: dict[tuple[str, Any], float] = {}
    picks: dict[tuple[str, Names], int] = {}
    for text, at, losses in found:
        after, before = at >= prompt, at < prompt
        if after.sum() < LEAST_AFTER:
            continue
        nats = {names: float(losses[names][before].mean()) for names in sets}
        pick = choose(nats, margin(int(before.sum())))
        picks[text, pick] = picks.get((text, pick), 0) + 1
        each = {names: float(value[after].sum()) for names, value in losses.items()}
        for key, value in (*each.items(), ("routed", each[pick]), ("before", float(losses[()][before].sum()))):
            sums[text, key] = sums.get((text, key), 0.0) + value
        whole = float(losses[OWN.get(text, ())].sum())
        sums[text, "whole"] = sums.get((text, "whole"), 0.0) + whole
    return {"sums": sums, "picks": picks}


def kept(result: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
    """How much of the general loss was added, and the share of each domain's gain that was kept."""
    sums = result["sums"]
    gains = {t: (sums[t, ()] - sums[t, "routed"]) / (sums[t, ()] - sums[t, own]) for t, own in OWN.items()}
    return sums["general", "routed"] / sums["general", ()] - 1, gains


def told(result: Mapping[str, Any]) -> str:
    """Forgetting, the share of the gains, and how many pieces went where they belong."""
    general, gains = kept(result)
    picks = result["picks"]
    counts = {t: sum(n for (text, _), n in picks.items() if text == t) for t in TEXTS}
    right = ", ".join(f"{t} {picks.get((t, OWN.get(t, ())), 0)}/{counts[t]}" for t in TEXTS)
    return f"general {general:+.3%}; " + "; ".join(f"{t} {gain:.1%}" for t, gain in gains.items()) + f"; right {right}"


def whole(result: Mapping[str, Any]) -> str:
    """The share of the gain over all tokens of the pieces, the prompt's under the base."""
    sums = result["sums"]
    shares = []
    for text in OWN:
        base = sums[text, "before"] + sums[text, ()]
        shares.append(f"{text} {(sums[text, ()] - sums[text, 'routed']) / (base - sums[text, 'whole']):.1%}")
    return ", ".join(shares)


def reading_on(found: Sequence[Piece], sets: Sequence[Names], decisions: Sequence[int], margin: Margin) -> str:
    """Choosing again at each of these positions, by all that was read; what is measured are all later tokens."""
    sums: dict[tuple[str, Any], float] = {}
    switches = 0
    for text, at, losses in found:
        if (at >= decisions[0]).sum() < LEAST_AFTER:
            continue
        last: Names | None = None
        for start, end in zip(decisions, (*decisions[1:], 10**9), strict=True):
            now = (at >= start) & (at < end)
            if not now.any():
                continue
            before = at < start
            pick = choose({n: float(losses[n][before].mean()) for n in sets}, margin(int(before.sum())))
            switches += last is not None and pick != last
            last = pick
            for key, value in ((k, float(v[now].sum())) for k, v in (*losses.items(), ("routed", losses[pick]))):
                sums[text, key] = sums.get((text, key), 0.0) + value
    general, gains = kept({"sums": sums})
    shares = "; ".join(f"{t} {gain:.1%}" for t, gain in gains.items())
    return f"general {general:+.3%}; {shares}; {switches} switches in {len(found)} pieces"


def intervals(found: Sequence[Piece], sets: Sequence[Names], prompt: int, margin: Margin) -> str:
    """95 % of 1,000 draws of the pieces with replacement."""
    generator = np.random.default_rng(0)
    by_text = {text: [piece for piece in found if piece[0] == text] for text in TEXTS}
    single = {text: [measured([piece], sets, prompt, margin)["sums"] for piece in by_text[text]] for text in TEXTS}
    draws = []
    for _ in range(1000):
        sums: dict[tuple[str, Any], float] = {}
        for each in single.values():
            for number in generator.integers(len(each), size=len(each)):
                for key, value in each[number].items():
                    sums[key] = sums.get(key, 0.0) + value
        general, gains = kept({"sums": sums})
        draws.append([general, *gains.values()])
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)
    names = ("general", *OWN)
    return ", ".join(f"{n} {a:.2%} to {b:.2%}" for n, a, b in zip(names, low, high, strict=True))


def choose_rule(found: Sequence[Piece], every: Sequence[Names]) -> None:
    """The figures of all rules on validation."""
    print(f"validation ({len(found)} pieces): general added, Python's and C++'s gain kept, for prompts of {PROMPTS}")
    for together in (False, True):
        sets = [names for names in every if together or len(names) < 2]
        for evidence in EVIDENCE:
            row = [kept(measured(found, sets, p, lambda n, e=evidence: e / n)) for p in PROMPTS]
            shown = " | ".join(f"{g:+.2%} {k['code']:.1%} {k['cpp']:.1%}" for g, k in row)
            print(f"  {'all together too, ' if together else ''}evidence {evidence:g}: {shown}")
    for each in MARGINS:
        row = [kept(measured(found, every[:3], p, lambda _, m=each: m)) for p in PROMPTS]
        shown = " | ".join(f"{g:+.2%} {k['code']:.1%} {k['cpp']:.1%}" for g, k in row)
        print(f"  nats a token {each:g}: {shown}")


def report(found: Sequence[Piece], every: Sequence[Names]) -> None:
    """The default rule on the test pieces, its failures, the earlier rule and choosing again."""
    rule, sets = Rule(), [names for names in every if len(names) < 2]

    def margin(count: int) -> float:
        return rule.evidence / count

    print(f"test ({len(found)} pieces), evidence {rule.evidence:g}:")
    for prompt in PROMPTS:
        result = measured(found, sets, prompt, margin)
        print(f"  P {prompt}: {told(result)}; of all tokens, the prompt's under the base: {whole(result)}")
        if prompt >= 32:
            print(f"    95 %: {intervals(found, sets, prompt, margin)}")
        wrong = {
            f"{text} to {name_of(names)}": count
            for (text, names), count in sorted(result["picks"].items())
            if names != OWN.get(text, ())
        }
        print(f"    failures: {wrong}")
        for names in every[1:]:
            sums = result["sums"]
            rise = sums["general", names] / sums["general", ()] - 1
            print(f"    always {name_of(names)}: general {rise:+.2%}", end="")
            print("".join(f", {t} {(sums[t, ()] - sums[t, names]) / (sums[t, ()] - sums[t, OWN[t]]):.1%}" for t in OWN))
    print(
        f"  the earlier rule, P 64, 0.02 nats a token, all together too: {told(measured(found, every, 64, _earlier))}"
    )
    print(f"  choosing again at 32, 64, 128: {reading_on(found, sets, (32, 64, 128), margin)}")
    print(f"  choosing at 32 alone: {reading_on(found, sets, (32,), margin)}")


def compare(title: str, found: Sequence[Piece], every: Sequence[Names]) -> None:
    """The rule and the earlier one on other pieces."""
    rule, sets = Rule(), every[:3]

    def margin(count: int) -> float:
        return rule.evidence / count

    print(f"{title} ({len(found)}):")
    for prompt in PROMPTS[2:]:
        print(f"  P {prompt}: {told(measured(found, sets, prompt, margin))}")
        print(f"    95 %: {intervals(found, sets, prompt, margin)}")
    print(f"  the earlier rule: {told(measured(found, every, 64, _earlier))}")


def _earlier(_: int) -> float:
    return 0.02


def cost(model: Any) -> None:
    """Of scoring a prompt, in passes of the base's blocks and in time."""
    tokens = list(range(5, 5 + Rule().prompt_tokens))
    with torch.no_grad():
        one, times = torch.tensor([tokens]), []
        for _ in range(15):
            begin = time.perf_counter()
            model(one, use_cache=False)
            middle = time.perf_counter()
            route(model, tokens)
            times.append((time.perf_counter() - middle) / (middle - begin))
    print(
        f"cost: {cost_of(model, candidates_of(model)):.2f} passes of the base's blocks over the prompt; "
        f"in time {np.median(times):.2f} of one pass with all packs"
    )


def main() -> None:
    torch.set_num_threads(1)
    wide_texts()
    model = load_with_packs(BASE, [WORK / "pack" / "code-free", WORK / "pack" / "cpp-free"])
    every = candidates_of(model, together=True)
    choose_rule(pieces(model, "wide", "validation", every, set()), every)
    new = pieces(model, "wide", "test", every, seen_before())
    report(new, every)
    old = pieces(model, "text", "test", every, set())
    for title, found in (("the demo's test pieces", old), ("all test pieces", old + new)):
        compare(title, found, every)
    cost(model)


if __name__ == "__main__":
    main()
