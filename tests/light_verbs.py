"""Which heavy libraries a command loads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HEAVY = ("torch", "transformers", "lm_eval", "starlette", "uvicorn")


def imported_by(*commands: Sequence[str | Path]) -> list[str]:
    """The heavy libraries that a process has loaded after running some commands, none of which may fail."""
    words = [[str(word) for word in command] for command in commands]
    code = (
        "import json, sys\nfrom blockexpand.cli.main import run\n"
        f"codes = [run(words) for words in {words!r}]\n"
        f"print(json.dumps([codes, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    codes, loaded = json.loads(done.stdout.splitlines()[-1])
    assert not any(codes), done.stderr
    return loaded
