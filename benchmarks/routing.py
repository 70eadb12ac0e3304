"""Routing on the tiny base: forgetting and gain when each document's packs are chosen by its own beginning.

    .venv/bin/python benchmarks/packs.py train
    .venv/bin/python benchmarks/routing.py

Documents of general text, Python and C++ headers, mixed. The first P tokens of each piece are the prompt; what is
measured is the rest of it. The margin is chosen on the validation splits and used on the test splits.
The packs were trained without any retention (`code-free`, `cpp-free`), so always on they forget freely.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blockexpand.corpus import open_corpus
from blockexpand.corpus.dataset import batches
from blockexpand.demonstration.paths import BASE
from blockexpand.numerics.forward import RowBatch
from blockexpand.packs import load_with_packs
from blockexpand.packs.routing import Names, candidates_of, choose, cost_of, losses_by_set, route

WORK = Path("runs/packs")
"""Of benchmarks/packs.py."""
TEXTS = ("general", "code", "cpp")
PROMPTS = (16, 32, 64)
MARGINS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
LEAST_AFTER = 16
"""Tokens that a piece must have after the prompt to be measured."""


def pieces(model: Any, split: str, sets: Sequence[Names]) -> list[tuple[str, np.ndarray, dict[Names, np.ndarray]]]:
    """Each piece of a document: its text's name, and its tokens' losses under each set of packs."""
    found = []
    for text in TEXTS:
        rows = open_corpus(WORK / "text" / text).rows(split)
        for chosen in batches(rows.num_rows, 8):
            trained_NT, positions_NT = rows.trained_NT(chosen), rows.positions_NT(chosen)
            batch = RowBatch.of(rows.tokens_NT(chosen), positions_NT, trained_NT, torch.device("cpu"))
            losses = {names: value.numpy() for names, value in losses_by_set(model, batch, sets).items()}
            counted = trained_NT[:, 1:]
            starts = np.cumsum(positions_NT == 0, axis=1) + 10_000 * np.arange(len(chosen))[:, None]
            of_R, at_R = starts[:, 1:][counted], positions_NT[:, 1:][counted]
            for piece in np.unique(of_R):
                mine = of_R == piece
                found.append((text, at_R[mine], {names: value[mine] for names, value in losses.items()}))
    return found


def measured(found: Any, sets: Sequence[Names], prompt: int, margin: float) -> dict[str, Any]:
    """Loss after the prompt by text: of the base, of each set always on, and routed; and what was chosen."""
    sums: dict[tuple[str, Any], float] = {}
    counts: dict[str, int] = {}
    picks: dict[tuple[str, Names], int] = {}
    for text, at, losses in found:
        if (at >= prompt).sum() < LEAST_AFTER:
            continue
        nats = {names: float(losses[names][at < prompt].mean()) for names in sets}
        pick = choose(nats, margin)
        picks[text, pick] = picks.get((text, pick), 0) + 1
        counts[text] = counts.get(text, 0) + int((at >= prompt).sum())
        for names in sets:
            sums[text, names] = sums.get((text, names), 0.0) + float(losses[names][at >= prompt].sum())
        sums[text, "routed"] = sums.get((text, "routed"), 0.0) + float(losses[pick][at >= prompt].sum())
    return {"loss": {key: value / counts[key[0]] for key, value in sums.items()}, "picks": picks}


def told(result: dict[str, Any], own: dict[str, Names]) -> str:
    """Forgetting and the share of the gain that is kept."""
    loss, picks = result["loss"], result["picks"]
    general = loss["general", "routed"] / loss["general", ()] - 1
    parts = [f"general {general:+.3%}"]
    for text, names in own.items():
        gain = loss[text, ()] - loss[text, names]
        parts.append(f"{text} gain {(loss[text, ()] - loss[text, 'routed']) / gain:.1%} of {gain:.3f}")
    right = {t: sum(n for (text, p), n in picks.items() if text == t and p == own.get(t, ())) for t in TEXTS}
    total = {t: sum(n for (text, _), n in picks.items() if text == t) for t in TEXTS}
    parts.append("right " + ", ".join(f"{t} {right[t]}/{total[t]}" for t in TEXTS))
    return "; ".join(parts)


def main() -> None:
    torch.set_num_threads(1)
    model = load_with_packs(BASE, [WORK / "pack" / "code-free", WORK / "pack" / "cpp-free"])
    own: dict[str, Names] = {"code": ("code-free",), "cpp": ("cpp-free",)}
    sets = candidates_of(model)
    chosen: dict[int, float] = {}
    found = pieces(model, "validation", sets)
    print("validation (chooses the margin):")
    for prompt in PROMPTS:
        for margin in MARGINS:
            print(f"  P {prompt} margin {margin}: {told(measured(found, sets, prompt, margin), own)}")
        # The least loss over all documents after the prompt.
        chosen[prompt] = min(
            MARGINS, key=lambda m, p=prompt: sum(measured(found, sets, p, m)["loss"][t, "routed"] for t in TEXTS)
        )
    print("test:")
    found = pieces(model, "test", sets)
    for prompt in PROMPTS:
        result = measured(found, sets, prompt, chosen[prompt])
        print(f"  P {prompt} margin {chosen[prompt]}: {told(result, own)}")
        for names in sets[1:]:
            rise = result["loss"]["general", names] / result["loss"]["general", ()] - 1
            print(f"    always {'+'.join(names)}: general {rise:+.2%}", end="")
            print("".join(f", {t} {result['loss'][t, ()] - result['loss'][t, names]:+.3f}" for t in own))
        wrong = {key: n for key, n in sorted(result["picks"].items()) if key[1] != own.get(key[0], ())}
        print(f"    failures (text, chosen): {wrong}")
    tokens = list(range(5, 5 + 64))
    with torch.no_grad():
        one = torch.tensor([tokens])
        times = []
        for _ in range(15):
            begin = time.perf_counter()
            model(one, use_cache=False)
            middle = time.perf_counter()
            route(model, tokens)
            times.append((time.perf_counter() - middle) / (middle - begin))
    print(
        f"cost: {cost_of(model, sets):.2f} passes of the base's blocks; "
        f"in time {np.median(times):.2f} of one pass with all packs"
    )


if __name__ == "__main__":
    main()
