"""The verb eval: what a model can do, what it lost against another, and a verdict for use in CI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from blockexpand.cli.output import DEFAULTS, DONE, FAILED, Shared, key_without_server, named_folders, show
from blockexpand.errors import UsageError
from blockexpand.evaluation.harness import Options

if TYPE_CHECKING:
    from blockexpand.evaluation.measurement import Subject
    from blockexpand.evaluation.suites import SuiteFile
    from blockexpand.records.evaluation import Difference, EvaluationRecord, TaskScore, Verdict

Several = Annotated[list[str] | None, Parameter(negative="")]
Flag = Annotated[bool, Parameter(negative="")]
_SUITES = Group("Suites", sort_key=50)


@Parameter(name="*", negative="")
@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which model it is, and what is asked of it."""

    suite: Several = None
    """Suites (general, math, code, law, choice, perplexity, paper), single tasks of them, or the .yaml of one of your
    own; several with commas, or given several times."""
    pack: Several = None
    """A pack of new blocks to attach to the model; may be given several times."""
    route: Literal["auto", "always"] = "always"
    """always: all packs are on; auto: each document and question gets the base or the pack that finds it likelier."""
    endpoint: str | None = None
    """The address of an OpenAI-compatible server, e.g. http://localhost:8000/v1; MODEL is the model's name there."""
    key_variable: str | None = None
    """The environment variable that holds the server's key."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """What weights are loaded as; auto: the checkpoint's own type (float32 where bfloat16 is slow) or the suite's."""
    device: str = "auto"
    """Where the model runs: auto, cpu, or an accelerator of torch's, e.g. cuda:1."""
    resume: Flag = False
    """Go on with an evaluation by suites that was interrupted."""


DEFAULT_OPTIONS, NOTHING = Options(), Asked()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Against:
    """What to compare with."""

    against: str | None = None
    """A folder of records of another model, or that model, which is then measured in the same way into OUT/against."""
    budget: float | None = None
    """With --against: pass when the domain is better and nothing general lost more than this, e.g. 0.01; else the exit
    code is 1."""


ALONE = Against()


def evaluate(
    model: str | None = None,
    *,
    out: Path | None = None,
    data: Several = None,
    split: str = "test",
    list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
    compared: Annotated[Against, Parameter(name="*")] = ALONE,
    asked: Annotated[Asked, Parameter(name="*")] = NOTHING,
    options: Annotated[Options, Parameter(name="*", group=_SUITES, negative="")] = DEFAULT_OPTIONS,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """Measure held-out losses and suites of benchmarks; give a verdict.

    Parameters
    ----------
    model
        A model: a folder, a run, a hub id or a GGUF file; with --endpoint, the model's name there. With --against, also
        a folder of records: nothing is measured then.
    out
        The folder of records to write.
    data
        Prepared folders as name=folder; may be given several times. A corpus is of the domain, unless it is named
        general, or general-something.
    split
        Which split of the prepared folders.
    list_
        Instead of measuring: which data the suites want, and whether they are there.
    overwrite
        Replace the folder, if blockexpand made it.
    """
    measured = _Measured(data=named_folders(data or []), split=split, given=asked, options=options)
    if list_:
        return measured.show_wanted(common)
    if model is None:
        raise UsageError("eval needs MODEL; expected e.g. eval MODEL --data general=folder --out D, or eval --list")
    if compared.budget is not None and compared.against is None:
        raise UsageError(
            f"--budget {compared.budget} needs --against: the records or the folder of the model to compare with"
        )
    ours, theirs = measured.records(model, compared, out, overwrite, common)
    if theirs is None:
        return DONE
    from blockexpand.evaluation.verdict import compare_records, judge, state_budget
    from blockexpand.records.evaluation import read_evaluation

    found = compare_records(ours, theirs)
    verdict = None
    if compared.budget is not None:
        verdict = judge(found, compared.budget, state_budget(ours, theirs, compared.budget))
    value: dict[str, Any] = {"evaluation": read_evaluation(ours).record, "differences": found}
    other = read_evaluation(theirs).record.model
    show(common, value | ({"verdict": verdict} if verdict else {}), _compared(found, other, verdict))
    return DONE if verdict is None or verdict.passed else FAILED


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What is measured, of whichever model."""

    data: dict[str, str]
    split: str
    given: Asked
    options: Options

    def suites(self) -> list[SuiteFile]:
        from blockexpand.evaluation.suites import load_suites

        return load_suites([name for one in self.given.suite or [] for name in one.split(",") if name])

    def show_wanted(self, common: Shared) -> int:
        """What the suites (all of ours, unless some are named) read, and whether it is there."""
        from blockexpand.evaluation.harness import data_wanted, require_harness
        from blockexpand.evaluation.suites import known_suites, read_suite

        require_harness()
        files = self.suites() or [read_suite(path) for path in known_suites().values()]
        found = {file.suite.suite: data_wanted([file], self.options) for file in files}
        lines = []
        for name, some in found.items():
            lines.append(f"{name}: {sum(one.path is not None for one in some)} of {len(some)} files are there")
            lines += [f"  {one}" for one in some]
        plain = {name: [vars(one) for one in some] for name, some in found.items()}
        show(common, plain, "\n".join(lines))
        return DONE

    def records(
        self, model: str, compared: Against, out: Path | None, overwrite: bool, common: Shared
    ) -> tuple[Path, Path | None]:
        """The folders of records of both models; what is not there yet is measured and shown, ours first."""
        from blockexpand.evaluation.measurement import evaluate
        from blockexpand.records.evaluation import has_records
        from blockexpand.staging import check_output

        other = Path(compared.against) if compared.against is not None else None
        known = other is not None and has_records(other)
        if has_records(Path(model)) and other is not None:
            if not known:
                raise UsageError(
                    f"--against {other} has no records, and {model} has; expected a folder of records, too"
                )
            self._nothing_else(model)
            return Path(model), other
        if out is None:
            raise UsageError("eval needs --out: the folder of records to write; expected e.g. --out records")
        self._ignored()
        suites = self.suites()
        check_output(out, overwrite)
        self._check(suites, compared, other if known else None)
        subject = self.subject(model, suites)
        theirs = None
        if compared.against is not None and not known:
            theirs = self.subject(compared.against, suites, bare=True)

        def measure(which: Subject, folder: Path, replaced: bool) -> None:
            record = evaluate(
                which, self.data, folder, suites=suites, options=self.options, split=self.split,
                resume=self.given.resume, overwrite=replaced,
            )  # fmt: skip
            if not common.json or compared.against is None:
                show(common, record, figures_of(record))

        measure(subject, out, overwrite)
        if theirs is not None:
            measure(theirs, out / "against", True)
            return out, out / "against"
        return out, other

    def _check(self, suites: list[SuiteFile], compared: Against, records: Path | None) -> None:
        """What a comparison needs, before the first question."""
        from blockexpand.corpus.rows import open_corpus
        from blockexpand.evaluation.verdict import check_comparable, check_sides, side_of_corpus

        tasks = {task.task: file for file in suites for task in file.suite.tasks}
        if compared.budget is not None:
            sides = [file.side_of(task) for file in suites for task in file.suite.tasks]
            check_sides([*map(side_of_corpus, self.data), *sides])
        if records is not None:
            splits = {name: open_corpus(folder).record.splits.get(self.split) for name, folder in self.data.items()}
            digests = {name: one.digest for name, one in splits.items() if one is not None}
            versions = {name: file.suite.version for name, file in tasks.items()}
            check_comparable(records, digests, versions, self.options.limit)

    def _ignored(self) -> None:
        """Options that would do nothing."""
        if self.given.suite:
            return
        for name, value in vars(self.options).items():
            if name != "limit" and value != vars(DEFAULT_OPTIONS)[name]:
                raise UsageError(
                    f"--{name.replace('_', '-')} {value} is for suites, and none is given; expected --suite with it; "
                    "add one, or leave it out"
                )

    def _nothing_else(self, model: str) -> None:
        if self.data or self.given != NOTHING or self.options != DEFAULT_OPTIONS:
            raise UsageError(
                f"{model} holds records, so nothing is measured; expected only --against and --budget with it; leave "
                "out what is to be measured"
            )

    def subject(self, model: str, suites: list[SuiteFile], *, bare: bool = False) -> Subject:
        """The model under test; `bare`: the one it is compared with, which has no packs on it."""
        from blockexpand.evaluation.endpoint import Endpoint, require_client
        from blockexpand.evaluation.measurement import served_subject, subject_of
        from blockexpand.evaluation.suites import dtype_of
        from blockexpand.records.pack import Rule

        given = self.given
        if given.endpoint is None or bare:
            if given.key_variable is not None and not bare:
                raise key_without_server(given.key_variable)
            packs, rule = given.pack or (), Rule() if given.route == "auto" else None
            dtype = given.dtype if given.dtype != "auto" else dtype_of(suites)
            return subject_of(model, () if bare else packs, dtype, None if bare else rule, given.device)
        if not given.suite:
            raise UsageError("--endpoint is for suites: name at least one with --suite")
        if given.pack or given.route == "auto" or self.data:
            raise UsageError(
                f"--pack, --route auto and --data need the model itself, and {given.endpoint} is an address; "
                "leave them out"
            )
        from blockexpand.cli.main import secret

        require_client()
        key = secret(given.key_variable) if given.key_variable is not None else None
        return served_subject(Endpoint(given.endpoint, model, key=key))


def figures_of(record: EvaluationRecord) -> str:
    """What was measured, for people."""
    first = f", the first {record.limit:,} of each" if record.limit else ""
    lines = [f"{record.model} ({record.dtype}{first})"]
    for name, one in record.held_out.items():
        bits = "" if one.bits_per_byte is None else f"{one.bits_per_byte:.4f} bits/byte  "
        lines.append(
            f"  {name:<12} {one.loss:.4f} nats/token  perplexity {one.perplexity:,.2f}  {bits}"
            f"({one.num_documents:,} documents, {one.num_tokens:,} tokens)"
        )
    lines += [_task_line(task, one) for task, one in (record.suites.tasks.items() if record.suites else ())]
    return "\n".join(lines + _routes(record))


def _task_line(task: str, one: TaskScore) -> str:
    value = "unanswered" if one.value is None else f"{one.value:.4f}"
    if one.value is not None and one.low is not None and one.high is not None:
        value += f" [{one.low:.4f}, {one.high:.4f}]"
    notes = [f"{one.num_samples:,} samples, {one.shots}-shot"]
    notes += [f"chance {one.chance:.4f}"] if one.chance is not None else []
    notes += [f"{one.num_cut} cut to the context"] if one.num_cut else []
    notes += [f"{one.num_errors} without an answer"] if one.num_errors else []
    return f"  {one.suite:<10} {task:<24} {one.metric:<13} {value}  ({', '.join(notes)})"


def _routes(record: EvaluationRecord) -> list[str]:
    """Which packs were chosen how often, and what was kept of the gains after the prompts."""
    if (routing := record.routing) is None:
        return []
    lines = [f"  packs chosen by what is read, at {routing.passes:.2f} passes of the base's blocks a scored token:"]
    counted = {name: one.chosen for name, one in routing.held_out.items()}
    counted |= routing.suites
    for name, chosen in counted.items():
        lines.append(f"    {name:<14} {', '.join(f'{packs} {count:,}' for packs, count in chosen.items()) or 'none'}")
    for name, one in routing.held_out.items():
        after = ", ".join(f"{packs} {loss:.4f}" for packs, loss in one.after.items())
        lines.append(f"    {name:<14} after the prompts, nats/token: {after or 'nothing'}")
    return lines


def _compared(found: dict[str, Difference], other: str, verdict: Verdict | None) -> str:
    lines = ["", f"against {other} (that model -> this one; 95 % intervals of the difference):"]
    for name, one in found.items():
        lines.append(f"  {name}: {_difference_line(one)}")
        if (flips := one.flips) is not None:
            chance = f"; guessing alone would change {flips.by_chance:.1f} each way" if flips.by_chance else ""
            wrong = one.num_pairs - flips.num_right_before
            lines.append(
                f"    of {flips.num_right_before:,} right before, {flips.num_lost:,} are wrong now; of {wrong:,} wrong "
                f"before, {flips.num_gained:,} are right now{chance}"
            )
    if verdict is not None:
        from blockexpand.records.budget import say_budget

        lines += ["", f"verdict: {'pass' if verdict.passed else 'FAIL'} at a budget of {100 * verdict.budget:g} %"]
        if verdict.statement is not None and verdict.statement.holds:
            lines.append(f"  {say_budget(verdict.statement)}")
        lines += [f"  {reason}" for reason in verdict.reasons]
    return "\n".join(lines)


def _difference_line(one: Difference) -> str:
    unit, scale, places = ("points", 100.0, 2) if one.unit == "share" else (one.unit, 1.0, 4)
    shown = "{:.1%}" if one.unit == "share" else "{:.4f}"
    change = scale * (one.ours - one.theirs)
    better = "better" if one.better_by > 0 else "worse" if one.better_by < 0 else "equal"
    relative = "" if one.unit == "share" else f" ({-100 * one.better_by:+.2f} %)"
    pairs = f"{one.num_pairs:,} pairs"
    if one.interval is None:
        where = f"no interval, too few: {one.num_pairs}"
    else:
        noise = ", may be noise" if one.interval.is_noise else ""
        where = f"[{scale * one.interval.low:+.{places}f}, {scale * one.interval.high:+.{places}f}] over {pairs}{noise}"
    figures = f"{shown.format(one.theirs)} -> {shown.format(one.ours)}"
    return f"{figures}, {change:+.{places}f} {unit}{relative}, {better}; {where}"
