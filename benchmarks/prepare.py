"""How fast is `prepare`, against the tokenizer alone, how full are its rows, and how much memory does it take?

Each is measured in a process of its own, on the same documents: JSON lines made of this environment's Python files.
`library` is the tokenizer's own `encode_batch_fast` on all of them in one call; `prepare` is all from the file to
the splits.

    .venv/bin/python benchmarks/prepare.py [--megabytes 16 300] [--tokenizer FOLDER]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path


def gather(path: Path, megabytes: float) -> None:
    """Write documents of about this much text, some of them again with a line of their own to be as many as asked."""
    files = sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"), key=lambda p: p.name)
    left, again = megabytes * 1e6, 0
    with path.open("w", encoding="utf-8") as stream:
        while left > 0:
            for file in files:
                text = f"# {again}\n" * bool(again) + file.read_text(encoding="utf-8", errors="ignore")
                stream.write(json.dumps({"text": text}) + "\n")
                left -= len(text)
                if left < 0:
                    break
            again += 1


def measure(task: str, texts: Path, tokenizer: Path) -> dict[str, float]:
    """Do one task in this process; seconds, CPU seconds, tokens and peak megabytes."""
    from blockexpand.corpus import prepare
    from blockexpand.corpus.tokenizer import load_tokenizer

    begin, cpu = time.perf_counter(), time.process_time()
    if task == "library":
        loaded = load_tokenizer(tokenizer).backend_tokenizer
        with texts.open(encoding="utf-8") as stream:
            documents = [json.loads(line)["text"] for line in stream]
        tokens = sum(len(one) for one in loaded.encode_batch_fast(documents))
        fill = 1.0
    else:
        record = prepare(texts, tokenizer, texts.with_name("out"), overwrite=True)
        tokens = sum(split.num_tokens for split in record.splits.values())
        fill = record.splits["train"].fill
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "tokens": tokens,
        "fill": fill,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measure and print one line a task and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[16.0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--task", choices=("library", "prepare"))
    parser.add_argument("--texts", type=Path)
    asked = parser.parse_args()
    if asked.task:
        print(json.dumps(measure(asked.task, asked.texts, asked.tokenizer)))
        return
    for megabytes in asked.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            texts = Path(folder) / "texts.jsonl"
            gather(texts, megabytes)
            for task in ("library", "prepare"):
                words = [sys.executable, __file__, "--task", task, "--texts", str(texts)]
                done = subprocess.run([*words, "--tokenizer", str(asked.tokenizer)], stdout=subprocess.PIPE, check=True)
                found = json.loads(done.stdout)
                rate = found["tokens"] / found["seconds"]
                print(
                    f"{megabytes:g} MB {task:<8} {rate:>12,.0f} tokens/s {found['cpu_seconds']:>7.1f} CPU s "
                    f"{found['peak_mb']:>7,.0f} MB peak  rows {found['fill']:.2%} full"
                )


if __name__ == "__main__":
    main()
