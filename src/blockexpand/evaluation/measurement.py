"""`evaluate`: a model on prepared corpora and suites, into a folder of records; and on after a kill.

In: a model (a folder, one with packs, an address, or one that no folder holds), what to measure. Out: a folder with
`blockexpand.json` and the parts of every figure (see `records/evaluation.py`). While suites run, `OUT.partial` holds
the harness's cache. Refused: a corpus prepared with another tokenizer, a chat suite on a model without a template,
choosing packs where there are none, an unfinished evaluation of something else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from blockexpand import __version__
from blockexpand.checkpoint import locate_model, open_checkpoint
from blockexpand.corpus.rows import Corpus, open_corpus
from blockexpand.corpus.tokenizer import load_tokenizer, tokenizer_digest
from blockexpand.digests import digest_file, digest_json
from blockexpand.errors import EvaluationError
from blockexpand.evaluation.harness import SEED, Options, Work, build_work, require_harness
from blockexpand.evaluation.held_out import document_losses
from blockexpand.evaluation.routes import Router, count_of, routed_losses
from blockexpand.evaluation.suites import FileTask, SuiteFile
from blockexpand.families.modules import load_model
from blockexpand.live.device import choose_device, inference_dtype
from blockexpand.records import read_json, to_plain, write_json, write_record
from blockexpand.records.evaluation import (
    DocumentLosses,
    EvaluationRecord,
    RoutedLoss,
    Routing,
    Sample,
    SuiteResults,
    TaskScore,
    write_samples,
)
from blockexpand.records.expansion import read_expansion
from blockexpand.records.pack import Rule
from blockexpand.staging import RECORD_NAME, check_output, staged_folder

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from blockexpand.evaluation.endpoint import Endpoint

_ROWS_PER_PASS = 16
_LIBRARIES = ("torch", "transformers", "lm_eval", "datasets", "numpy")
_CACHE, _IDENTITY = "answers", "evaluation.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured."""

    name: str
    """What the record calls it."""
    tokenizer: Path | None
    """The folder of its tokenizer; none for one behind an address."""
    digest: Callable[[], str]
    """Of its weights; an address has none that could be checked."""
    load: Callable[[], PreTrainedModel]
    """The model, in eval mode."""
    rule: Rule | None = None
    """How packs are chosen for each document and question; none = those that are on stay on."""
    endpoint: Endpoint | None = None


def subject_of(
    model: str | Path,
    packs: Sequence[str | Path] = (),
    dtype: str = "auto",
    rule: Rule | None = None,
    device: str = "auto",
) -> Subject:
    """A model in a folder (a run, a hub id, a GGUF file: see `locate_model`), with packs on it.

    Args:
        model: Which.
        packs: Packs of new blocks to attach.
        dtype: What the weights are loaded as; "auto" is the checkpoint's own (see `inference_dtype`).
        rule: How packs are chosen; none = all are on.
        device: Where it runs: auto, cpu, or an accelerator of torch's.

    Raises:
        DeviceError: the device is not there.
        EvaluationError: there is a rule, and no pack.
    """
    folder, where = locate_model(model), choose_device(device)
    if rule is not None and not packs and not ((folder / RECORD_NAME).is_file() and read_expansion(folder).packs):
        raise EvaluationError(
            f"{model} has no packs to choose among; expected a folder that `pack attach` wrote, or packs beside the "
            "base; give --pack PACK, or leave out --route auto"
        )

    def digest() -> str:
        base = model_digest(folder)
        files = [sorted(Path(pack).glob("*.safetensors")) for pack in packs]
        return digest_json([base, *({f.name: digest_file(f) for f in some} for some in files)]) if packs else base

    def load() -> PreTrainedModel:
        kind, place = inference_dtype(cast(Any, dtype), folder, where), str(where)
        if packs:
            from blockexpand.packs import load_with_packs

            return load_with_packs(folder, packs, kind, place)
        if rule is not None:
            from blockexpand.packs import load_attached

            return load_attached(folder, kind, place)
        return cast("PreTrainedModel", load_model(folder, dtype=kind, device=place))

    name = " + ".join(map(str, [model, *packs]))
    return Subject(name=name, tokenizer=folder, digest=digest, load=load, rule=rule)


def served_subject(endpoint: Endpoint) -> Subject:
    """A model behind an address."""

    def load() -> PreTrainedModel:
        raise AssertionError("a model behind an address cannot be loaded")

    digest = f"endpoint:{endpoint.url}#{endpoint.model}"
    return Subject(name=endpoint.model, tokenizer=None, digest=lambda: digest, load=load, endpoint=endpoint)


def evaluate(
    model: str | Path | Subject,
    data: Mapping[str, str | Path],
    out: str | Path,
    *,
    suites: Sequence[SuiteFile] = (),
    options: Options | None = None,
    split: str = "test",
    resume: bool = False,
    overwrite: bool = False,
) -> EvaluationRecord:
    """Measure a model.

    Args:
        model: A model's folder (or what else `locate_model` takes), or a subject that no folder holds.
        data: Prepared folders by name, e.g. {"general": .., "code": ..}.
        out: The folder of records to write.
        suites: Benchmarks, see `load_suites`.
        options: How suites are run, and how much of everything.
        split: Which split of the prepared folders.
        resume: Go on with what an interrupted run by suites left in `<out>.partial`; from the beginning if nothing.
        overwrite: Replace an earlier folder of records.

    Raises:
        EvaluationError: nothing to measure, or the model, the data and the suites do not fit together.
        LiveError: the model cannot be loaded.
        StagingError: `out` is taken.
    """
    if not data and not suites:
        raise EvaluationError("nothing to measure: give at least one corpus (--data name=folder) or a suite")
    options = options or Options()
    if suites:
        require_harness()
    subject = model if isinstance(model, Subject) else subject_of(model)
    check_output(Path(out), overwrite)
    corpora = _corpora(subject, data)
    works: list[Work] = []
    if suites:
        chat = options.chat or subject.endpoint is not None or any(one.suite.chat for one in suites)
        options = dataclasses.replace(options, chat=chat)
        works = build_work(suites, options)
    digest = subject.digest()
    identity = digest_json([digest, _asked(suites, options), to_plain(subject.rule) if subject.rule else None])
    partial = _partial(Path(out), identity, resume, overwrite) if suites else contextlib.nullcontext(None)
    with partial as cache, staged_folder(Path(out), overwrite) as staged:
        run = _Run(subject, options, split)
        losses = run.losses(corpora)
        scores, samples = run.suites(works, cache)
        for name, one in losses.items():
            np.savez(staged / f"losses-{name}.npz", nats=one.nats_M, tokens=one.tokens_M)
        for name, some in samples.items():
            write_samples(staged, name, some)
        splits = {name: corpus.record.splits[split] for name, corpus in corpora.items()}
        sizes = {name: None if options.limit else one.num_bytes for name, one in splits.items()}
        record = EvaluationRecord(
            blockexpand_version=__version__,
            model=subject.name,
            model_digest=digest,
            held_out={name: one.summary(sizes[name]) for name, one in losses.items()},
            corpora={name: one.digest for name, one in splits.items()},
            versions=_versions(),
            dtype=run.dtype,
            limit=options.limit,
            suites=run.results(scores) if works else None,
            routing=run.routing(samples),
        )
        write_record(staged / RECORD_NAME, record)
    return record


class _Run:
    """One model under test; loaded when it is first needed."""

    def __init__(self, subject: Subject, options: Options, split: str) -> None:
        self._subject, self._options, self._split = subject, options, split
        self._routed: dict[str, RoutedLoss] = {}
        self._router: Router | None = None
        self._model: PreTrainedModel | None = None
        self._windows: tuple[int, int] | None = None
        self.dtype = "unknown"

    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        assert self._subject.tokenizer is not None, "a model behind an address is asked nothing that needs the model"
        tokenizer = load_tokenizer(self._subject.tokenizer)
        if self._model is None:
            self._model = self._subject.load()
            self.dtype = str(self._model.dtype).removeprefix("torch.")
            if self._subject.rule is not None:
                self._router = Router(self._model, tokenizer, self._subject.rule)
        return self._model, tokenizer

    def losses(self, corpora: Mapping[str, Corpus]) -> dict[str, DocumentLosses]:
        """Of each document."""
        found = {}
        for name, corpus in corpora.items():
            model, _ = self._loaded()
            rows, title = corpus.rows(self._split), f"loss on {name}"
            if self._router is None:
                found[name] = document_losses(model, rows, _ROWS_PER_PASS, title, self._options.limit)
            else:
                found[name], self._routed[name] = routed_losses(self._router, rows, _ROWS_PER_PASS, title)
        return found

    def suites(self, works: Sequence[Work], cache: Path | None) -> tuple[dict[str, TaskScore], dict[str, list[Sample]]]:
        """By the harness. Where packs are chosen nothing is cached: a question's choices are routed together."""
        if not works:
            return {}, {}
        from blockexpand.evaluation.suite_results import run_suites

        return run_suites(works, self._lm(), self._options, None if self._subject.rule else cache)

    def _lm(self) -> LM:
        from blockexpand.evaluation.lm import EndpointLM, LoadedLM, RoutedLM

        if self._subject.endpoint is not None:
            return EndpointLM(self._subject.endpoint)
        model, tokenizer = self._loaded()
        if self._options.chat and not tokenizer.chat_template:
            raise EvaluationError(
                f"{self._subject.name} has no chat template, and the suite asks through one; instruction-tune it "
                "first, add chat_template.jinja, or leave out --chat"
            )
        lm = (
            LoadedLM(model, tokenizer, self._options)
            if self._router is None
            else RoutedLM(self._router, tokenizer, self._options)
        )
        self._windows = lm.window_tokens, lm.stride_tokens
        return lm

    def results(self, scores: dict[str, TaskScore]) -> SuiteResults:
        """The suites' part of the record."""
        is_windowed = any(one.metric == "bits_per_byte" for one in scores.values())
        window, stride = self._windows if self._windows and is_windowed else (None, None)
        return SuiteResults(
            tasks=scores,
            chat=self._options.chat,
            batch_size=self._options.batch_size,
            samples=self._options.samples,
            seeds={"examples": SEED},
            window_tokens=window,
            stride_tokens=stride,
        )

    def routing(self, samples: Mapping[str, Sequence[Sample]]) -> Routing | None:
        """How packs were chosen, where they were."""
        if self._router is None:
            return None
        return dataclasses.replace(
            self._router.record(),
            held_out=self._routed,
            suites={name: count_of([one.route for one in some]) for name, some in samples.items()},
        )


def _corpora(subject: Subject, data: Mapping[str, str | Path]) -> dict[str, Corpus]:
    corpora = {name: open_corpus(path) for name, path in data.items()}
    for name, corpus in corpora.items():
        assert subject.tokenizer is not None, "losses need the model itself"
        if corpus.record.tokenizer_digest != tokenizer_digest(subject.tokenizer):
            raise EvaluationError(
                f"the corpus {name!r} ({corpus.folder}) was prepared with another tokenizer than the one in "
                f"{subject.tokenizer}; prepare it again with this model's"
            )
    return corpora


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def model_digest(folder: Path) -> str:
    """One digest for all weights files of a checkpoint."""
    checkpoint = open_checkpoint(folder)
    return digest_json({name: digest_file(checkpoint.folder / name) for name in checkpoint.shards})


def _asked(suites: Sequence[SuiteFile], options: Options) -> list[Any]:
    """What answers in a cache are answers to; not how many of them."""
    asked = dataclasses.replace(options, limit=None, batch_size=1, unsafe=False)
    files = [
        digest_file(one.folder / task.file)
        for one in suites
        for task in one.suite.tasks
        if isinstance(task, FileTask) and (one.folder / task.file).is_file()
    ]
    return [[to_plain(one.suite) for one in suites], files, to_plain(asked), __version__]


@contextlib.contextmanager
def _partial(out: Path, identity: str, resume: bool, overwrite: bool) -> Generator[Path]:
    """Where the harness keeps its answers beside `out`; it goes when the block ends without an error.

    Raises:
        EvaluationError: what is there belongs to another evaluation, or to one that nobody said to go on with.
    """
    folder = out.with_name(out.name + ".partial")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _IDENTITY).is_file():
            raise EvaluationError(f"{folder} is not an unfinished evaluation; move it away, or choose another --out")
        if resume and read_json(folder / _IDENTITY).get("identity") != identity:
            raise EvaluationError(
                f"{folder} holds an unfinished evaluation of another model, other suites or settings; run with what it "
                "was begun with, or begin anew with --overwrite"
            )
        if not resume and not overwrite:
            raise EvaluationError(
                f"{folder} holds an unfinished evaluation; go on with --resume, or begin anew with --overwrite"
            )
        if not resume:
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _IDENTITY, {"identity": identity})
    yield folder / _CACHE
    shutil.rmtree(folder)
