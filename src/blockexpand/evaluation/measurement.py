"""`evaluate_suites`: suites on a model, into a folder of records, and on after a kill.

In: a model (a folder, a folder with packs, an address, or one in memory), suites, options. Out: the folder that
`evaluate` writes, with `samples/<task>.jsonl` in it. Refused: a chat suite on a model without a template, suites that
want different number formats, an address where likelihoods are needed, choosing packs where there are none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from blockexpand import __version__
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.digests import digest_file, digest_json
from blockexpand.errors import EvaluationError
from blockexpand.evaluation.evaluating import HeldOutFound, HeldOutWork, Subject, model_digest
from blockexpand.evaluation.harness import Options, build_work, require_harness
from blockexpand.evaluation.journal import journal_of
from blockexpand.evaluation.routes import Router, count_of
from blockexpand.evaluation.suites import Chosen, FileTask
from blockexpand.evaluation.task_runs import run_task
from blockexpand.families.modules import load_model
from blockexpand.records import to_plain, write_record
from blockexpand.records.evaluation import EvaluationRecord, Routing, SuiteResults, TaskScore, write_samples
from blockexpand.records.expansion import read_expansion
from blockexpand.records.pack import Rule
from blockexpand.staging import RECORD_NAME, check_output, staged_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from blockexpand.evaluation.endpoint import Endpoint
    from blockexpand.evaluation.lm import EndpointLM, LoadedLM

_SEED = 0
_LIBRARIES = ("torch", "transformers", "lm_eval", "datasets", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is measured."""

    model: str
    """A folder, or the model's name at the endpoint, or what one in memory is called in the records."""
    packs: tuple[str, ...] = ()
    """Packs to attach to the folder's model."""
    endpoint: Endpoint | None = None
    dtype: str | None = None
    """What the weights are loaded as; none = as the suite says, or float32."""
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
    """A model in memory and its tokenizer."""
    fingerprint: str = ""
    """Of a model in memory; of others it is made from the files."""
    rule: Rule | None = None
    """How packs are chosen for each document and question; none = all are on."""

    def digest(self) -> str:
        """The fingerprint of what is measured; an address has none that could be checked."""
        if self.endpoint is not None:
            return f"endpoint:{self.endpoint.url}#{self.model}"
        if self.loaded is not None:
            return self.fingerprint or "unknown: in memory"
        base = model_digest(Path(self.model))
        if not self.packs:
            return base
        return digest_json([base, *({f.name: digest_file(f) for f in _weights(Path(pack))} for pack in self.packs)])

    def check_route(self) -> None:
        """Refuse to choose packs where there are none.

        Raises:
            EvaluationError: there is a rule, and no pack.
        """
        if self.rule is None or self.packs or self.loaded is not None:
            return
        record = Path(self.model) / RECORD_NAME
        if self.endpoint is not None or not record.is_file() or not read_expansion(self.model).packs:
            raise EvaluationError(
                f"{self.model} has no packs to choose among; expected a folder that `pack attach` wrote, or packs "
                "beside the base; give --pack PACK, or leave out --route auto"
            )

    def subject(self) -> Subject:
        """The same for `evaluate`."""
        return Subject(
            name=_name(self),
            tokenizer=Path(self.model),
            digest=self.digest,
            load=lambda: _load(self, self.dtype or "auto"),
            rule=self.rule,
        )


def _weights(pack: Path) -> list[Path]:
    return sorted(pack.glob("*.safetensors"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """How to begin."""

    resume: bool = False
    """Go on with what an interrupted run left in `<out>.partial`; from the beginning if there is nothing."""
    overwrite: bool = False
    """Replace an earlier folder of records."""


def evaluate_suites(
    candidate: Candidate,
    suites: Sequence[Chosen],
    out: str | Path,
    options: Options | None = None,
    held_out: HeldOutWork | None = None,
    start: Start | None = None,
) -> EvaluationRecord:
    """Measure a model on suites, and on prepared corpora with it if `held_out` is given.

    Raises:
        EvaluationError: the model, the suites and the data do not fit together.
        LiveError: the model cannot be loaded.
    """
    require_harness()
    candidate.check_route()
    start, options = start or Start(), options or Options()
    dtype = _dtype(candidate, suites)
    chat = options.chat or candidate.endpoint is not None or any(one.suite.chat for one in suites)
    options = dataclasses.replace(options, chat=chat)
    digest = candidate.digest()
    check_output(Path(out), start.overwrite)
    identity = _identity([digest, *([to_plain(candidate.rule)] if candidate.rule else [])], suites, options, dtype)
    works = build_work(suites, options)
    with (
        journal_of(Path(out), identity, resume=start.resume, overwrite=start.overwrite) as journal,
        staged_folder(Path(out), start.overwrite) as staged,
    ):
        lm, loaded = _lm(candidate, options, dtype)
        _seed()
        tasks: dict[str, TaskScore] = {}
        routes: dict[str, dict[str, int]] = {}
        for work in works:
            tasks[work.entry.task], samples = run_task(work, lm, journal, options)
            write_samples(staged, work.entry.task, samples)
            routes[work.entry.task] = count_of([one.route for one in samples])
        found = held_out.measure(cast(Any, loaded), candidate.rule) if held_out else _NOTHING
        figures = held_out.figures(found) if held_out else {"held_out": {}, "corpora": {}, "answers": None}
        figures["routing"] = _routing(lm, found, routes)
        record = EvaluationRecord(
            blockexpand_version=__version__,
            model=_name(candidate),
            model_digest=digest,
            versions={name: metadata.version(name) for name in _LIBRARIES},
            suites=_results(tasks, lm, options, dtype),
            **figures,
        )
        found.write(staged)
        write_record(staged / RECORD_NAME, record)
    return record


_NOTHING = HeldOutFound(losses={}, answered=[])


def _routing(lm: LoadedLM | EndpointLM, found: HeldOutFound, routes: dict[str, dict[str, int]]) -> Routing | None:
    from blockexpand.evaluation.lm import RoutedLM

    if not isinstance(lm, RoutedLM):
        return None
    return dataclasses.replace(found.routing or lm.router.record(), suites=routes)


def _name(candidate: Candidate) -> str:
    return " + ".join([candidate.model, *candidate.packs])


def _identity(who: list[Any], suites: Sequence[Chosen], options: Options, dtype: str) -> str:
    """What a journal's answers are of: the model, the questions and how they are asked; not how many of them."""
    asked = dataclasses.replace(options, limit=None, batch_size=1, unsafe=False)
    files = [
        digest_file(chosen.folder / task.file)
        for chosen in suites
        for task in chosen.suite.tasks
        if isinstance(task, FileTask) and (chosen.folder / task.file).is_file()
    ]
    return digest_json([*who, [to_plain(one.suite) for one in suites], files, to_plain(asked), dtype, __version__])


def _dtype(candidate: Candidate, suites: Sequence[Chosen]) -> str:
    if candidate.loaded is not None:
        return str(candidate.loaded[0].dtype).removeprefix("torch.")
    if candidate.dtype is not None:
        return candidate.dtype
    wanted = {one.suite.dtype or "auto" for one in suites}
    if len(wanted) > 1:
        names = ", ".join(f"{one.suite.suite}: {one.suite.dtype or 'auto'}" for one in suites)
        raise EvaluationError(f"the suites want different number formats ({names}); run them apart, or give --dtype")
    return wanted.pop() if wanted else "auto"


def _lm(candidate: Candidate, options: Options, dtype: str) -> tuple[LoadedLM | EndpointLM, PreTrainedModel | None]:
    from blockexpand.evaluation.lm import EndpointLM, LoadedLM, RoutedLM

    if candidate.endpoint is not None:
        return EndpointLM(candidate.endpoint), None
    model, tokenizer = candidate.loaded or (_load(candidate, dtype), load_tokenizer(candidate.model))
    if options.chat and not tokenizer.chat_template:
        raise EvaluationError(
            f"{candidate.model} has no chat template, and the suite asks through one; instruction-tune it first, add "
            "chat_template.jinja, or leave out --chat"
        )
    if candidate.rule is not None:
        return RoutedLM(Router(model, tokenizer, candidate.rule), tokenizer, options), model
    return LoadedLM(model, tokenizer, options), model


def _load(candidate: Candidate, dtype: str) -> PreTrainedModel:
    from blockexpand.live.device import choose_device, dtype_named

    kind, device = dtype_named(cast(Any, dtype)), str(choose_device())
    if candidate.packs:
        from blockexpand.packs import load_with_packs

        return load_with_packs(candidate.model, candidate.packs, kind, device)
    if candidate.rule is not None:
        from blockexpand.packs import load_attached

        return load_attached(candidate.model, kind, device)
    return cast("PreTrainedModel", load_model(Path(candidate.model), dtype=kind, device=device))


def _seed() -> None:
    import torch

    torch.manual_seed(_SEED)


def _results(tasks: dict[str, TaskScore], lm: LoadedLM | EndpointLM, options: Options, dtype: str) -> SuiteResults:
    from blockexpand.evaluation.lm import LoadedLM

    windows = isinstance(lm, LoadedLM) and any(one.metric == "bits_per_byte" for one in tasks.values())
    return SuiteResults(
        tasks=tasks,
        chat=options.chat,
        batch_size=options.batch_size,
        limit=options.limit,
        samples=options.samples,
        seeds={"torch": _SEED, "examples": 1234},
        dtype="unknown" if not isinstance(lm, LoadedLM) else dtype,
        window_tokens=lm.window_tokens if isinstance(lm, LoadedLM) and windows else None,
        stride_tokens=lm.stride_tokens if isinstance(lm, LoadedLM) and windows else None,
    )
