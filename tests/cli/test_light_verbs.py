"""Verbs that only read records import neither torch nor transformers; and completion is cyclopts' own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from blockexpand.cli.main import VERBS, build_app
from light_verbs import imported_by


def test_help_and_doctor_load_no_torch() -> None:
    assert imported_by(["--help"], ["doctor"], *([*verb.split(), "--help"] for verb in VERBS)) == []


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
