"""What a pack is, in lines for a person. Reads its record and header alone; nothing of it is run or believed."""

from __future__ import annotations

from blockexpand.packs.encoding import is_rounded
from blockexpand.packs.pack import Pack
from blockexpand.packs.record import Scaled, tensors_of

_ENCODINGS = {
    "plain": "as they are",
    "delta": "compressed differences to their donors, without loss",
    "int8": "matrices rounded to 8 bits, with loss",
}


def describe(pack: Pack) -> str:
    """The pack in a few lines."""
    record, base = pack.record, pack.record.plan.base
    blocks = ", ".join(f"{b.id} (copy of {b.donor})" for b in record.plan.new_blocks)
    ratio = pack.num_bytes / record.block_bytes if record.block_bytes else 0.0
    card = record.card
    lines = [
        f"pack {record.name!r}: {len(record.plan.new_blocks)} blocks: {blocks}",
        f"  base: {card.base_model or base.source}, family {base.family}, {base.num_blocks} blocks, "
        f"{len(record.base_digests)} tensors by digest",
        f"  stored: {', '.join(record.dtypes)}, {_ENCODINGS[record.encoding]}; {pack.num_bytes:,} bytes, "
        f"{ratio:.4f} of the {record.block_bytes:,} of its blocks",
        f"  trained: {_trained(pack)}",
        *([f"  scaled: {scaled_words(record.scaled)}"] if record.scaled else []),
        f"  fingerprint: {record.fingerprint}",
        f"  licence (as its maker says): {card.licence or 'none stated'}",
    ]
    if card.description:
        lines.append(f"  {card.description}")
    return "\n".join(lines)


def scaled_words(scaled: Scaled) -> str:
    """What became of the pack that was trained."""
    return f"what its blocks write is {scaled.by:g} times what those of the pack {scaled.of} write"


def _trained(pack: Pack) -> str:
    training = pack.record.training
    if training is None:
        return "no: the blocks are as they were inserted"
    run = training.get("run")
    steps = run.get("num_steps") if isinstance(run, dict) else None
    tokens = run.get("num_tokens") if isinstance(run, dict) else None
    told = f", {steps} steps on {tokens:,} tokens" if isinstance(steps, int) and isinstance(tokens, int) else ""
    return f"yes{told}"


def num_rounded(pack: Pack) -> int:
    """How many of its tensors are stored with loss."""
    if pack.record.encoding != "int8":
        return 0
    return sum(is_rounded(tensor) for _, _, tensor in tensors_of(pack.record.plan))
