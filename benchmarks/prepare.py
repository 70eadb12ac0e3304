"""How close does `prepare` come to the tokenizers library alone, how full are its rows, how much memory does it take?

Compared on the same documents (the Python files of this environment, as JSON lines), each in a process of its own:

- library: the library's `Tokenizer.encode_batch_fast` on all documents in one call, with its own threads;
- stage: the tokenising stage of `prepare`: documents to its processes, tokens back and into the spool on disk;
- prepare: all of `prepare`, files to shards, for one split; with three splits by the usual hash of five words; and with
  cleaning, near copies and evaluation texts on top.

Both are given as tokens a second of wall time and as CPU seconds, which a busy machine disturbs less. Then the peak
memory of the main process and of the largest of its processes at two corpus sizes, the share of filled positions, and
what a signature costs with numpy, datasketch and rensa (`--rivals PYTHON`: an interpreter that has those two).

    .venv/bin/python benchmarks/prepare.py [--megabytes 16] [--rounds 3] [--rivals /tmp/venv/bin/python] [--json]
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import sysconfig
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import Row, Spread, alternate, machine, measure, parser_of, serve_or, show, task_command

if TYPE_CHECKING:
    from blockexpand.corpus.documents import Document

_TOKENIZER = Path(__file__).parents[1] / "src" / "blockexpand" / "data" / "tiny_base"
_BATCH_CHARS = 500_000


def gather(path: Path, megabytes: float) -> None:
    """Write documents of about this much text as JSON lines, in an order that looks drawn."""
    files = sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"), key=lambda p: hash_of(p.name))
    left = megabytes * 1e6
    with path.open("w", encoding="utf-8") as stream:
        for file in files:
            text = file.read_text(encoding="utf-8", errors="ignore")
            stream.write(json.dumps({"text": text}) + "\n")
            left -= len(text)
            if left < 0:
                return


def hash_of(name: str) -> str:
    """A name's place in the order."""
    import hashlib

    return hashlib.sha256(name.encode()).hexdigest()


# --- tasks, each in a process of its own ------------------------------------------------------------------


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _documents(path: str) -> list[Document]:
    from blockexpand.corpus.reading import documents
    from blockexpand.corpus.sources import JsonSource

    return list(documents(JsonSource(kind="json", path=path)))


def library(path: str) -> dict[str, float]:
    """The library alone."""
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = [document.text for document in _documents(path)]
    tokenizer = Tokenizer.from_file(str(_TOKENIZER / "tokenizer.json"))
    start, cpu = time.perf_counter(), _cpu()
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    seconds, cpu_seconds = time.perf_counter() - start, _cpu() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": sum(map(len, encodings))}


def stage(path: str) -> dict[str, float]:
    """The tokenising stage, its processes started within the measured time."""
    from collections import deque

    import numpy as np
    from tokenizers import Tokenizer

    from blockexpand.corpus.spool import Spool
    from blockexpand.corpus.tokenizer import Ends
    from blockexpand.corpus.worker import Job
    from blockexpand.corpus.workers import Workers

    batches: list[list[Document]] = [[]]
    chars = 0
    for document in _documents(path):
        batches[-1].append(document)
        chars += len(document.text)
        if chars >= _BATCH_CHARS:
            batches.append([])
            chars = 0
    tokenizer = Tokenizer.from_file(str(_TOKENIZER / "tokenizer.json"))
    job = Job(
        tokenizer_json=tokenizer.to_str(),
        ends=Ends(bos=0, eos=1),
        chat_folder=None,
        cleaning=(None,),
        min_chars=1,
        place_by=None,
        banding=None,
        run_words=5,
        evaluation=None,
    )
    num_tokens = 0
    start, cpu = time.perf_counter(), _cpu()
    with tempfile.TemporaryDirectory() as folder, Workers(job, len(os.sched_getaffinity(0))) as workers:
        spool = Spool(Path(folder), np.dtype(np.uint16))
        waiting: deque[Any] = deque()

        def take() -> int:
            batch, future = waiting.popleft()
            found = future.result()
            ends = np.cumsum(found.lengths)
            for document, end, length in zip(batch, ends, found.lengths, strict=True):
                spool.append("train.0", found.tokens[end - length : end], len(document.text.encode()), None)
            return int(ends[-1]) if len(ends) else 0

        for batch in batches:
            waiting.append((batch, workers.encode(batch)))
            if len(waiting) > workers.num_at_once:
                num_tokens += take()
        while waiting:
            num_tokens += take()
        spool.close()
        seconds = time.perf_counter() - start
    num_documents = sum(map(len, batches))
    return {"seconds": seconds, "cpu_seconds": _cpu() - cpu, "tokens": num_tokens - 2 * num_documents}


def whole(path: str, settings: str) -> dict[str, float]:
    """All of prepare, its imports done before."""
    from blockexpand.corpus import PrepareRecipe, prepare
    from blockexpand.corpus.tokenizer import load_tokenizer
    from blockexpand.records import from_plain

    source: dict[str, Any] = {"kind": "json", "path": path}
    plain: dict[str, Any] = {"sources": [source], "row_tokens": 4096}
    if settings != "one split":
        plain["splits"] = {"train": {"share": 0.96}, "validation": {"share": 0.02}, "test": {"share": 0.02}}
    if settings == "everything":
        source["clean"] = {"like": "starcoder"}
        plain["duplicates"] = {"near": 0.8}
        plain["decontaminate"] = {"against": [{"kind": "json", "path": f"{path}.tasks"}]}
    recipe = from_plain(PrepareRecipe, plain)
    load_tokenizer(_TOKENIZER)
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), _cpu()
        record = prepare(recipe, _TOKENIZER, Path(folder) / "out")
        seconds, cpu_seconds = time.perf_counter() - start, _cpu() - cpu
    train = record.splits["train"]
    tokens = sum(split.num_tokens for split in record.splits.values())
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens, "fill": train.fill, **_peaks()}


def _peaks() -> dict[str, float]:
    import resource

    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"peak_mb": own / 1024, "peak_process_mb": children / 1024}


def signatures(path: str) -> dict[str, float]:
    """Seconds for the MinHash signatures of 300 documents, word splitting included, with each library that is there."""
    import re

    texts = [json.loads(line)["text"][:20_000] for _, line in zip(range(300), open(path), strict=False)]  # noqa: SIM115
    found: dict[str, float] = {"megabytes": sum(map(len, texts)) / 1e6}

    def timed(name: str, work: Any) -> None:
        start = time.process_time()
        for text in texts:
            words = re.findall(r"\w+", text.lower())
            work([" ".join(words[i : i + 5]) for i in range(len(words) - 4)] if name != "numpy" else words)
        found[name] = time.process_time() - start

    try:
        from blockexpand.corpus.fingerprints import WordHashes, gram_hashes, signature

        hashes = WordHashes()
        timed("numpy", lambda words: signature(gram_hashes(hashes.of(words), 5)))
    except ImportError:
        pass
    try:
        minhash = importlib.import_module("datasketch").MinHash
        timed("datasketch", lambda grams: minhash(112).update_batch([gram.encode() for gram in grams]))
    except ImportError:
        pass
    try:
        rust = importlib.import_module("rensa").RMinHash
        timed("rensa", lambda grams: rust(112, 1).update(grams))
    except ImportError:
        pass
    return found


# --- the benchmark ------------------------------------------------------------------------------------------


def _task(name: str, **arguments: Any) -> dict[str, float]:
    _, output = measure(task_command(__file__, name, **arguments))
    return json.loads(output.splitlines()[-1])


def _rows(results: dict[str, list[dict[str, float]]]) -> list[Row]:
    reference = results["library"]
    rows: list[Row] = []
    for name, runs in results.items():
        wall = Spread.of(r["seconds"] / o["seconds"] for r, o in zip(reference, runs, strict=True))
        cpu = Spread.of(r["cpu_seconds"] / o["cpu_seconds"] for r, o in zip(reference, runs, strict=True))
        row: Row = {"what": name, "tokens": runs[0]["tokens"]}
        row["tokens/s"] = Spread.of(r["tokens"] / r["seconds"] for r in runs)
        row["CPU s"] = Spread.of(r["cpu_seconds"] for r in runs)
        row["of the library's rate"] = wall
        row["by CPU seconds"] = cpu
        rows.append(row)
    return rows


def main() -> None:
    """Run and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--megabytes", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rivals", default=None, help="a Python that has datasketch and rensa")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, large = Path(folder) / "texts.jsonl", Path(folder) / "large.jsonl"
        gather(path, options.megabytes)
        gather(large, 4 * options.megabytes)
        first = json.loads(path.open().readline())["text"]
        Path(f"{path}.tasks").write_text(json.dumps({"text": first}) + "\n")
        tasks = {
            "library": partial(_task, "library", path=str(path)),
            "stage": partial(_task, "stage", path=str(path)),
            **{
                f"prepare, {words}": partial(_task, "whole", path=str(path), settings=words)
                for words in ("one split", "three splits", "everything")
            },
        }
        results = alternate(tasks, options.rounds)
        show("prepare against the tokenizers library", machine(), _rows(results), options.json)
        sizes: list[Row] = []
        for name, runs in (
            ("1x", results["prepare, one split"]),
            ("4x", [_task("whole", path=str(large), settings="one split")]),
        ):
            keys = ("tokens", "peak_mb", "peak_process_mb", "fill")
            sizes.append({"corpus": name, **{key: runs[0][key] for key in keys}})
        show("memory and fill", machine(), sizes, options.json)
        costs = _task("signatures", path=str(path))
        if options.rivals:
            _, output = measure([options.rivals, *task_command(__file__, "signatures", path=str(path))[1:]])
            costs |= json.loads(output.splitlines()[-1])
        show("CPU seconds for signatures", machine(), [dict(costs)], options.json)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve_or(main, {"library": library, "stage": stage, "whole": whole, "signatures": signatures})
