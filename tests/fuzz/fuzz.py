"""Fuzzing with atheris: `python tests/fuzz/fuzz.py TARGET --seconds 60` (`pip install -e '.[fuzz]'`).

Targets: header, file, folder, plan, config. The corpus starts from seeds made in code and is kept in `--corpus`
between runs, when it is given. What breaks a promise is written to `crash-TARGET-*` in the working folder, and
`python tests/fuzz/fuzz.py TARGET FILE` runs it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["blockexpand"], enable_loader_override=False):
    from fuzz_mutations import mutate
    from fuzz_targets import TARGETS

MOST_MEGABYTES = 1024
"""Of memory for the whole process, the interpreter and the fuzzer's own tables included."""
MOST_INPUT_BYTES = 65_536


def change(data: bytes, max_size: int, seed: int) -> bytes:
    """Every other time a change that keeps JSON, otherwise libFuzzer's own."""
    changed = mutate(data, seed) if seed % 2 else None
    if changed is None or len(changed) > max_size:
        return atheris.Mutate(data, max_size)
    return changed


def main() -> None:
    """Run one target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("file", nargs="*", help="inputs to run once instead")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="a folder that keeps the inputs that reach new code")
    asked = parser.parse_args()
    run, seeds = TARGETS[asked.target]
    if asked.file:
        for name in asked.file:
            run(Path(name).read_bytes())
        return
    corpus = asked.corpus or Path(tempfile.mkdtemp(prefix=f"corpus-{asked.target}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={asked.seconds}",
        f"-max_len={MOST_INPUT_BYTES}",
        f"-rss_limit_mb={MOST_MEGABYTES}",
        "-timeout=10",
        "-print_final_stats=1",
        f"-artifact_prefix={os.getcwd()}/crash-{asked.target}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
