"""The tables of tasks learnt in a row: the methods, their differences, one matrix each, the stages.

In: a `SequenceRecord`. Out: tables of raw values. The matrices are shaded by their scores.
"""

from __future__ import annotations

from blockexpand.reporting.sequences import SequenceRecord, TaughtMethod
from blockexpand.reporting.tables import Column, Table, Value, spread_of

# T = tasks.


def sequence_tables(record: SequenceRecord) -> list[Table]:
    """Everything that the page shows as tables, in its order."""
    contrasts = [_contrasts(record)] if record.contrasts else []
    matrices = [_matrix(record, method, number) for number, method in enumerate(record.methods, 1)]
    chosen = [_chosen(record, method, n) for n, method in enumerate(record.methods, 1) if not method.told]
    return [_methods(record), *contrasts, *matrices, *chosen, _tasks(record), _stages(record)]


def matrix_names(record: SequenceRecord) -> list[str]:
    """The matrices' names, in the methods' order, and those of what questions chose."""
    numbers = range(1, len(record.methods) + 1)
    chosen = [f"chosen-{n}" for n, method in zip(numbers, record.methods, strict=True) if not method.told]
    return [*(f"matrix-{number}" for number in numbers), *chosen]


def _methods(record: SequenceRecord) -> Table:
    columns = (
        Column(key="method", title="Method"),
        Column(key="trains", title="Trains", under=True),
        Column(key="op", title="OP", kind="share", unit="mean score at the end", spread=True),
        Column(key="bwt", title="BWT", kind="points", unit="changed since learnt", spread=True),
        Column(key="rise", title="General loss", kind="rise", unit="at the end", spread=True),
        Column(key="lr", title="Learning rate", kind="lr"),
        Column(key="num_trainable_parameters", title="Trained", kind="parameters", unit="all tasks"),
        Column(key="cpu_seconds", title="CPU time", kind="seconds", unit="of a seed"),
    )
    base = sum(task.base for task in record.tasks) / len(record.tasks)
    rows: list[tuple[Value, ...]] = [("the base", "nothing", base, *[None] * 5)]
    for one in record.methods:
        seconds = sum(chain.cpu_seconds for chain in one.chains) / len(one.chains)
        size = one.chains[0].num_trainable_parameters
        figures = (spread_of(one.op), spread_of(one.bwt), spread_of(one.rise))
        rows.append((one.name, one.trains, *figures, one.lr, size, seconds))
    over = "seeds (Student\u2019s t)" if record.num_seeds > 1 else "questions and documents: there is one seed"
    notes = [f"Intervals are 95 %, over {over}. BWT divides by all tasks, of which the last adds zero."]
    if any(method.one_on for method in record.methods):
        notes.append(
            "Of packs that are told the general loss is the mean over them, each on; with none on it is the "
            "base\u2019s. Nothing can be overwritten then, and BWT is zero by construction."
        )
    if not all(method.told for method in record.methods):
        notes.append("Where packs are not told, each question and each general text chooses one of them, or the base.")
    return Table(name="row", title="What is known at the end", columns=columns, rows=tuple(rows), notes=tuple(notes))


def _contrasts(record: SequenceRecord) -> Table:
    columns = (
        Column(key="against", title="Against"),
        Column(key="op", title="OP", kind="points", spread=True),
        Column(key="op_says", title=""),
        Column(key="bwt", title="BWT", kind="points", spread=True),
        Column(key="bwt_says", title=""),
        Column(key="general", title="General loss", kind="difference", unit="nats per token", spread=True),
        Column(key="general_says", title=""),
    )
    rows: list[tuple[Value, ...]] = []
    for one in record.contrasts:
        cells: list[Value] = []
        for figure, words in (
            (one.op, ("knows more", "knows less")),
            (one.bwt, ("kept more", "kept less")),
            (one.general, ("forgot more", "forgot less")),
        ):
            cells += [spread_of(figure), "noise" if figure.is_noise else words[figure.difference < 0]]
        rows.append((one.theirs, *cells))
    pairs = "questions and seeds" if record.num_seeds > 1 else "questions; there is one seed"
    return Table(
        name="row-contrasts",
        title=f"{record.methods[0].name} against the others",
        columns=columns,
        rows=tuple(rows),
        notes=(f"Paired differences, 95 % intervals over {pairs}. Where they hold zero, it is noise.",),
    )


def _matrix(record: SequenceRecord, method: TaughtMethod, number: int) -> Table:
    columns = (
        Column(key="after", title="After learning"),
        *(Column(key=task.name, title=task.name, kind="share") for task in record.tasks),
    )
    scores_TT = method.matrix_TT
    rows: list[tuple[Value, ...]] = [("nothing (the base)", *(task.base for task in record.tasks))]
    rows += [(task.name, *map(float, scores_TT[t])) for t, task in enumerate(record.tasks)]
    return Table(
        name=f"matrix-{number}", title=f"R of {method.name}", columns=columns, rows=tuple(rows), is_heat_map=True
    )


def _chosen(record: SequenceRecord, method: TaughtMethod, number: int) -> Table:
    columns = (
        Column(key="of", title="Questions of"),
        Column(key="base", title="the base", kind="share"),
        *(Column(key=task.name, title=task.name, kind="share") for task in record.tasks),
    )
    rows = tuple((task.name, *map(float, row)) for task, row in zip(record.tasks, method.chosen_TC, strict=True))
    title = f"Which pack questions chose, {method.name}"
    return Table(name=f"chosen-{number}", title=title, columns=columns, rows=rows, is_heat_map=True)


def _tasks(record: SequenceRecord) -> Table:
    words = {"whole": "answers right to the letter", "share": "tokens right, given those before"}
    columns = (
        Column(key="task", title="Task"),
        Column(key="like", title="Stands for"),
        Column(key="measure", title="Score: the share of"),
        Column(key="num_train", title="Questions", kind="count", unit="to learn from"),
        Column(key="num_test", title="Questions", kind="count", unit="held out"),
        Column(key="base", title="The base", kind="share"),
    )
    rows = tuple((t.name, t.like, words[t.measure], t.num_train, t.num_test, t.base) for t in record.tasks)
    return Table(name="tasks", title="The tasks, in the order in which they were learnt", columns=columns, rows=rows)


def _stages(record: SequenceRecord) -> Table:
    columns = (
        Column(key="method", title="Method"),
        Column(key="seed", title="Seed", kind="count"),
        Column(key="task", title="Learnt"),
        Column(key="score", title="Its score then", kind="share"),
        Column(key="last", title="at the end", kind="share"),
        Column(key="general_loss", title="General loss", kind="loss", unit="nats per token"),
        Column(key="run", title="Digest of its settings"),
    )
    rows = tuple(
        (method.name, chain.seed, task.name, chain.matrix[t][t], chain.matrix[-1][t], chain.general_losses[t], run)
        for method in record.methods
        for chain in method.chains
        for t, (task, run) in enumerate(zip(record.tasks, chain.runs, strict=True))
    )
    return Table(name="row-stages", title="Every stage of every method and seed", columns=columns, rows=rows)
