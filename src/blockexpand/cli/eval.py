"""The verb eval: what a model can do, what it lost against another, and a verdict for use in CI."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from blockexpand.cli.output import DEFAULTS, DONE, FAILED, Shared, key_without_server, named_folders, show
from blockexpand.errors import UsageError

if TYPE_CHECKING:
    from blockexpand.evaluation.harness import Options
    from blockexpand.evaluation.measurement import Candidate
    from blockexpand.records.evaluation import Difference, EvaluationRecord, Verdict

Several = Annotated[list[str] | None, Parameter(negative="")]
Flag = Annotated[bool, Parameter(negative="")]


@Parameter(name="*", group=Group("Suites", sort_key=50), negative="")
@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """How suites are run."""

    suite: Several = None
    """Suites (general, math, code, law, perplexity, paper), single tasks of them, or the .yaml of one of your own;
    several with commas, or given several times."""
    data_dir: Path | None = None
    """The tasks' data on this machine, as TASK/SPLIT.jsonl; what is not there comes from the hub."""
    pack: Several = None
    """A pack of new blocks to attach to the model; may be given several times."""
    route: Literal["auto", "always"] = "always"
    """always: all packs are on; auto: each document and question gets the base or the pack that finds it likelier."""
    endpoint: str | None = None
    """The address of an OpenAI-compatible server, e.g. http://localhost:8000/v1; MODEL is the model's name there."""
    key_variable: str | None = None
    """The environment variable that holds the server's key."""
    limit: int | None = None
    """Only the first samples of each task."""
    shots: int | None = None
    """At most this many examples before a question."""
    samples: int = 1
    """Outputs drawn for each question of the code tasks, for pass@k; 1 is one greedy output."""
    chat: Flag = False
    """Ask through the chat template."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """What the weights are loaded as; the checkpoint's own type, unless the suite says otherwise."""
    batch_size: int = 16
    """Sequences of a pass."""
    window_tokens: int | None = None
    """Of the perplexity suite; the model's longest unless given."""
    stride_tokens: int | None = None
    """New tokens that each of its windows predicts; half a window unless given."""
    unsafe: Flag = False
    """Run programs that models write without isolation, where there is no sandbox."""
    resume: Flag = False
    """Go on with an evaluation by suites that was interrupted."""


NO_SUITES = SuiteOptions()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Against:
    """What to compare with."""

    against: Path | None = None
    """A folder of records of another model, or that model, to show the paired differences to."""
    budget: float | None = None
    """With --against: pass when the domain is better and nothing general lost more than this, e.g. 0.01; else the exit
    code is 1."""


ALONE = Against()


def evaluate(
    model: str,
    *,
    out: Path,
    data: Several = None,
    tasks: Path | None = None,
    split: str = "test",
    compared: Annotated[Against, Parameter(name="*")] = ALONE,
    suites: Annotated[SuiteOptions, Parameter(name="*")] = NO_SUITES,
    overwrite: bool = False,
    common: Shared = DEFAULTS,
) -> int:
    """Measure held-out losses, suites of benchmarks and tasks with checkable answers; give a verdict.

    Parameters
    ----------
    model
        The folder of a checkpoint; with --endpoint, the model's name there.
    out
        The folder of records to write.
    data
        Prepared folders as name=folder; may be given several times.
    tasks
        JSON lines of task, prompt and answer, asked through the chat template.
    split
        Which split of the prepared folders.
    overwrite
        Replace the folder, if blockexpand made it.
    """
    from blockexpand.evaluation.answers import load_tasks
    from blockexpand.evaluation.verdict import compare_records, judge

    if compared.budget is not None and compared.against is None:
        raise UsageError(
            f"--budget {compared.budget} needs --against: the records or the folder of the model to compare with"
        )
    questions = load_tasks(tasks) if tasks is not None else []
    measured = _Measured(data=named_folders(data or []), questions=questions, split=split, suites=suites)
    record = measured.write(measured.candidate(model), out, overwrite)
    if compared.against is None:
        show(common, record, _figures(record))
        return DONE
    found = compare_records(out, measured.records_of(compared.against, out))
    verdict = judge(found, compared.budget) if compared.budget is not None else None
    value: dict[str, Any] = {"evaluation": record, "differences": found}
    show(common, value | ({"verdict": verdict} if verdict else {}), _figures(record) + _compared(found, verdict))
    return DONE if verdict is None or verdict.passed else FAILED


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What is measured, of whichever model."""

    data: dict[str, str]
    questions: list
    split: str
    suites: SuiteOptions

    @property
    def names(self) -> list[str]:
        return [name for one in self.suites.suite or [] for name in one.split(",") if name]

    def candidate(self, model: str) -> Candidate:
        from blockexpand.checkpoint import locate_model
        from blockexpand.evaluation.endpoint import Endpoint
        from blockexpand.evaluation.measurement import Candidate
        from blockexpand.records.pack import Rule

        given = self.suites
        if not self.names and given.endpoint:
            raise UsageError("--endpoint is for suites: name at least one with --suite")
        if given.endpoint is None:
            if given.key_variable is not None:
                raise key_without_server(given.key_variable)
            rule = Rule() if given.route == "auto" else None
            model = str(locate_model(model))
            candidate = Candidate(model=model, packs=tuple(given.pack or ()), dtype=given.dtype, rule=rule)
            candidate.check_route()
            return candidate
        if given.pack or given.route == "auto":
            raise UsageError(
                f"--pack and --route auto need the model itself, and {given.endpoint} is an address; leave them out"
            )
        if self.data or self.questions:
            raise UsageError(
                f"--data and --tasks need the model itself, and {given.endpoint} is an address; leave them out"
            )
        from blockexpand.cli.main import secret

        key = secret(given.key_variable) if given.key_variable is not None else None
        return Candidate(model=model, endpoint=Endpoint(given.endpoint, model, key=key))

    def write(self, candidate: Candidate, out: Path, overwrite: bool) -> EvaluationRecord:
        from blockexpand.evaluation.evaluating import HeldOutWork, evaluate
        from blockexpand.evaluation.measurement import Start, evaluate_suites
        from blockexpand.evaluation.suites import load_suites

        if not self.names:
            subject = candidate.subject()
            return evaluate(subject, self.data, out, tasks=self.questions, split=self.split, overwrite=overwrite)
        work = None
        if self.data or self.questions:
            work = HeldOutWork.of(Path(candidate.model), self.data, self.questions, self.split)
        chosen = load_suites(self.names)
        start = Start(resume=self.suites.resume, overwrite=overwrite)
        return evaluate_suites(candidate, chosen, out, self._options(), work, start)

    def _options(self) -> Options:
        from blockexpand.evaluation.harness import Options

        given = self.suites
        same = {f.name: vars(given)[f.name] for f in dataclasses.fields(Options) if f.name in vars(given)}
        return Options(**same, data=str(given.data_dir) if given.data_dir else None)

    def records_of(self, against: Path, out: Path) -> Path:
        """The folder itself if it holds records; else what the model in it scores, in a folder beside `out`."""
        from blockexpand.checkpoint import locate_model
        from blockexpand.evaluation.measurement import Candidate
        from blockexpand.records.evaluation import has_records

        if has_records(against):
            return against
        beside = out.with_name(f"{out.name}-against")
        self.write(Candidate(model=str(locate_model(against)), dtype=self.suites.dtype), beside, overwrite=True)
        return beside


def _figures(record: EvaluationRecord) -> str:
    lines = [f"{record.model}"]
    for name, one in record.held_out.items():
        lines.append(
            f"  {name:<12} {one.loss:.4f} nats/token  perplexity {one.perplexity:,.2f}  {one.bits_per_byte:.4f} "
            f"bits/byte  ({one.num_documents:,} documents)"
        )
    if record.answers is not None:
        lines.append(f"  answers      {record.answers.right:.1%} of {record.answers.num_samples} right")
        lines += [f"    {task:<14} {share:.1%}" for task, share in record.answers.by_task.items()]
    for task, one in record.suites.tasks.items() if record.suites else ():
        value = "unanswered" if one.value is None else f"{one.value:.4f}"
        error = f" +- {one.standard_error:.4f}" if one.standard_error is not None else ""
        notes = [f"{one.num_samples:,} samples, {one.shots}-shot"]
        notes += [f"{one.num_cut} cut to the context"] if one.num_cut else []
        notes += [f"{one.num_errors} without an answer"] if one.num_errors else []
        lines.append(f"  {one.suite:<10} {task:<24} {one.metric:<13} {value}{error}  ({', '.join(notes)})")
    return "\n".join(lines + _routes(record))


def _routes(record: EvaluationRecord) -> list[str]:
    """Which packs were chosen how often, and what was kept of the gains after the prompts."""
    if (routing := record.routing) is None:
        return []
    lines = [f"  packs chosen by what is read, at {routing.passes:.2f} passes of the base's blocks a scored token:"]
    counted = {name: one.chosen for name, one in routing.held_out.items()}
    counted |= ({"answers": routing.answers} if routing.answers else {}) | routing.suites
    for name, chosen in counted.items():
        lines.append(f"    {name:<14} {', '.join(f'{packs} {count:,}' for packs, count in chosen.items()) or 'none'}")
    for name, one in routing.held_out.items():
        after = ", ".join(f"{packs} {loss:.4f}" for packs, loss in one.after.items())
        lines.append(f"    {name:<14} after the prompts, nats/token: {after or 'nothing'}")
    return lines


def _compared(found: dict[str, Difference], verdict: Verdict | None) -> str:
    lines = ["", "this model minus the other, with 95 % intervals:"]
    for name, one in found.items():
        interval = one.interval
        noise = "  (noise)" if interval.is_noise else ""
        better = "better" if one.better_by > 0 else "worse" if one.better_by < 0 else "equal"
        lines.append(
            f"  {name}: {interval.difference:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]{noise}  {better}, "
            f"{one.num_pairs} pairs"
        )
    if verdict is not None:
        lines.append("")
        lines.append(
            f"verdict: {'pass' if verdict.passed else 'FAIL'}  (domain {verdict.gained:+.4f}, most lost "
            f"{verdict.most_lost:+.4f}, budget {verdict.budget})"
        )
        lines += [f"  {reason}" for reason in verdict.reasons]
    return "\n".join(lines)
