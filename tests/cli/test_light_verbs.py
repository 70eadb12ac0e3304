"""Verbs that only read records import neither torch nor transformers; and completion is cyclopts' own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blockexpand.cli.main import VERBS, build_app

HEAVY = ("torch", "transformers", "lm_eval")


def imported_by(*words: str | Path) -> list[str]:
    """The heavy libraries that a process has loaded after running these words."""
    code = (
        "import json, sys\nfrom blockexpand.cli.main import run\n"
        f"code = run({[str(word) for word in words]!r})\n"
        f"print(json.dumps([code, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return loaded


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("eval", "--help"), ("doctor",)])
def test_help_and_doctor_load_no_torch(words: tuple[str, ...]) -> None:
    assert imported_by(*words) == []


def test_bash_completes_verbs_options_and_choices(tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(build_app().generate_completion(shell="bash"))
    for words, offered in {
        ("",): {verb.split()[0] for verb in VERBS},
        ("pack", ""): {"extract", "attach", "detach", "show"},
        ("plan", "--placement", ""): {"interleaved", "prefix", "suffix"},
    }.items():
        ask = (
            f"source {path}; COMP_WORDS=(blockexpand {' '.join(map(repr, words))}); COMP_CWORD={len(words)}; "
            "function=$(complete -p blockexpand | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); "
            "$function blockexpand; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, check=True)
        assert offered <= {line.strip() for line in done.stdout.splitlines()}
