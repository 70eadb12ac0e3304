"""Does the budget hold? Many short runs, each with documents of its own to steer by and to be tested on.

    python -m studies.budget.proof OUT.json [--base FOLDER] [--general FILE] --domain NAME=FILE.. [--arm KIND]

In: a base; text like what it knows (FILE with a document a line, as text or as {"text": ...}, or stories apart by
<|endoftext|>; without it the prose of the installed packages that the tiny base has not read); domains in the same
forms, or `python` for the standard library. Out: a record with a line a run, kept run by run: killed, it goes on.

Each seed draws its own documents for steering, for the budget's test, and unseen ones; how far general loss really rose
is measured on the latter. Beside what was shipped stands what the choice of before gives on the same run: the
checkpoint with the lowest domain loss among those whose mean rise on the steering rows is inside the budget.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import blockexpand
from blockexpand.corpus import PrepareRecipe, Source, SplitRecipe, load_tokenizer
from blockexpand.data import TINY_BASE
from blockexpand.records import from_plain, write_json
from blockexpand.records.run import TrainSettings, read_metrics
from studies.tiny_base.general_text import split_of
from studies.tiny_base.prose import prose_documents

ROW_TOKENS, DOCUMENT_CHARS = 128, 400
TEST_DOCUMENTS = 400
BUDGET = 0.01
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "blocks": {"name": "muon", "lr": 2e-2},
    "full": {"name": "adamw", "lr": 1e-3},
    "lora": {"name": "adamw", "lr": 2e-3},
}


def read_texts(path: Path) -> list[str]:
    """The documents of a file, none longer than `DOCUMENT_CHARS`: long ones are cut into several."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        whole = [json.loads(line)["text"] for line in text.splitlines()]
    else:
        whole = text.split("<|endoftext|>" if "<|endoftext|>" in text else "\n\n")
    return [piece for one in whole for piece in pieces(one)]


def pieces(text: str) -> list[str]:
    """A text in pieces that end with a line or a word."""
    words, made = text.split(" "), [""]
    for word in words:
        if len(made[-1]) + len(word) > DOCUMENT_CHARS:
            made.append("")
        made[-1] += (" " if made[-1] else "") + word
    return [piece.strip() for piece in made if len(piece.strip()) >= 80]


def unread_prose() -> list[str]:
    """What the tiny base has not read of the prose in the installed packages."""
    return [piece for one in prose_documents() if split_of(one.text) != "train" for piece in pieces(one.text)[:4]]


def python_texts() -> list[str]:
    """Pieces of the running Python's standard library."""
    root = Path(json.__file__).parents[1]
    files = sorted(path for path in root.glob("*.py"))
    return [piece for path in files for piece in pieces(path.read_text(encoding="utf-8", errors="ignore"))[:30]]


def corpus(texts: list[str], splits: dict[str, int], base: Path, folder: Path) -> Path:
    """A prepared folder: of each split so many tokens, in the order of the texts."""
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    recipe = PrepareRecipe(
        sources=(Source(path=str(source)),),
        row_tokens=ROW_TOKENS,
        splits={name: SplitRecipe(share=1 / len(splits), max_tokens=tokens) for name, tokens in splits.items()},
    )
    blockexpand.prepare(recipe, base, folder)
    return folder


def losses(model: Any, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """The loss of each text, summed over its tokens, nats [N]."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    found = []
    for start in range(0, len(texts), 32):
        rows = [
            [*bos, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id][: 4 * ROW_TOKENS]
            for text in texts[start : start + 32]
        ]
        longest = max(map(len, rows))
        tokens_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        counts_BT = torch.tensor([[1] * (len(row) - 1) + [0] * (longest - len(row)) for row in rows])
        with torch.no_grad():
            logits_BTV = model(tokens_BT).logits[:, :-1].float()
        ce_BT = torch.nn.functional.cross_entropy(logits_BTV.transpose(1, 2), tokens_BT[:, 1:], reduction="none")
        found += (ce_BT * counts_BT).sum(1).tolist()
    return np.array(found)


def settings_of(arm: str, model: Path, out: Path, data: dict[str, Any], options: argparse.Namespace) -> TrainSettings:
    """One run, as short as it can be and still learn."""
    plain = {
        "model": str(model),
        "out": str(out),
        "arm": {"kind": arm} | ({"rank": 16} if arm == "lora" else {}),
        "data": data,
        "domain_tokens": options.steps * 6 * ROW_TOKENS,
        "rows_per_step": 8,
        "rows_per_pass": 8,
        "precision": "float32",
        "optimizer": OPTIMIZERS[arm] | ({"lr": options.lr} if options.lr else {}),
        "retention": {"replay": 0.25, "ce_weight": 0.0, "kl_weight": 8.0, "forgetting_budget": BUDGET},
        "measure_every_steps": max(1, options.steps // 6),
        "checkpoint_every_steps": max(1, options.steps // 6),
        "keep_checkpoints": 100,
        "track": [],
        "seed": data.pop("seed"),
    }
    return from_plain(TrainSettings, plain, "the study")


def before(run: Path) -> dict[str, Any]:
    """The checkpoint that was shipped before the budget was a contract: its step and its trained tensors."""
    measured = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "measure"]
    inside = [row for row in measured if row["rise"] is not None and row["rise"] <= BUDGET]
    best = min(inside, key=lambda row: row["domain"])
    path = run / "checkpoints" / f"step-{best['step']:08d}" / "trainable.safetensors"
    return {"step": best["step"], "domain": best["domain"], "path": path if best["step"] else None}


def one_run(arm: str, seed: int, domain: str, place: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train, measure what was shipped and what would have been on unseen documents."""
    began = time.process_time()
    base, tokenizer = place["base"], place["tokenizer"]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        data = {
            "domain": str(place["domains"][domain]),
            "general": str(place["general"]),
            "validation_rows": 16,
            "seed": seed,
        }
        started = base if arm != "blocks" else place["expanded"]
        record = blockexpand.train(settings_of(arm, started, out, data, options))
        trained = time.process_time() - began
        assert record.kept is not None
        assert record.best is not None
        assert record.base is not None
        kept, old = record.kept.texts[0], before(out)
        model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32).eval()
        now = losses(model, tokenizer, place["unseen"])
        rise_before = 0.0
        if old["path"] is not None and arm != "lora":
            found = model.load_state_dict(load_file(old["path"]), strict=False)
            assert not found.unexpected_keys, found.unexpected_keys
            rise_before = float(losses(model, tokenizer, place["unseen"]).sum() / place["unseen_losses"].sum() - 1)
    return {
        "arm": arm,
        "domain": domain,
        "seed": seed,
        "scale": record.kept.scale,
        "documents": kept.num_documents,
        "rise": kept.rise,
        "bound": kept.bound,
        "documents_needed": kept.documents_needed,
        "rise_unseen": float(now.sum() / place["unseen_losses"].sum() - 1),
        "gain": record.base.domain - record.best.domain,
        "scales": {str(tried.scale): tried.bounds[kept.text] for tried in record.kept.tried},
        "gains": {str(t.scale): record.base.domain - t.domain_loss for t in record.kept.tried if t.domain_loss},
        "step_before": old["step"] if arm != "lora" else None,
        "rise_unseen_before": rise_before if arm != "lora" else None,
        "gain_before": record.base.domain - old["domain"],
        "train_seconds": record.train_seconds,
        "cpu_seconds": round(time.process_time() - began, 1),
        "cpu_seconds_of_train": round(trained, 1),
    }


def prepare_seed(seed: int, texts: list[str], base: Path, root: Path) -> dict[str, Any]:
    """The general text of one seed: its own draw of documents to rehearse, to steer by, to test on, and unseen ones."""
    mixed = list(texts)
    random.Random(seed).shuffle(mixed)
    splits = {"replay": 12_000, "validation": 30_000}
    general = corpus(mixed[TEST_DOCUMENTS:], splits, base, root / f"general-{seed}")
    tokenizer = load_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    unseen = mixed[:TEST_DOCUMENTS]
    return {
        "general": general,
        "unseen": unseen,
        "tokenizer": tokenizer,
        "unseen_losses": losses(model, tokenizer, unseen),
    }


def main() -> None:
    """Do the runs that the record does not have yet."""
    options = _options()
    torch.set_num_threads(1)
    out, base = Path(options.out), Path(options.base)
    runs = json.loads(out.read_text(encoding="utf-8"))["runs"] if out.is_file() else []
    done = {(run["arm"], run["domain"], run["seed"]) for run in runs}
    texts = [t for path in options.general for t in read_texts(Path(path))] if options.general else unread_prose()
    named = dict(one.partition("=")[::2] for one in options.domain)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        domains = {}
        for name, path in named.items():
            found = python_texts() if not path else read_texts(Path(path))
            random.Random(0).shuffle(found)
            domains[name] = corpus(found, {"train": 60_000, "validation": 12_000}, base, root / name)
        blockexpand.expand(base, root / "expanded", blockexpand.plan(base, options.blocks))
        shared = {"base": base, "domains": domains, "expanded": root / "expanded"}
        for seed in range(options.first_seed, options.seeds):
            wanted = [(a, d, seed) for a in options.arm for d in named if (a, d, seed) not in done]
            if not wanted:
                continue
            place = shared | prepare_seed(seed, texts, base, root)
            for arm, domain, _ in wanted:
                runs.append(one_run(arm, seed, domain, place, options))
                head = {"base": base.name, "budget": BUDGET, "steps": options.steps, "texts": len(texts)}
                write_json(out, head | {"versions": {"torch": torch.__version__}, "runs": runs})
                last = runs[-1]
                print(len(runs), *(f"{k}={last[k]}" for k in ("arm", "domain", "seed", "scale")), flush=True)
                print("   ", {k: last[k] for k in ("bound", "rise_unseen", "gain", "cpu_seconds")}, flush=True)
            shutil.rmtree(place["general"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--base", default=str(TINY_BASE))
    parser.add_argument("--general", action="append", default=[])
    parser.add_argument("--domain", action="append", default=[], required=True, help="NAME=FILE, or python=")
    parser.add_argument("--arm", action="append", default=[])
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--lr", type=float, default=None)
    options = parser.parse_args()
    options.arm = options.arm or ["blocks"]
    return options


if __name__ == "__main__":
    main()
