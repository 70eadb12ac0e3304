"""The entry point: finds the verb, runs it, turns errors into one line and an exit code.

0 done (or saved and ended because the system asked for it), 1 the check failed, 2 bad input or usage, 130
interrupted. Nothing heavy is imported before the verb is known. Of the processes that torchrun starts, the
first one speaks for all; the others say only what went wrong in them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, get_args

from cyclopts import App, ArgumentCollection, CycloptsError

from blockexpand import __version__
from blockexpand.errors import BlockexpandError, Interrupted, UsageError

USAGE, INTERRUPTED = 2, 130

# verb: (module, function, what it does) - in the order in which the job is done.
VERBS = {
    "doctor": ("blockexpand.cli.doctor:doctor", "Say what this machine can do, and what is missing."),
    "learn": ("blockexpand.cli.learn:learn", "Teach a model your data and keep what it knew: the whole job."),
    "plan": ("blockexpand.cli.growing:plan", "Decide where new blocks go, and show what that costs."),
    "expand": ("blockexpand.cli.growing:expand", "Write the deeper checkpoint."),
    "verify": ("blockexpand.cli.growing:verify", "Prove that the deeper checkpoint is the base."),
    "prepare": ("blockexpand.cli.prepare:prepare", "Make packed token data from text, code or chats."),
    "train": (
        "blockexpand.cli.train:train",
        "Post-pretrain the new blocks, or any other arm, by a recipe.",
    ),
    "eval": (
        "blockexpand.cli.eval:evaluate",
        "Measure held-out losses and suites of benchmarks; give a verdict.",
    ),
    "agent": (
        "blockexpand.cli.agent:agent",
        "Let a model solve tasks in several turns with Python as its tool.",
    ),
    "judge": (
        "blockexpand.cli.judge:judge",
        "Let a judge compare two models' answers to questions of several turns.",
    ),
    "compare": (
        "blockexpand.cli.compare:compare",
        "Run methods side by side at equal budget, by a recipe.",
    ),
    "report": ("blockexpand.cli.report:report", "Put results on one HTML page."),
    "pack extract": ("blockexpand.cli.pack:extract", "Take the new blocks out of a run or an expanded folder."),
    "pack attach": ("blockexpand.cli.pack:attach", "Write the base with the blocks of one or more packs."),
    "pack detach": ("blockexpand.cli.pack:detach", "Give the base back, byte for byte."),
    "pack scale": ("blockexpand.cli.pack:scale", "Let a pack's blocks write a multiple of what they write."),
    "pack show": ("blockexpand.cli.pack:show_pack", "Say what a pack is; safe for a stranger's."),
    "push": ("blockexpand.cli.push:push", "Send a pack or a checkpoint to the hub, checked and with its model card."),
    "chat": ("blockexpand.cli.chat:chat", "Talk to a model, and to the base inside it."),
    "serve": (
        "blockexpand.cli.serve:serve",
        "Serve a model by OpenAI's API: it, the base inside it and each pack under a name of its own.",
    ),
    "demo": ("blockexpand.cli.demo:demo", "The whole story on the tiny base, in minutes."),
}

GROUPS = {"pack": "What was trained, as something to ship: extract, attach, detach, scale, show."}
"""Verbs of two words: what the first is about."""


def build_app() -> App:
    """The application with its verbs, none of them imported yet."""
    app = App(
        name="blockexpand",
        help="Teach a language model a domain without losing the rest: block expansion, proved at each step.",
        version=__version__,
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
        config=_whole_numbers,
    )
    groups: dict[str, App] = {}
    for order, (verb, (target, summary)) in enumerate(VERBS.items()):
        group, _, name = verb.rpartition(" ")
        if group and group not in groups:
            groups[group] = App(name=group, help=GROUPS[group], sort_key=order)
            app.command(groups[group])
        (groups[group] if group else app).command(target, name=name, help=summary, sort_key=order)
    app.register_install_completion_command(help="Let bash, zsh or fish complete verbs, options and their choices.")
    return app


def _whole_numbers(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse `--blocks 2.5` for every option that is a whole number: cyclopts would round it.

    Raises:
        UsageError: which option, and what was given.
    """
    del app, commands
    for argument in arguments:
        kinds = {argument.hint, *get_args(argument.hint)}
        for token in argument.tokens if int in kinds and float not in kinds else ():
            if "." in token.value:
                raise UsageError(f"{argument.name} is {token.value}; expected a whole number, e.g. {argument.name} 4")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(tokens))


def run(tokens: list[str]) -> int:
    """Run the command line; give back the exit code."""
    # Read when torch loads its OpenMP: threads that spin while they wait for a busy core cost more than they compute.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Models and data come from this machine; nothing that is merely curious may reach the network.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if tokens[:1] != ["push"]:  # which shows them on a terminal; all else has bars of its own
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    debug = "--debug" in tokens
    rank = process_rank()
    name = f"blockexpand (process {rank})" if rank else "blockexpand"
    try:
        if not rank:
            return _run_verb(tokens)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return _run_verb([*tokens, "--quiet"])
    except (CycloptsError, BlockexpandError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return INTERRUPTED
        if debug:
            raise
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return error.exit_code if isinstance(error, BlockexpandError) else USAGE
    except Interrupted as error:
        if not rank:
            print(f"blockexpand: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print(f"blockexpand: interrupted{': ' if str(error) else ''}{error}", file=sys.stderr)
        return INTERRUPTED


def process_rank() -> int:
    """Which of the processes that torchrun started this is; 0 without torchrun."""
    return int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def secret(variable: str) -> str:
    """The value of an environment variable that holds a key; keys are never options, which others can read.

    Raises:
        UsageError: it is not set.
    """
    value = os.environ.get(variable, "")
    if not value:
        raise UsageError(f"the environment variable {variable} is not set; expected it to hold a key; export it first")
    return value


def _run_verb(tokens: list[str]) -> int:
    from blockexpand.progress import progress_in, progress_on_stderr

    silent = "--quiet" in tokens
    with progress_in("silent") if silent else progress_on_stderr():
        code = build_app()(tokens)
    return code if isinstance(code, int) else 0


def one_line(error: BaseException) -> str:
    """The error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
