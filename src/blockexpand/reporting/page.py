"""The page: everything that was found, in the order in which a reader asks for it.

In: material. Out: a `Page`: the HTML text, and the figures and tables in it. The words stand in
`page.html.jinja`, the looks in `page.css`; both come with the package. All that comes from data is escaped.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from blockexpand import __version__
from blockexpand.records import dump_json, to_plain
from blockexpand.reporting import formats
from blockexpand.reporting.answers import RULE, answering, answers_table, samples
from blockexpand.reporting.charts import cost_figure, frontier_figure, outcome_figure
from blockexpand.reporting.controller_charts import controller_figure
from blockexpand.reporting.cost_charts import gain_cost_figure
from blockexpand.reporting.course_charts import compared_losses_figure, curves_figure, runs_figure
from blockexpand.reporting.episodes import (
    EPISODE_RULE,
    agents_sentence,
    episodes_figure,
    episodes_table,
    transcripts,
)
from blockexpand.reporting.examined import blocks_figure, blocks_table, effects_of, said, shifts_table
from blockexpand.reporting.judged import (
    JUDGED_RULE,
    conversations,
    judged_figure,
    judged_sentence,
    judged_table,
    questions_tables,
)
from blockexpand.reporting.judging import RULES, verdict
from blockexpand.reporting.methods import MARKERS, REFERENCE_MARKER, methods_of
from blockexpand.reporting.plotting import Figure
from blockexpand.reporting.record_tables import (
    corpora_table,
    evaluations_table,
    proof_table,
    runs_table,
    sources_table,
    stages_table,
)
from blockexpand.reporting.result_tables import arms_table, contrasts_table, losses_table, trials_table
from blockexpand.reporting.sequence_charts import sequence_figures
from blockexpand.reporting.sequence_tables import matrix_names, sequence_tables
from blockexpand.reporting.sequences import sequence_sentence
from blockexpand.reporting.sources import Material
from blockexpand.reporting.stack import stack_figure
from blockexpand.reporting.tables import Table

_TEMPLATE, _STYLE = "page.html.jinja", "page.css"
_TRANSCRIPTS = "transcripts.html.jinja"
_PARTS = (_TEMPLATE, _TRANSCRIPTS, "episode.html.jinja", "conversation.html.jinja")


@dataclass(frozen=True, kw_only=True)
class Page:
    """A finished page and what stands in it."""

    title: str
    verdict: str
    html: str
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    transcripts: dict[str, str]
    """Further pages by their files' names."""


class _Contents:
    """Figures and tables by the name the template calls them, in the order they were added."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}
        self.tables: dict[str, Table] = {}

    def add_figures(self, figures: Iterable[Figure | None]) -> None:
        self.figures |= {one.name: one for one in figures if one is not None}

    def add_tables(self, tables: Iterable[Table | None]) -> None:
        self.tables |= {one.name: one for one in tables if one is not None}


def make_page(material: Material) -> Page:
    """Render the page."""
    contents = _Contents()
    values: dict[str, Any] = {
        "material": material,
        "formats": formats,
        "version": __version__,
        "title": title_of(material),
        "comparison": None,
        "sequence": None,
        "verdict": None,
        "headline": headline(material),
        "answers": None,
        "said": (),
        "marked": {},
        "tone": "plain",
        "settings": {},
        "rules": RULES,
    }
    if material.comparison is not None:
        values |= _comparison(material, contents)
    values |= _sequence(material, contents)
    effects = effects_of(material.examination)
    contents.add_figures(stack_figure(found, n, effects) for n, found in enumerate(material.expansions))
    proofs = [proof_table(found, n) for n, found in enumerate(material.proofs)]
    contents.add_tables(proofs)
    values |= _answers(material, contents)
    values |= _talks(material, contents)
    contents.add_tables([evaluations_table(material.evaluations), runs_table(material.runs)])
    contents.add_figures([runs_figure(material.runs)])
    compared = material.comparison.value if material.comparison is not None else None
    contents.add_figures([controller_figure(compared, material.compared_runs, material.runs)])
    contents.add_tables([corpora_table(material.corpora)])
    if material.stages is not None:
        contents.add_tables([stages_table(material.stages)])
    contents.add_tables([sources_table(material.sources)])
    values |= {"figures": contents.figures, "tables": contents.tables, "proofs": proofs}
    if any(not found.value.passed for found in material.proofs):
        values["tone"] = "failed"
    values["settings"] |= _settings(material)
    return Page(
        title=values["title"],
        verdict=values["headline"],
        html=_render_page(values),
        transcripts=_further_pages(values),
        figures=tuple(contents.figures.values()),
        tables=tuple(contents.tables.values()),
    )


def title_of(material: Material) -> str:
    """What the story calls itself, or the base's name."""
    if material.stages is not None and material.stages.title:
        return material.stages.title
    if material.comparison is not None:
        return f"Block expansion of {_last(material.comparison.value.recipe.base)}"
    if material.sequence is not None:
        return material.sequence.value.title
    if material.expansions:
        return f"Block expansion of {_last(material.expansions[0].value.plan.base.source)}"
    return "Records of blockexpand"


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def headline(material: Material) -> str:
    """The sentence at the top: the verdict, or without a comparison what the other records say."""
    failed = [found.label for found in material.proofs if not found.value.passed]
    if failed:
        return f"The proof failed for {', '.join(failed)}: this is not the base made deeper, and nothing below counts."
    if material.comparison is not None:
        return verdict(material.comparison.value).sentence
    if material.sequence is not None:
        return sequence_sentence(material.sequence.value)
    if material.proofs:
        checks = sum(len(found.value.checks) for found in material.proofs)
        return f"The proof holds: all {checks} checks passed."
    asked = answering(material.evaluations)
    if asked and (scores := asked[-1].value.record.answers) is not None:
        right = formats.share(scores.right)
        return f"{asked[-1].label} answered {right} of {formats.count(scores.num_samples)} questions rightly."
    if material.agents:
        return agents_sentence(material.agents)
    if material.judged:
        return judged_sentence(material.judged)
    return "These records hold no comparison, so there is no verdict."


def _comparison(material: Material, contents: _Contents) -> dict[str, Any]:
    assert material.comparison is not None, "no comparison was found"
    comparison = material.comparison.value
    contents.add_tables([arms_table(comparison)])
    if comparison.contrasts:
        contents.add_tables([contrasts_table(comparison)])
    contents.add_tables([losses_table(comparison), trials_table(comparison)])
    contents.add_figures([outcome_figure(comparison), frontier_figure(comparison), curves_figure(comparison)])
    contents.add_figures([compared_losses_figure(comparison, material.compared_runs), cost_figure(comparison)])
    methods = methods_of(comparison.recipe)
    seen = material.examination
    contents.add_figures([gain_cost_figure(comparison), blocks_figure(seen, methods)])
    if seen is not None:
        contents.add_tables([shifts_table(seen, methods), blocks_table(seen, methods)])
    judged = verdict(comparison)
    return {
        "comparison": comparison,
        "methods": methods,
        "said": () if seen is None else said(seen, methods),
        "marked": {method.name: method for method in methods.values()},
        "verdict": judged,
        "tone": judged.outcome.replace(" ", "-"),
        "general_name": _last(comparison.recipe.data.general or "general"),
        "domain_name": _last(comparison.recipe.data.domain),
    }


def _sequence(material: Material, contents: _Contents) -> dict[str, Any]:
    if material.sequence is None:
        return {}
    record = material.sequence.value
    contents.add_tables(sequence_tables(record))
    contents.add_figures(sequence_figures(record))
    return {"sequence": record, "matrices": matrix_names(record)}


def _answers(material: Material, contents: _Contents) -> dict[str, Any]:
    asked = answering(material.evaluations)
    if not asked:
        return {}
    contents.add_tables([answers_table(asked)])
    return {"answers": asked, "samples": samples(asked), "sample_rule": RULE}


def _talks(material: Material, contents: _Contents) -> dict[str, Any]:
    """Runs of agents and judged conversations."""
    questions = questions_tables(material.judged)
    contents.add_tables([episodes_table(material.agents), judged_table(material.judged), *questions])
    contents.add_figures([episodes_figure(material.agents), judged_figure(material.judged)])
    return {
        "agent_runs": transcripts(material.agents),
        "episode_rule": EPISODE_RULE,
        "judged_runs": conversations(material.judged),
        "judged_rule": JUDGED_RULE,
        "question_tables": questions,
    }


def _further_pages(values: dict[str, Any]) -> dict[str, str]:
    """A page for each run whose words are shown."""
    return {
        run.file: _render(_TRANSCRIPTS, {"run": run, "version": __version__, "judged": kind == "judged_runs"})
        for kind in ("agent_runs", "judged_runs")
        for run in values[kind]
    }


def _settings(material: Material) -> dict[str, str]:
    """The settings the page rests on, as JSON, by what they are of."""
    settings: dict[str, Any] = {}
    if material.comparison is not None:
        settings["The comparison\u2019s recipe"] = material.comparison.value.recipe
    if material.sequence is not None:
        settings["The row\u2019s recipe"] = material.sequence.value.settings
    for found in material.expansions:
        settings[f"The plan of {found.label}"] = found.value.plan
    for found in material.runs:
        settings[f"The settings of {found.label}"] = found.value.record.settings
    return {name: dump_json(to_plain(value)) for name, value in settings.items()}


def _machines(material: Material) -> list[str]:
    """Where the runs were made, and with which versions, each said once."""
    records = [run.record for run in material.compared_runs.values()]
    records += [found.value.record for found in material.runs]
    said = [
        f"{record.machine}; blockexpand {record.blockexpand_version}, "
        + ", ".join(f"{name} {number}" for name, number in record.versions.items())
        for record in records
    ]
    return sorted(set(said))


def _render_page(values: dict[str, Any]) -> str:
    from markupsafe import Markup

    # Ours, not data: SVG that plotting.py has built element by element.
    svg = {name: (Markup(one.svg_wide), Markup(one.svg_narrow)) for name, one in values["figures"].items()}
    machines = _machines(values["material"])
    return _render(_TEMPLATE, {**values, "svg": svg, "machines": machines, "marks": _marks(Markup)})


def _render(name: str, values: dict[str, Any]) -> str:
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    def tied(text: str) -> str:
        """Keep a figure and its percent sign on one line."""
        return text.replace(" %", "\u00a0%")

    folder = importlib.resources.files("blockexpand.reporting")
    texts = {one: folder.joinpath(one).read_text(encoding="utf-8") for one in _PARTS}
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=DictLoader(texts),
    )
    environment.filters["tied"] = tied
    # Ours, not data: the style sheet.
    style = Markup(folder.joinpath(_STYLE).read_text(encoding="utf-8"))
    return environment.get_template(name).render(**values, style=style).lstrip()


_MARK_PATHS = {
    "o": '<circle cx="6" cy="6" r="4.6"/>',
    "s": '<path d="M2 2h8v8h-8z"/>',
    "^": '<path d="M6 1.2 11 10.4H1z"/>',
    "D": '<path d="M6 .8 11.2 6 6 11.2.8 6z"/>',
    "v": '<path d="M6 10.8 1 1.6h10z"/>',
    "P": '<path d="M4.2 1h3.6v3.2H11v3.6H7.8V11H4.2V7.8H1V4.2h3.2z"/>',
    "p": '<path d="M6 .8 11 4.6 9.1 10.6H2.9L1 4.6z"/>',
    "*": '<path d="M6 .6 7.4 4.5 11.5 4.6 8.2 7.1 9.4 11.1 6 8.7 2.6 11.1 3.8 7.1.5 4.6 4.6 4.5z"/>',
    "X": '<path d="M3.3 1 6 3.7 8.7 1 11 3.3 8.3 6 11 8.7 8.7 11 6 8.3 3.3 11 1 8.7 3.7 6 1 3.3z"/>',
}
assert set(_MARK_PATHS) == {*MARKERS, REFERENCE_MARKER}, "a shape for every marker of the figures"


def _marks(markup: Any) -> dict[str, Any]:
    """The figures' markers as small drawings, for the tables."""
    return {
        name: markup(f'<svg class="mark" viewBox="0 0 12 12" aria-hidden="true">{path}</svg>')
        for name, path in _MARK_PATHS.items()
    }
