"""The model card of a pack, or of a checkpoint with new blocks: README.md, with the metadata that the hub reads.

In: what the records say, what the maker stated, figures. Out: the text, made by huggingface_hub's `ModelCard` from
card.md. Nothing is said that the records do not say; what was not measured is called so. Values come from people and
from strangers' packs: none can end a cell, a line or a span of code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blockexpand.errors import PublishError
from blockexpand.families import known_families
from blockexpand.packs.pack import scaled_words
from blockexpand.records.pack import Card, PackRecord, Scaled
from blockexpand.records.plan import Plan

CARD = "README.md"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-zA-Z][a-zA-Z-]{1,19}")
_OTHER = "other"
"""The hub's word for a licence that it does not list."""
_MOST_BLOCKS = 60
"""Named one by one in a card."""
_FACTS = (
    ("steps", "num_steps"),
    ("tokens, domain and general, padding included", "num_tokens"),
    ("parameters that trained", "num_trainable_parameters"),
    ("domain data (name of the prepared folder)", "settings.data.domain"),
    ("general data", "settings.data.general"),
    ("optimiser", "settings.optimizer.name"),
    ("peak learning rate", "settings.optimizer.lr"),
    ("precision", "settings.precision"),
    ("seed", "settings.seed"),
    ("share of general rows", "settings.retention.replay"),
    ("weight of KL to the base", "settings.retention.kl_weight"),
    ("forgetting budget, share of the base's general loss", "settings.retention.forgetting_budget"),
)
"""Of a run's record; what is not there, or is of another type, is left out."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the results table."""

    name: str
    """The task, or what the corpus was called."""
    metric: str
    of: str
    """The suite and its version, and on how many samples."""
    held_out: bool
    """Whether it is the loss on a prepared corpus; else it is a task of a suite."""
    ours: float
    theirs: float | None = None
    """The base's; None where only the model was measured."""
    low: float | None = None
    """The 95 % interval of the difference, this model's minus the base's."""
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a card is about."""

    kind: Literal["pack", "checkpoint"]
    name: str
    plan: Plan
    """Where the new blocks are, and in which base."""
    version: str
    """The blockexpand that wrote it."""
    fingerprint: str
    """Of the blocks."""
    card: Card
    """What its maker said."""
    training: dict[str, Any] | None
    """What its record says of training; None: the blocks are as they were inserted."""
    run: dict[str, Any] | None = None
    """The record of the run that trained them."""
    scaled: Scaled | None = None
    packs: tuple[str, ...] = ()
    """Of a checkpoint: the packs whose blocks these are."""
    figures: tuple[Figure, ...] = ()
    base_card: str = ""
    """The name of the base's own card beside this one."""
    repo: str = "ORG/NAME"
    """Where it is to be on the hub."""

    @property
    def other_arms(self) -> tuple[str, ...]:
        """The arms of its runs that trained more than the new blocks; then the base is not inside any more."""
        found, training = [], self.training
        while isinstance(training, dict):
            found.append(training.get("arm", "blocks"))
            training = training.get("before")
        return tuple(str(arm) for arm in reversed(found) if arm != "blocks")


def write_pack_card(record: PackRecord, folder: Path) -> None:
    """Write the card of a pack into a folder that is not visible yet.

    Raises:
        PublishError: its maker stated what the hub could not have.
    """
    run = (record.training or {}).get("run")
    subject = Subject(
        kind="pack",
        name=record.name,
        plan=record.plan,
        version=record.blockexpand_version,
        fingerprint=record.fingerprint,
        card=record.card,
        training=record.training,
        run=run if isinstance(run, dict) else None,
        scaled=record.scaled,
    )
    (folder / CARD).write_text(card_text(subject), encoding="utf-8")


def check_card(card: Card) -> None:
    """Refuse what the hub could not have.

    Raises:
        PublishError: with the value.
    """
    pairs = [
        ("licence", card.licence, _LICENCE, "one as the hub spells it, e.g. apache-2.0, or other"),
        ("base model", card.base_model, HUB_ID, "its name on the hub, org/name"),
        *(("language", one, _LANGUAGE, "a code, e.g. en") for one in card.languages),
    ]
    for what, value, pattern, expected in pairs:
        if value is not None and not pattern.fullmatch(value):
            raise PublishError(f"the card's {what} is {value!r}; expected {expected}; give it so, or leave it out")
    if card.licence == _OTHER and not states_licence(card):
        raise PublishError(
            "the card's licence is 'other' without saying which; expected its name and where it can be read; add "
            "--licence-name and --licence-link"
        )


def states_licence(card: Card) -> bool:
    """Whether somebody who finds it knows what they may do with it."""
    return card.licence is not None and (card.licence != _OTHER or bool(card.licence_name and card.licence_link))


def card_text(subject: Subject) -> str:
    """The whole README.md.

    Raises:
        PublishError: its maker stated what the hub could not have.
    """
    from huggingface_hub import ModelCard

    check_card(subject.card)
    plan, card = subject.plan, subject.card
    shown = [f"`{block.id}` (copy of {block.donor})" for block in plan.new_blocks[:_MOST_BLOCKS]]
    left = len(plan.new_blocks) - len(shown)
    text = ModelCard.from_template(
        _metadata(subject),
        template_str=(Path(__file__).parent / "card.md").read_text(encoding="utf-8"),
        name=subject.name,
        description=card.description.strip(),
        is_pack=subject.kind == "pack",
        count=len(plan.new_blocks),
        base=_base_words(subject),
        base_id=card.base_model,
        family=plan.base.family,
        base_blocks=plan.base.num_blocks,
        blocks=", ".join(shown) + (f" and {left} more" if left else ""),
        num_blocks=plan.num_blocks,
        new_parameters=f"{plan.cost.parameters_new:,}",
        trained=_trained_words(subject),
        scaled=scaled_words(subject.scaled) if subject.scaled else "",
        packs=", ".join(f"`{name}`" for name in subject.packs),
        repo=subject.repo,
        loader=_loader(plan)[0],
        holds_base=not subject.other_arms,
        facts=[(label, value) for label, path in _FACTS if (value := _cell(_at(subject.run, path)))],
        rows=[_row(figure) for figure in subject.figures],
        summary=_summary(subject.figures),
        steering=_steering(subject),
        licence=states_licence(card),
        version=_cell(subject.version),
        config_digest=plan.base.config_digest,
        layout_digest=plan.base.layout_digest,
        fingerprint=subject.fingerprint,
        base_card=subject.base_card,
    ).content
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def _metadata(subject: Subject) -> Any:
    """The YAML that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    card = subject.card
    # The hub's words for what became of a base (hub docs, "Specifying a base model"): adapter, finetune, merge,
    # quantized. Blocks that are as they were inserted are none of these.
    relation = "adapter" if subject.kind == "pack" else "finetune" if subject.training is not None else None
    return ModelCardData(
        license=card.licence,
        license_name=card.licence_name if card.licence else None,
        license_link=card.licence_link if card.licence else None,
        base_model=card.base_model,
        base_model_relation=relation if card.base_model else None,
        language=list(card.languages) or None,
        datasets=[one for one in card.datasets if HUB_ID.fullmatch(one)] or None,
        library_name="blockexpand" if subject.kind == "pack" else "transformers",
        pipeline_tag=_loader(subject.plan)[1],
        tags=list(dict.fromkeys(("block-expansion", "llama-pro", "blockexpand", *card.tags))),
        model_name=subject.name if subject.figures else None,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=one.name,
                dataset_name=f"{one.name} ({one.of})",
                metric_type="loss" if one.held_out else one.metric,
                metric_name=one.metric,
                metric_value=round(one.ours, 6),
            )
            for one in subject.figures
        ]
        or None,
    )


def _loader(plan: Plan) -> tuple[str, str]:
    """The class of transformers that loads it, and the hub's word for what it does."""
    family = known_families().get(plan.base.family)
    if family is None or family.loader == "text":
        return "AutoModelForCausalLM", "text-generation"
    return "AutoModelForImageTextToText", "image-text-to-text"


def _base_words(subject: Subject) -> str:
    name, base = subject.card.base_model, subject.plan.base
    return f"[{name}](https://huggingface.co/{name})" if name else f"a {base.family} model of {base.num_blocks} blocks"


def _trained_words(subject: Subject) -> str:
    if subject.training is None or subject.training.get("nothing_inside_budget"):
        start = "the model computes what its base does" if subject.plan.init == "identity" else "they are an ablation"
        return f"nothing yet; the new blocks are as they were inserted, and {start}"
    if subject.other_arms:
        return f"more than the new blocks (arm {_cell(', '.join(subject.other_arms))}); the base is not inside any more"
    return "the new blocks alone; the rest is the base as it was"


def _row(one: Figure) -> list[str]:
    row = [f"`{_cell(one.name)}`", _cell(one.metric), _cell(one.of), f"{one.ours:.4f}"]
    if one.theirs is None or one.low is None or one.high is None:
        return [*row, "not measured", ""]
    noise = ", noise" if one.low <= 0 <= one.high else ""
    return [*row, f"{one.theirs:.4f}", f"{one.ours - one.theirs:+.4f} ({one.low:+.4f} to {one.high:+.4f}{noise})"]


def _summary(figures: Sequence[Figure]) -> list[str]:
    """Gain and forgetting, where the losses of both models are there."""
    told = []
    for one in figures:
        if one.held_out and one.theirs is not None and one.name == "domain":
            told.append(f"**Gain**: {one.theirs - one.ours:+.4f} nats per token on held-out domain text.")
        if one.held_out and one.theirs is not None and one.name == "general":
            told.append(
                f"**Forgetting**: {one.ours / one.theirs - 1:+.2%} of the base's loss on held-out general text."
            )
    return told


def _steering(subject: Subject) -> str:
    """The losses that the run steered by; nothing of scaled blocks, which are others than those that were measured."""
    found = {
        f"{who}.{what}": _at(subject.run, f"{who}.{what}") for who in ("base", "best") for what in ("domain", "general")
    }
    told = [
        f"{what} loss {before:.4f} to {after:.4f}"
        for what in ("domain", "general")
        if isinstance(before := found[f"base.{what}"], float) and isinstance(after := found[f"best.{what}"], float)
    ]
    return "" if subject.scaled else ", ".join(told)


def _at(data: Any, path: str) -> int | float | str | None:
    """A value in a run's record, which may come with a stranger's pack."""
    for key in path.split("."):
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, int | float | str) and not isinstance(data, bool) else None


def _cell(value: object) -> str:
    """A value as text that cannot end a cell of a table, a line or a span of code."""
    if value is None:
        return ""
    text = f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")
