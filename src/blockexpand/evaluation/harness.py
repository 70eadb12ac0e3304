"""Tasks as lm-evaluation-harness runs them, made of a suite's entries and rows of data.

In: an entry of a suite and where its data may be. Out: the harness's own task objects, which ask, filter and score.
Refused: a harness that is not installed, rows without the columns that a template names, answers that are none of the
choices, fewer examples than shots.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexpand.digests import digest_json
from blockexpand.errors import EvaluationError, nearest
from blockexpand.evaluation.suites import ChoiceTask, ExactTask, FileTask, HarnessTask, SuiteFile, SuiteTask, TextTask
from blockexpand.evaluation.task_data import Row, check_columns, hub_rows, local_file, read_rows
from blockexpand.records import check

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

SEED = 1234
"""Which examples are shown: the harness's default, so that figures compare."""
_SAMPLING_TEMPERATURE = 0.8  # Chen et al. 2021, section 3.3: best for pass@100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How suites are run, whatever the model."""

    data_dir: Path | None = None
    """A folder with the tasks' data, as TASK/SPLIT.jsonl; --list says which files."""
    hub: bool = False
    """Take data that are not there from the hub, or from its cache."""
    limit: int | None = None
    """Only the first samples of each task and documents of each corpus; none = all."""
    shots: int | None = None
    """At most this many examples, for short contexts; none = as the suites say."""
    samples: int = 1
    """Outputs drawn for each question of a task that counts pass@k; 1 = one greedy output."""
    chat: bool = False
    """Ask through the model's chat template."""
    batch_size: int = 16
    """Sequences of a pass."""
    window_tokens: int | None = None
    """Of the text tasks: tokens a window; none = the model's longest."""
    stride_tokens: int | None = None
    """Of the text tasks: new tokens each window predicts; none = half a window."""
    unsafe: bool = False
    """Run programs without isolation where there is no sandbox."""

    def __post_init__(self) -> None:
        check(self.limit is None or self.limit > 0, "limit", self.limit, "a whole number above 0")
        check(self.shots is None or 0 <= self.shots <= 64, "shots", self.shots, "0 to 64")
        check(1 <= self.samples <= 1000, "samples", self.samples, "1 to 1000")
        check(self.batch_size > 0, "batch_size", self.batch_size, "a whole number above 0")
        window, stride = self.window_tokens, self.stride_tokens
        check(window is None or window > 1, "window_tokens", window, "at least 2")
        check(stride is None or stride > 0, "stride_tokens", stride, "at least 1")
        check(window is None or stride is None or stride <= window, "stride_tokens", stride, f"at most {window}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One task object of the harness, and what it was made of."""

    name: str
    task: ConfigurableTask
    version: str
    shots: int
    source: str
    """The file or data set its rows came from."""
    digest: str
    """Of the rows that are asked."""


def require_harness() -> None:
    """Refuse early where the harness is missing.

    Raises:
        EvaluationError: it is not installed; the message has the line that installs it.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise EvaluationError(
            "suites need lm-evaluation-harness, which is not installed; expected the extra 'evaluation'; run "
            "pip install -c constraints.txt 'blockexpand[evaluation]'"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """One task of a suite, its data read and checked."""

    entry: SuiteTask
    file: SuiteFile
    parts: list[Part]
    """More than one where several tasks of the harness make one figure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataWanted:
    """One split that a task reads."""

    task: str
    split: str
    columns: tuple[str, ...]
    path: Path | None
    """Where it is; none where it is not on this machine."""
    bring: str
    """The file that would do."""
    hub: str | None
    """The data set on the hub."""

    def __str__(self) -> str:
        columns = f" with {', '.join(self.columns)}" if self.columns else ""
        where = f"hub: {self.hub}" if self.hub else "not on the hub"
        return f"{self.task}, split {self.split}: {self.path or f'missing: bring {self.bring}{columns} ({where})'}"


def data_wanted(suites: Sequence[SuiteFile], options: Options) -> list[DataWanted]:
    """Which files the tasks of the suites read, and which of them are there; nothing is fetched.

    Raises:
        EvaluationError: a suite names a task that is not there.
    """
    found: dict[tuple[str, str], DataWanted] = {}
    for file in suites:
        for entry in file.suite.tasks:
            for config in _configs(entry, file):
                asked, shown, _ = _splits(entry, config, options)
                for split in filter(None, (asked, shown)):
                    folder = _folder(file, options)
                    path = local_file(folder, entry.task, split) if folder else None
                    found[entry.task, split] = DataWanted(
                        task=entry.task,
                        split=split,
                        columns=tuple(sorted(_columns(entry, config))),
                        path=path,
                        bring=str((folder or Path("DATA")) / entry.task / f"{split}.jsonl"),
                        hub=config.get("dataset_path"),
                    )
    return list(found.values())


def build_work(suites: Sequence[SuiteFile], options: Options) -> list[Work]:
    """The harness's tasks of all suites, so that what is wrong with one is known before any model is asked.

    Raises:
        EvaluationError: the data are not there (all that is missing is named) or do not fit, or a figure is asked for
            that a task has not.
    """
    missing = [str(one) for one in data_wanted(suites, options) if one.path is None and not (options.hub and one.hub)]
    if missing:
        where = "" if options.data_dir else "; say where the data are with --data-dir"
        raise EvaluationError(
            f"{len(missing)} files of data are missing{where}; bring them, leave the tasks out, or allow the hub with "
            f"--hub: {'; '.join(missing)}"
        )
    found = []
    read = functools.cache(read_rows)  # 57 parts of MMLU come from one file
    for file in suites:
        for entry in file.suite.tasks:
            parts = [_build(entry, config, file, options, read) for config in _configs(entry, file)]
            _check_metric(entry, parts[0])
            found.append(Work(entry=entry, file=file, parts=parts))
    return found


def _folder(file: SuiteFile, options: Options) -> Path | None:
    """Where a suite's data are: the person's folder first."""
    own = file.folder / file.suite.data if file.suite.data else None
    return options.data_dir or own


def _splits(entry: SuiteTask, config: dict[str, Any], options: Options) -> tuple[str, str | None, int]:
    """The split that is asked, the one that examples come from, and how many examples."""
    shots = entry.shots if options.shots is None else min(entry.shots, options.shots)
    asked = config.get("test_split") or config.get("validation_split")
    if asked is None:
        raise EvaluationError(
            f"the task {entry.task!r} names no test_split and no validation_split; name one in its file"
        )
    own_examples = (config.get("fewshot_config") or {}).get("samples") is not None
    shown = config.get("fewshot_split") or config.get("training_split") or config.get("validation_split")
    return asked, shown if shots and not own_examples else None, shots


def _check_metric(entry: SuiteTask, part: Part) -> None:
    known = part.task.aggregation()
    if entry.metric not in known:
        raise EvaluationError(f"{entry.task} has no metric {entry.metric!r}; {nearest(entry.metric, known)}")
    filters = [one.name for one in part.task._filters]
    if entry.filter not in filters:
        raise EvaluationError(f"{entry.task} has no filter {entry.filter!r}; {nearest(entry.filter, filters)}")


def _configs(entry: SuiteTask, file: SuiteFile) -> list[dict[str, Any]]:
    if isinstance(entry, HarnessTask):
        import lm_eval

        root = Path(lm_eval.__file__).parent / "tasks"
        paths = sorted(root.glob(entry.files))
        if not paths:
            raise EvaluationError(
                f"the installed lm-evaluation-harness has no task at {entry.files!r}; expected version 0.4.13 or a "
                "near one; install the version in constraints.txt"
            )
        configs = [_load(path) for path in paths]
        if len(configs) == 1:
            configs[0]["task"] = entry.task
        return configs
    if isinstance(entry, FileTask):
        path = file.folder / entry.file
        if not path.is_file():
            raise EvaluationError(
                f"the task {entry.task!r} has no file at {path}; expected a task in the harness's YAML"
            )
        return [{**_load(path), "task": entry.task}]
    common = {"task": entry.task, "test_split": entry.split, "metadata": {"version": file.suite.version}}
    return [{**_short_form(entry), **common, "dataset_path": entry.hub or None, "dataset_name": entry.hub_name}]


def _load(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml
    from yaml import YAMLError

    try:
        return copy.deepcopy(load_yaml(path))
    except (YAMLError, ImportError, AttributeError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise EvaluationError(f"{path} is not a task of lm-evaluation-harness: {why}; mend it") from None


def _short_form(entry: ChoiceTask | ExactTask | TextTask) -> dict[str, Any]:
    if isinstance(entry, TextTask):
        return {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": entry.text,
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
        }
    if isinstance(entry, ExactTask):
        return {
            "output_type": "generate_until",
            "training_split": entry.examples,
            "doc_to_text": entry.question,
            "doc_to_target": entry.answer,
            "generation_kwargs": {
                "until": list(entry.stop),
                "max_gen_toks": entry.max_new_tokens,
                "do_sample": False,
            },
            "filter_list": [
                {"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
            ],
            "metric_list": [
                {"metric": "exact_match", "ignore_case": True, "regexes_to_ignore": [r"\.$"], **_MEAN},
            ],
        }
    return {
        "output_type": "multiple_choice",
        "training_split": entry.examples,
        "doc_to_text": entry.question,
        "doc_to_choice": entry.choices if isinstance(entry.choices, str) else list(entry.choices),
        "doc_to_target": entry.answer,
        "metric_list": [{"metric": name, **_MEAN} for name in ("acc", "acc_norm")],
    }


_MEAN = {"aggregation": "mean", "higher_is_better": True}


_Read = Callable[[Path, str], list[Row]]


def _build(entry: SuiteTask, config: dict[str, Any], file: SuiteFile, options: Options, read: _Read) -> Part:
    """The task of one configuration: its rows are read here, so the harness fetches nothing."""
    asked, shown, shots = _splits(entry, config, options)
    splits: dict[str, list[Row]] = {}
    source = ""
    for split in filter(None, {asked, shown}):
        rows, where = _rows(entry, config, file, options, split, read)
        check_columns(rows, _columns(entry, config), where)
        splits[split] = rows
        source = where if split == asked else source
    if shown and len(splits[shown]) < shots + (shown == asked):
        raise EvaluationError(
            f"{entry.task} shows {shots} examples, its split {shown!r} has {len(splits[shown])} rows; bring more, or "
            "lower the number with --shots"
        )
    _settle(entry, config, options, asked, shown)
    task = _task(config, splits, shots)
    _check_choices(task, source)
    return Part(
        name=config["task"],
        task=task,
        version=str(task.VERSION),
        shots=shots,
        source=source,
        digest=digest_json(_plain(splits[asked])),
    )


def _rows(
    entry: SuiteTask, config: dict[str, Any], file: SuiteFile, options: Options, split: str, read: _Read
) -> tuple[list[Row], str]:
    """The rows of a split, of the person's folder first, and where they came from."""
    folder = _folder(file, options)
    path = local_file(folder, entry.task, split) if folder else None
    if path is not None:
        rows = read(path, split)
        if isinstance(entry, HarnessTask) and entry.part:
            check_columns(rows, [entry.part], str(path))
            rows = [row for row in rows if _slug(row[entry.part]) == config["dataset_name"]]
            if not rows:
                raise EvaluationError(
                    f"{path} has no row whose {entry.part} is {config['dataset_name']!r}; expected all parts of "
                    f"{entry.task}; bring the whole file, or make a task of your own of what is there"
                )
        return rows, str(path)
    name = config.get("dataset_name")
    return hub_rows(
        config["dataset_path"], name, split, f"{entry.task}/{split}.jsonl"
    ), f"hub:{config['dataset_path']}/{name or ''}:{split}"


def _slug(name: object) -> str:
    """The name of a part as the harness writes it: "Counting & Probability" is counting_and_probability."""
    return str(name).strip().lower().replace("&", "and").replace(" ", "_")


def _columns(entry: SuiteTask, config: dict[str, Any]) -> set[str]:
    """The columns that the entry and the task's templates name."""
    import jinja2
    from jinja2 import meta

    names = set(entry.columns)
    if config.get("process_docs") is not None:  # it makes columns of its own; the file's stand in the suite
        return names
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        template = config.get(key)
        if not isinstance(template, str):
            continue
        try:
            found = meta.find_undeclared_variables(jinja2.Environment().parse(template))
        except jinja2.TemplateSyntaxError as error:
            raise EvaluationError(f"{entry.task}: {template!r} is not a template: {error}; mend the suite") from None
        bare = isinstance(entry, ChoiceTask | ExactTask | TextTask) and key != "doc_to_text" and "{" not in template
        names |= {template} if bare else found
    return names


def _settle(entry: SuiteTask, config: dict[str, Any], options: Options, asked: str, shown: str | None) -> None:
    """Fix which splits serve what, and how many outputs are drawn."""
    by_training = not config.get("fewshot_split")
    config["test_split"], config["validation_split"] = asked, None
    config["training_split"] = shown if by_training else None
    config["fewshot_split"] = None if by_training else shown
    if isinstance(entry, FileTask) and entry.sampled and options.samples > 1:
        config["repeats"] = options.samples
        config["generation_kwargs"] |= {"do_sample": True, "temperature": _SAMPLING_TEMPERATURE, "top_p": 0.95}
    if config.get("unsafe_code") and options.chat:
        # In a chat the program comes whole and between fences: what ends a function ends no answer there.
        config["generation_kwargs"]["until"] = []


def _task(config: dict[str, Any], splits: dict[str, list[Row]], shots: int) -> ConfigurableTask:
    import datasets
    from lm_eval.api.task import ConfigurableTask

    def rows_in_memory(**_: Any) -> dict[str, datasets.Dataset]:
        return {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}

    datasets.disable_progress_bars()
    for key in ("tag", "group", "task_list", "dataset_kwargs"):
        config.pop(key, None)
    config |= {"custom_dataset": rows_in_memory, "num_fewshot": shots}
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(SEED)
    return task


def _check_choices(task: ConfigurableTask, source: str) -> None:
    """Every right answer is one of the choices: the harness would only count such a row as wrong."""
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input or task.config.process_results is not None:
        return
    for number, doc in enumerate(task.eval_docs):
        choices, right = task.doc_to_choice(doc), task.doc_to_target(doc)
        fits = right in choices if isinstance(right, str) else isinstance(right, list) or 0 <= right < len(choices)
        if not fits:
            raise EvaluationError(
                f"{source}, row {number + 1}: the answer {right!r} is none of the choices {str(choices)[:200]}; mend "
                "the row, or the suite's choices"
            )


def _plain(rows: list[Row]) -> Any:
    return json.loads(json.dumps(rows, default=str))
