"""The page: everything that was found, in the order in which a reader asks for it.

In: material, and if it is about `learn` its record. Out: a `Page`: the HTML text, the drawings and tables in it. The
words stand in `page.html.jinja`, the looks in `page.css`; both come with the package. All that comes from data is
escaped. Refused: records of which the page could show nothing.
"""

from __future__ import annotations

import base64
import importlib.resources
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from blockexpand import __version__
from blockexpand.errors import ReportError
from blockexpand.records import dump_json, to_plain
from blockexpand.records.budget import name_text, say_budget
from blockexpand.records.learn import LearnRecord
from blockexpand.reporting import formats
from blockexpand.reporting.comparison_tables import (
    arms_table,
    contrasts_table,
    trials_table,
)
from blockexpand.reporting.conversations import (
    EPISODES_RULE,
    JUDGED_RULE,
    Sample,
    agent_rates,
    agent_transcripts,
    agents_sentence,
    agents_table,
    judged_rates,
    judged_sentence,
    judged_table,
    judged_transcripts,
)
from blockexpand.reporting.drawings import (
    Drawing,
    course_of,
    courses_of,
    draw_courses,
    draw_frontier,
    draw_outcome,
    draw_rates,
    draw_stack,
)
from blockexpand.reporting.methods import methods_of
from blockexpand.reporting.record_tables import (
    budget_table,
    change_of,
    changes_table,
    corpora_table,
    losses_table,
    pairs_of,
    proof_table,
    routing_table,
    runs_table,
    sources_table,
    suites_table,
)
from blockexpand.reporting.sources import Material, model_name
from blockexpand.reporting.tables import Spread, Table, interval
from blockexpand.reporting.verdict import RULES, verdict


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure at the top of the page."""

    name: str
    figure: str
    more: str


@dataclass
class Section:
    """A heading and what stands under it."""

    title: str
    words: tuple[str, ...] = ()
    drawings: list[Drawing] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    samples_title: str = ""
    samples_rule: str = ""
    samples: list[Sample] = field(default_factory=list)
    transcripts: list[Any] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A finished page and what stands in it."""

    title: str
    verdict: str
    html: str
    drawings: tuple[Drawing, ...]
    tables: tuple[Table, ...]
    transcripts: dict[str, str]
    """Further pages by their files' names."""


def make_page(material: Material, learnt: LearnRecord | None = None) -> Page:
    """Render the page.

    Raises:
        ReportError: the records hold nothing that could be shown.
    """
    sections = [
        _comparison(material),
        _learnt(learnt),
        _evaluations(material),
        _budgets(material),
        _runs(material),
        _stacks(material),
        _agents(material),
        _judged(material),
    ]
    shown = [one for one in sections if one is not None and (one.drawings or one.tables or one.samples)]
    if not shown and not material.corpora:
        raise ReportError(
            f"there is nothing to show: {', '.join(one.path for one in material.sources)} hold no figure; expected a "
            "loss, a score, a run or a proof; measure something first"
        )
    title, (headline, tone) = _title(material, learnt), _headline(material, learnt)
    rests = [
        *(trials_table(one.value) for one in [material.comparison] if one is not None),
        *(table for table in [corpora_table(material.corpora)] if table is not None),
        sources_table(material.sources),
    ]
    compared = material.comparison.value if material.comparison is not None else None
    transcripts = [one for section in shown for one in section.transcripts]
    values = {
        "version": __version__,
        "title": title,
        "headline": headline,
        "tone": tone,
        "reference": verdict(compared).reference if compared is not None else "",
        "tiles": _tiles(material, learnt),
        "sections": shown,
        "marked": {} if compared is None else {one.name: one for one in methods_of(compared.recipe).values()},
        "rules": RULES if compared is not None else (),
        "rests": rests,
        "machines": sorted({f"{run.value.record.machine}" for run in material.runs}),
        "settings": _settings(material),
    }
    return Page(
        title=title,
        verdict=headline,
        html=_render("page.html.jinja", values),
        transcripts={one.file: _render("transcripts.html.jinja", {"run": one, **values}) for one in transcripts},
        drawings=tuple(drawing for section in shown for drawing in section.drawings),
        tables=(*(table for section in shown for table in section.tables), *rests),
    )


# --- the first screen ------------------------------------------------------------------------------------


def _title(material: Material, learnt: LearnRecord | None) -> str:
    if learnt is not None:
        return f"What {model_name(learnt.settings.model)} learnt"
    if material.comparison is not None:
        return f"Ways to teach {model_name(material.comparison.value.recipe.base)}"
    if material.expansions:
        return f"Block expansion of {model_name(material.expansions[0].value.plan.base.source)}"
    names = [found.label for found in (*material.evaluations, *material.runs, *material.agents, *material.judged)]
    return ", ".join(dict.fromkeys(names)) or "Records of blockexpand"


def _headline(material: Material, learnt: LearnRecord | None) -> tuple[str, str]:
    """The sentence at the top, and its tone: good, bad, quiet or plain."""
    failed = [found.label for found in material.proofs if not found.value.passed]
    if failed:
        return (
            f"The proof failed for {', '.join(failed)}: this is not the base made deeper; nothing below counts.",
            "bad",
        )
    if learnt is not None and learnt.learnt is not None:
        kept = say_budget(learnt.learnt.budget)
        return f"{_gained(learnt)} {kept}", "good" if learnt.learnt.holds else "bad"
    if material.comparison is not None:
        judged = verdict(material.comparison.value)
        return judged.sentence, judged.tone
    changes = _change_sentences(material)
    if changes:
        return " ".join(changes), "plain"
    if material.agents:
        return agents_sentence(material.agents), "plain"
    if material.judged:
        return judged_sentence(material.judged), "plain"
    if material.evaluations:
        return (
            f"{', '.join(found.label for found in material.evaluations)}: measured, and compared with nothing.",
            "plain",
        )
    if material.runs:
        return (
            f"{', '.join(found.label for found in material.runs)}: trained, and measured on its steering sample.",
            "plain",
        )
    if material.proofs:
        checks = sum(len(found.value.checks) for found in material.proofs)
        return f"The proof holds: all {checks} checks passed.", "good"
    return "These records hold no comparison, so there is no verdict.", "plain"


def _gained(record: LearnRecord) -> str:
    learnt = record.learnt
    assert learnt is not None, "a dry run has no page"
    before, after = formats.loss(learnt.domain_before), formats.loss(learnt.domain_after)
    documents = formats.count(learnt.num_test_documents)
    return f"Loss on {documents} documents of your data that it never saw: {before} to {after} nats per token."


def _change_sentences(material: Material) -> list[str]:
    sentences = []
    for before, after, text in pairs_of(material.evaluations):
        change = change_of(before, after, text)
        words = formats.difference(change.value if isinstance(change, Spread) else change) + " nats per token"
        if isinstance(change, Spread):
            noise = ", which is noise" if change.is_noise else ""
            words += f" ({interval('difference', change)}{noise})"
        sentences.append(f"{after.label} against {before.label} on {text}: {words}.")
    return sentences


def _tiles(material: Material, learnt: LearnRecord | None) -> list[Tile]:
    if learnt is not None and learnt.learnt is not None:
        one = learnt.learnt
        sure = "too few documents for an interval"
        if one.gain_low is not None and one.gain_high is not None:
            sure = f"{formats.difference(one.gain_low)} to {formats.difference(one.gain_high)}"
        tiles = [Tile(name="Gained", figure=formats.difference(one.gain), more=f"nats per token, {sure}")]
        for text in one.budget.texts:
            most = "no bound: too few documents" if text.bound is None else f"at most {formats.rise(text.bound)}"
            more = f"{most} at {formats.share(one.budget.level)} confidence; budget {formats.budget(text.budget)}"
            tiles.append(
                Tile(
                    name=f"Lost on {name_text(text.text)}",
                    figure="no number" if text.rise is None else formats.rise(text.rise),
                    more=more,
                )
            )
        scale = "as it is" if one.budget.scale is None else f"{one.budget.scale:g}"
        tiles.append(Tile(name="Shipped", figure=scale, more="of what was learnt; 0 is the base, 1 all of it"))
        return tiles
    if material.comparison is None:
        return []
    comparison = material.comparison.value
    ours, budget = comparison.arms[0], comparison.recipe.retention.forgetting_budget
    method = methods_of(comparison.recipe)[ours.name]
    gain = f"nats per token, {formats.difference(ours.gain.low)} to {formats.difference(ours.gain.high)}"
    lost = f"{formats.rise(ours.forgetting.low)} to {formats.rise(ours.forgetting.high)}; " + (
        "no budget was set" if budget is None else f"budget {formats.budget(budget)}"
    )
    trained = formats.format_scaled(ours.trials[0].num_trainable_parameters)
    return [
        Tile(name=f"Gained by {method.inside}", figure=formats.difference(ours.gain.mean), more=gain),
        Tile(name="Lost", figure=formats.rise(ours.forgetting.mean), more=f"of the general loss, {lost}"),
        Tile(name="Trained", figure=trained, more=f"parameters: {method.trains}"),
    ]


# --- sections --------------------------------------------------------------------------------------------


def _comparison(material: Material) -> Section | None:
    if material.comparison is None:
        return None
    comparison = material.comparison.value
    recipe = comparison.recipe
    section = Section(
        title="What came of it",
        words=(
            f"{model_name(recipe.base)} was taught {model_name(recipe.data.domain)} in {len(comparison.arms)} ways. "
            f"Each saw the same {formats.count(recipe.domain_tokens)} domain tokens in the same order and, references "
            "apart, the same general text with the same retention. Gain is how much the loss on unseen domain text "
            "fell (by 0.69 nats: the right token became twice as likely); forgetting is how much the loss on unseen "
            "general text rose, as a share of the base\u2019s.",
        ),
        tables=[arms_table(comparison)],
        drawings=[draw_outcome(comparison), draw_frontier(comparison)],
    )
    course = draw_courses(courses_of(comparison), recipe.retention.forgetting_budget)
    section.drawings += [] if course is None else [course]
    section.tables += [contrasts_table(comparison)] if comparison.contrasts else []
    return section


def _learnt(learnt: LearnRecord | None) -> Section | None:
    if learnt is None:
        return None
    samples = [
        Sample(
            about=f"prompt {n}", prompt=one.prompt, outputs=(("Before", one.before, None), ("After", one.after, None))
        )
        for n, one in enumerate(learnt.said, 1)
    ]
    return Section(title="How it speaks now", samples_title="The same beginnings, before and after", samples=samples)


def _evaluations(material: Material) -> Section | None:
    found = material.evaluations
    tables = [changes_table(found), losses_table(found), suites_table(found), routing_table(found)]
    return Section(title="What was measured", tables=[table for table in tables if table is not None])


def _budgets(material: Material) -> Section | None:
    statements = [(found.label, found.value) for found in material.budgets]
    table = budget_table(statements)
    words = tuple(f"{label}: {say_budget(statement)}" for label, statement in statements if not statement.holds)
    return None if table is None else Section(title="What was kept", words=words, tables=[table])


def _runs(material: Material) -> Section | None:
    table = runs_table(material.runs)
    if table is None:
        return None
    budgets = {found.value.record.settings.retention.forgetting_budget for found in material.runs}
    section = Section(title="Training", tables=[table])
    if material.comparison is None:
        courses = [course_of(found, number) for number, found in enumerate(material.runs)]
        course = draw_courses(courses, budgets.pop() if len(budgets) == 1 else None)
        section.drawings += [] if course is None else [course]
    return section


def _stacks(material: Material) -> Section | None:
    names = ["stack" if number == 0 else f"stack-{number + 1}" for number, _ in enumerate(material.expansions)]
    drawings = [draw_stack(one.value.plan, name) for one, name in zip(material.expansions, names, strict=True)]
    proofs = [proof_table(found, number) for number, found in enumerate(material.proofs)]
    words = (
        "Before a new block has learnt anything, the deeper model must be the base, in every bit of its output; after "
        "training, the same must hold with the new blocks bypassed.",
    )
    return Section(title="The deeper model", words=words if proofs else (), drawings=drawings, tables=proofs)


def _agents(material: Material) -> Section | None:
    if not material.agents:
        return None
    caption = "The share of tasks solved within a budget of turns, with Wilson\u2019s 95 % intervals over the tasks."
    drawing = draw_rates("agents", "What more turns are worth", caption, agent_rates(material.agents), middle=False)
    table = agents_table(material.agents)
    return Section(
        title="Working in turns",
        words=("An agent thinks, runs Python, reads what came of it, and proposes an answer, at most twice.",),
        drawings=[] if drawing is None else [drawing],
        tables=[] if table is None else [table],
        samples_rule=EPISODES_RULE,
        transcripts=[agent_transcripts(found, number) for number, found in enumerate(material.agents, 1)],
    )


def _judged(material: Material) -> Section | None:
    if not material.judged:
        return None
    caption = "Wins and half of the ties, with Wilson\u2019s 95 % intervals. One that crosses the line says nothing."
    title = "How often the first model was preferred"
    drawing = draw_rates("judged", title, caption, judged_rates(material.judged), middle=True)
    table = judged_table(material.judged)
    return Section(
        title="Judged in pairs",
        words=(
            "Two models had the same conversations, and a third said which it prefers, with each shown first once.",
        ),
        drawings=[] if drawing is None else [drawing],
        tables=[] if table is None else [table],
        samples_rule=JUDGED_RULE,
        transcripts=[judged_transcripts(found, number) for number, found in enumerate(material.judged, 1)],
    )


def _settings(material: Material) -> dict[str, str]:
    """The settings the page rests on, as JSON, by what they are of."""
    settings: dict[str, Any] = {}
    if material.comparison is not None:
        settings["The comparison\u2019s recipe"] = material.comparison.value.recipe
    settings |= {f"The plan of {found.label}": found.value.plan for found in material.expansions}
    settings |= {f"The settings of {found.label}": found.value.record.settings for found in material.runs}
    return {name: dump_json(to_plain(value)) for name, value in settings.items()}


# --- HTML ------------------------------------------------------------------------------------------------

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
"""The drawings' markers, for the tables."""


def _render(name: str, values: dict[str, Any]) -> str:
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    def data_uri(drawing: Drawing) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(drawing.svg.encode()).decode()

    folder = importlib.resources.files("blockexpand.reporting")
    parts: Iterable[str] = ("page.html.jinja", "transcripts.html.jinja", "parts.html.jinja")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=DictLoader({part: folder.joinpath(part).read_text(encoding="utf-8") for part in parts}),
    )
    environment.filters["tied"] = lambda text: text.replace(" %", "\u00a0%")  # a figure and its sign on one line
    environment.filters["data_uri"] = data_uri
    # Ours, not data: the style sheet and the marks.
    style = Markup(folder.joinpath("page.css").read_text(encoding="utf-8"))
    marks = {
        marker: Markup(f'<svg class="mark" viewBox="0 0 12 12" aria-hidden="true">{path}</svg>')
        for marker, path in _MARK_PATHS.items()
    }
    return environment.get_template(name).render(**values, style=style, marks=marks).lstrip()
