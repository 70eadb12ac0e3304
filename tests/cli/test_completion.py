"""Completion: the scripts are whole in each shell that is here, and bash really completes by its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from blockexpand.cli.main import VERBS, run

SHELLS = ("bash", "zsh", "fish")


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["completion", shell]) == 0
    return capsys.readouterr().out


def completed(path: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words, as when Tab is pressed behind it."""
    ask = (
        f"source {path}; COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; "
        "function=$(complete -p blockexpand | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); "
        "$function blockexpand; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, check=True)
    return [line.strip() for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_takes_its_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    for verb in VERBS:
        assert verb.split()[-1] in text
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / "script").write_text(text)
    done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "offered", "not_offered"),
    [
        ((), {verb.split()[0] for verb in VERBS}, {"extract"}),
        (("ev",), {"eval"}, {"expand"}),
        (("pack", ""), {"extract", "attach", "detach", "show"}, {"plan"}),
        (("plan", "--pl"), {"--placement"}, {"--blocks"}),
        (("plan", "--placement", ""), {"interleaved", "prefix", "suffix"}, set()),
        (("pack", "extract", "a", "b", "--enc"), {"--encoding"}, {"--name"}),
        (("completion", ""), set(SHELLS), set()),
    ],
)
def test_bash_completes(
    words: tuple[str, ...], offered: set[str], not_offered: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script").write_text(script("bash", capsys))
    found = set(completed(tmp_path / "script", "blockexpand", *(words or ("",))))
    assert offered <= found
    assert not not_offered & found


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "tcsh"]) == 2
    error = capsys.readouterr().err
    assert "tcsh" in error
    assert "bash" in error


def test_the_help_says_how_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("source <(blockexpand completion bash)", "$fpath", "completions/blockexpand.fish"):
        assert word in " ".join(shown.replace("│", " ").split())
