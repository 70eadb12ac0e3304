"""The verb completion: the script by which a shell completes verbs, options and their choices."""

from __future__ import annotations

from typing import Literal

from blockexpand.cli.output import DEFAULTS, DONE, Shared, show

Shell = Literal["bash", "zsh", "fish"]


def completion(shell: Shell, *, common: Shared = DEFAULTS) -> int:
    """Print the script by which a shell completes verbs, options and their choices. Nothing is installed.

    Parameters
    ----------
    shell
        bash, zsh or fish. For this session of bash: source <(blockexpand completion bash). To keep it, write the script
        to ~/.local/share/bash-completion/completions/blockexpand (bash), to _blockexpand in a folder of $fpath (zsh),
        or to ~/.config/fish/completions/blockexpand.fish (fish); write it again after an upgrade.
    """
    from blockexpand.cli.main import build_app

    script = build_app().generate_completion(shell=shell)
    show(common, {"shell": shell, "script": script}, script)
    return DONE
