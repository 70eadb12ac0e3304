"""The text of a model card: what it is, how to load it, how it was trained, what was measured, what is not known.

In: what is published, what was stated, the figures. Out: Markdown. Nothing here reads a file, and nothing is said that
the records do not say; what was not measured is called so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blockexpand.families import known_families
from blockexpand.packs.description import num_rounded, scaled_words
from blockexpand.publishing.figures import Figure, Results
from blockexpand.publishing.statements import HUB_ID, Said
from blockexpand.publishing.subject import Published, Run, hub_base

_PAPER = "[block expansion](https://arxiv.org/abs/2401.02415)"
_MOST_BLOCKS = 60
"""Named one by one in a card."""


def card_text(published: Published, said: Said, results: Results | None, base_card: str) -> str:
    """The card's text, from its title on."""
    sections = [
        f"# {published.name}",
        said.card.description.strip(),
        _opening(published, said),
        _what(published, said),
        _loading(published, said),
        _training(published),
        _results(published, results),
        _limits(published, said, results),
        _provenance(published, said, results, base_card),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _cell(text: object) -> str:
    """Text that cannot end a cell of a table, a line or a span of code."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("`", "'")


def _base(published: Published, said: Said) -> str:
    name, base = said.card.base_model, published.plan.base
    if name and HUB_ID.fullmatch(name):
        return f"[{name}](https://huggingface.co/{name})"
    return f"`{_cell(name)}`" if name else f"a {base.family} model of {base.num_blocks} blocks"


def _opening(published: Published, said: Said) -> str:
    count = len(published.plan.new_blocks)
    blocks = f"{count} new transformer block{'s' if count > 1 else ''}"
    if published.kind == "pack":
        return f"A pack: {blocks} for {_base(published, said)}, to be put on it and taken off again ({_PAPER})."
    base = _base(published, said)
    return f"{base[0].upper()}{base[1:]} with {blocks} ({_PAPER})."


def _what(published: Published, said: Said) -> str:
    plan = published.plan
    shown = [f"`{block.id}` (copy of {block.donor})" for block in plan.new_blocks[:_MOST_BLOCKS]]
    left = len(plan.new_blocks) - len(shown)
    lines = [
        f"- **Base**: {_base(published, said)}, family {plan.base.family}, {plan.base.num_blocks} blocks.",
        f"- **New blocks**: {', '.join(shown)}{f' and {left} more' if left else ''}; {plan.num_blocks} blocks in all, "
        f"{plan.cost.parameters_new:,} new parameters. They are named after the block of the base that they stand on.",
        f"- **What trained**: {_trained(published)}",
    ]
    if published.pack is not None and published.pack.record.scaled is not None:
        lines.append(f"- **Scaled**: {scaled_words(published.pack.record.scaled)}; that one is what was trained.")
    if published.record and published.record.packs:
        names = ", ".join(f"`{pack.name}`{_scaled(pack.about)}" for pack in published.record.packs)
        lines.append(f"- **Packs** whose blocks these are: {names}.")
    return "## What it is\n\n" + "\n".join(lines)


def _scaled(about: dict[str, Any]) -> str:
    """Of a pack that is attached; its record may be a stranger's."""
    scaled = about.get("scaled")
    by = scaled.get("by") if isinstance(scaled, dict) else None
    return f" (scaled by {by:g})" if isinstance(by, float) else ""


def _trained(published: Published) -> str:
    training, record = published.training, published.record
    if training is None:
        start = "the model computes what its base does" if published.plan.init == "identity" else "they are an ablation"
        return f"nothing yet; the new blocks are as they were inserted, and {start}."
    if published.other_arms:
        return (
            f"more than the new blocks (arm {_cell(', '.join(published.other_arms))}); the base is not inside any more."
        )
    record = published.record or (published.pack.record if published.pack else None)
    held = len(record.base_digests or {}) if record else 0
    kept = f", each of its {held} tensors by the digest that the record has" if held else ""
    return f"the new blocks alone; the rest is the base as it was{kept}."


def _loading(published: Published, said: Said) -> str:
    repo = said.repo or "ORG/NAME"
    if published.kind == "pack":
        base = said.card.base_model or "BASE"
        return (
            "## How to load it\n\n```python\nfrom blockexpand import load_with_packs\n"
            "from huggingface_hub import snapshot_download\n\n"
            f'model = load_with_packs(snapshot_download("{base}"), [snapshot_download("{repo}")])\n```\n\n'
            f"Or as a plain checkpoint:\n\n```sh\nhf download {repo} --local-dir {published.name}\n"
            f"blockexpand pack attach {base} {published.name} OUT\n```"
        )
    family = known_families().get(published.plan.base.family)
    loader = "AutoModelForCausalLM" if family is None or family.loader == "text" else "AutoModelForImageTextToText"
    text = (
        f"## How to load it\n\n```python\nfrom transformers import {loader}, AutoTokenizer\n\n"
        f'model = {loader}.from_pretrained("{repo}")\ntokenizer = AutoTokenizer.from_pretrained("{repo}")\n```'
    )
    if not published.other_arms:
        text += "\n\n`blockexpand pack detach FOLDER OUT` gives the base back; `blockexpand.bypass` runs it in memory."
    return text


def _training(published: Published) -> str:
    run = published.run
    if published.training is None:
        return ""
    if run is None:
        return "## Training\n\nThe record of the run is not with these files."
    rows = [
        ("steps", run.steps),
        ("tokens, domain and general, padding included", run.tokens),
        ("parameters that trained", run.trainable),
        ("domain data (name of the prepared folder)", run.domain),
        ("general data", "text that the base wrote" if run.general == "self" else run.general),
        ("optimiser, peak learning rate", _pair(run.optimizer, run.lr)),
        ("precision, seed", _pair(run.precision, run.seed)),
        ("retention: share of general rows, weight of KL to the base", _pair(run.replay, run.kl_weight)),
        ("forgetting budget", None if run.budget is None else f"{run.budget:.2%} of the base's general loss"),
    ]
    lines = [f"| {name} | {_number(value)} |" for name, value in rows if value is not None]
    return "## Training\n\n| | |\n| --- | --- |\n" + "\n".join(lines)


def _pair(first: object, second: object) -> str | None:
    shown = [_number(one) for one in (first, second) if one is not None]
    return ", ".join(shown) or None


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else _cell(value)


def _results(published: Published, results: Results | None) -> str:
    parts = []
    if results is not None:
        parts.append(_table(results.figures, compared=results.base_digest is not None))
        parts += _summary(results.figures)
    run = published.run
    if run is not None and run.base is not None and run.best is not None:
        parts.append(_steering(run))
    return "## Results\n\n" + ("\n\n".join(parts) or "Not measured.")


def _table(figures: Sequence[Figure], *, compared: bool) -> str:
    head = ["measured", "figure", "of", "this model", *(["the base", "difference (95 % interval)"] if compared else [])]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for one in figures:
        told = (
            f"{one.suite}, {one.samples:,} samples" if one.suite else f"{one.samples:,} held-out documents or questions"
        )
        cells = [f"`{_cell(one.name)}`", _cell(one.metric), _cell(told), f"{one.ours:.4f}"]
        if compared and one.theirs is not None and one.low is not None and one.high is not None:
            noise = ", noise" if one.low <= 0 <= one.high else ""
            cells += [f"{one.theirs:.4f}", f"{one.ours - one.theirs:+.4f} ({one.low:+.4f} to {one.high:+.4f}{noise})"]
        elif compared:
            cells += ["not measured", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _summary(figures: Sequence[Figure]) -> list[str]:
    """Gain and forgetting, where the losses of both models are there."""
    told = []
    for one in figures:
        if not one.held_out or one.theirs is None:
            continue
        if one.side == "domain":
            told.append(f"**Gain**: {one.theirs - one.ours:+.4f} nats per token on held-out `{_cell(one.name)}` text.")
        if one.side == "general":
            rise = one.ours / one.theirs - 1
            told.append(f"**Forgetting**: {rise:+.2%} of the base's loss on held-out `{_cell(one.name)}` text.")
    return told


def _steering(run: Run) -> str:
    assert run.base is not None, "asked only with measurements"
    assert run.best is not None, "asked only with measurements"
    told = f"domain loss {run.base.domain:.4f} to {run.best.domain:.4f}"
    if run.base.general is not None and run.best.general is not None:
        told += f", general loss {run.base.general:.4f} to {run.best.general:.4f}"
        told += f" ({run.best.general / run.base.general - 1:+.2%})"
    return f"On the validation sample that the run itself steered by, which is no test: {told} (base to this model)."


def _limits(published: Published, said: Said, results: Results | None) -> str:
    lines = []
    if results is None:
        lines.append("What was gained and what was kept was not measured on held-out tests.")
    else:
        lines.append("Only what the table shows was measured, with the versions below.")
        if results.base_digest is None:
            lines.append("What was kept of the base was not measured: there are no results of the base beside these.")
    lines.append(
        "Bias, safety and truthfulness were not measured unless the table shows it; the base's limits hold here."
    )
    if published.pack is not None and num_rounded(published.pack):
        lines.append("The blocks' matrices are rounded to 8 bits: they are not exactly those that were trained.")
    if not said.card.base_model:
        lines.append("The base's name on the hub was not stated.")
    if not said.states_licence:
        lines.append("No licence was stated.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _provenance(published: Published, said: Said, results: Results | None, base_card: str) -> str:
    base, commit = published.plan.base, hub_base(published)[1]
    digests = [f"config `{base.config_digest}`", f"names, shapes and types of its tensors `{base.layout_digest}`"]
    lines = [
        f"Made with blockexpand {_cell(published.version)}.",
        f"Base: {', '.join(digests)}{f', commit `{commit}` of the hub' if commit else ''}.",
        f"{'Pack' if published.kind == 'pack' else 'New blocks'}: `{published.blocks}`.",
    ]
    run = published.run
    if run is not None:
        used = "".join(f", {_cell(name)} {_cell(version)}" for name, version in run.versions.items())
        lines.append(f"Run: settings `{_cell(run.digest)}`{used}.")
    if results is not None:
        used = ", ".join(f"{_cell(name)} {_cell(version)}" for name, version in results.versions.items())
        whose = f"model `{results.model_digest}`" + (f", base `{results.base_digest}`" if results.base_digest else "")
        lines.append(f"Results: {whose}; {used}.")
    if said.card.datasets:
        lines.append(f"Trained on, as its maker says: {_cell(', '.join(said.card.datasets))}.")
    if base_card:
        lines.append(f"The base's own card is [{base_card}]({base_card}).")
    return "## Provenance\n\n" + "\n".join(f"- {line}" for line in lines)
